// What a client can ask of a model before it runs it: names, types, shapes, sizes.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "simulator.h"

namespace sim {

Handles<ModelDesc>& model_descs = *new Handles<ModelDesc>(MODEL_DESC);

namespace {

uint64_t elements(const Gear& gear) {
  uint64_t sum = 0, count;
  for (auto& dims : gear.inputs)
    if (bytes_of(2, dims, &count)) sum += count;
  return sum;
}

std::shared_ptr<Model> model_of(const aclmdlDesc* handle) {
  auto desc = model_descs.find(handle);
  if (desc && desc->model) return desc->model;
  fail(INVALID_PARAM, "no such model description, destroyed before, or empty");
  return nullptr;
}

const Io* io_of(const aclmdlDesc* handle, bool output, size_t index, std::shared_ptr<Model>& model) {
  model = model_of(handle);
  if (!model) return nullptr;
  auto& list = output ? model->outputs : model->inputs;
  if (index < list.size()) return &list[index];
  fail(INVALID_PARAM, std::string("the model has no ") + (output ? "output " : "input ") + std::to_string(index));
  return nullptr;
}

// A name of more than 127 characters does not fit into a shape: the vendor puts a made one there.
std::string fitting_name(const Model& model, bool output, size_t index) {
  const std::string& name = (output ? model.outputs : model.inputs)[index].name;
  if (name.size() < MAX_NAME) return name;
  return "acl_modelId_" + std::to_string(model.id) + (output ? "_output_" : "_input_") + std::to_string(index);
}

aclError give_dims(const Model& model, bool output, size_t index, const std::vector<int64_t>& dims, aclmdlIODims* to) {
  if (dims.size() > MAX_DIMS) return fail(INVALID_PARAM, "a shape has too many dims");
  memset(to->name, 0, sizeof to->name);
  snprintf(to->name, sizeof to->name, "%s", fitting_name(model, output, index).c_str());
  to->dimCount = dims.size();
  std::copy(dims.begin(), dims.end(), to->dims);
  return OK;
}

aclError dims_by_index(const aclmdlDesc* handle, bool output, size_t index, aclmdlIODims* to) {
  std::shared_ptr<Model> model;
  const Io* io = io_of(handle, output, index, model);
  if (!io || !to) return fail(INVALID_PARAM, "asking for a shape: no such description, index or place");
  return give_dims(*model, output, index, io->dims, to);
}

aclError index_by_name(const aclmdlDesc* handle, bool output, const char* name, size_t* index) {
  auto model = model_of(handle);
  if (!model || !name || !index) return fail(INVALID_PARAM, "asking for an index: no such description, or null");
  auto& list = output ? model->outputs : model->inputs;
  for (size_t i = 0; i < list.size(); ++i)
    if (list[i].name == name || fitting_name(*model, output, i) == name) {
      *index = i;
      return OK;
    }
  return fail(INVALID_PARAM, std::string("the model has nothing called '") + name + "'");
}

}  // namespace

void take_description(Model& model, Reply& reply) {
  model.inputs = std::move(reply.inputs);
  model.outputs = std::move(reply.outputs);
  model.gears = std::move(reply.gears);
  model.gear_kind = reply.gear_kind;
  model.gear_input = model.gears.empty() || size_t(reply.gear_input) >= model.inputs.size() ? -1 : reply.gear_input;
  for (size_t i = 0; i < model.gears.size(); ++i)
    if (model.largest_gear < 0 || elements(model.gears[i]) > elements(model.gears[model.largest_gear])) model.largest_gear = int(i);
}

aclError describe(const char* om, size_t nbytes, Model& model, uint64_t* work_bytes, uint64_t* weight_bytes) {
  RETURN_IF(require_started());
  if (nbytes == 0) return fail(GE_DATA_SIZE, "describing a model: it has no bytes");
  const Logic* python = logic();
  if (!python) return guess(INTERNAL, "the interpreter that computes for the simulated CANN is gone");
  Reply reply;
  if (int code = python->describe(om, nbytes, &reply)) return fail(code, reply.error);
  *work_bytes = reply.work_bytes;
  *weight_bytes = reply.weight_bytes;
  take_description(model, reply);
  return OK;
}

aclError describe(const char* path, Model& model, uint64_t* work_bytes, uint64_t* weight_bytes) {
  if (!path) return fail(INVALID_PARAM, "describing a model: no path");
  FileView file(path);
  if (!file.readable) return fail(145002, std::string("describing a model: cannot read ") + path);
  return describe(file.data, file.nbytes, model, work_bytes, weight_bytes);
}

}  // namespace sim

using namespace sim;

API aclError aclmdlQuerySize(const char* path, size_t* work_bytes, size_t* weight_bytes) {
  CALLED("aclmdlQuerySize %s", path ? path : "(null)");
  Model model;
  uint64_t work = 0, weights = 0;
  if (!work_bytes || !weight_bytes) return fail(INVALID_PARAM, "aclmdlQuerySize: null");
  RETURN_IF(describe(path, model, &work, &weights));
  *work_bytes = work;
  *weight_bytes = weights;
  return OK;
}

API aclError aclmdlQuerySizeFromMem(const void* om, size_t nbytes, size_t* work_bytes, size_t* weight_bytes) {
  CALLED("aclmdlQuerySizeFromMem %zu", nbytes);
  Model model;
  uint64_t work = 0, weights = 0;
  if (!om || is_handle(om) || on_a_device(om) || !work_bytes || !weight_bytes) return fail(INVALID_PARAM, "aclmdlQuerySizeFromMem: no address");
  RETURN_IF(describe(static_cast<const char*>(om), nbytes, model, &work, &weights));
  *work_bytes = work;
  *weight_bytes = weights;
  return OK;
}

API aclmdlDesc* aclmdlCreateDesc() {
  CALLED("aclmdlCreateDesc");
  return static_cast<aclmdlDesc*>(model_descs.add(std::make_shared<ModelDesc>()));
}

API aclError aclmdlDestroyDesc(aclmdlDesc* handle) {
  CALLED("aclmdlDestroyDesc");
  return model_descs.take(handle) ? OK : fail(INVALID_PARAM, "aclmdlDestroyDesc: no such description, or destroyed before");
}

API aclError aclmdlGetDesc(aclmdlDesc* handle, uint32_t id) {
  CALLED("aclmdlGetDesc %u", id);
  auto desc = model_descs.find(handle);
  if (!desc) return fail(INVALID_PARAM, "aclmdlGetDesc: no such description, or destroyed before");
  auto model = find_model(id);
  if (!model) return fail(GE_MODEL_ID, "aclmdlGetDesc: no model with id " + std::to_string(id));
  desc->model = model;
  return OK;
}

API aclError aclmdlGetDescFromFile(aclmdlDesc* handle, const char* path) {
  CALLED("aclmdlGetDescFromFile %s", path ? path : "(null)");
  auto desc = model_descs.find(handle);
  if (!desc) return fail(INVALID_PARAM, "aclmdlGetDescFromFile: no such description, or destroyed before");
  auto model = std::make_shared<Model>();
  uint64_t work, weights;
  RETURN_IF(describe(path, *model, &work, &weights));
  desc->model = model;
  return OK;
}

API size_t aclmdlGetNumInputs(aclmdlDesc* handle) {
  auto model = model_of(handle);
  return model ? model->inputs.size() : 0;
}

API size_t aclmdlGetNumOutputs(aclmdlDesc* handle) {
  auto model = model_of(handle);
  return model ? model->outputs.size() : 0;
}

static size_t bytes_by_index(const aclmdlDesc* handle, bool output, size_t index) {
  std::shared_ptr<Model> model;
  const Io* io = io_of(handle, output, index, model);
  return io ? io->nbytes : 0;
}

API size_t aclmdlGetInputSizeByIndex(aclmdlDesc* handle, size_t index) { return bytes_by_index(handle, false, index); }
API size_t aclmdlGetOutputSizeByIndex(aclmdlDesc* handle, size_t index) { return bytes_by_index(handle, true, index); }

API aclError aclmdlGetInputDims(const aclmdlDesc* handle, size_t index, aclmdlIODims* to) { return dims_by_index(handle, false, index, to); }
API aclError aclmdlGetInputDimsV2(const aclmdlDesc* handle, size_t index, aclmdlIODims* to) { return dims_by_index(handle, false, index, to); }
API aclError aclmdlGetOutputDims(const aclmdlDesc* handle, size_t index, aclmdlIODims* to) { return dims_by_index(handle, true, index, to); }

API aclError aclmdlGetInputDimsRange(const aclmdlDesc* handle, size_t index, aclmdlIODimsRange* range) {
  std::shared_ptr<Model> model;
  const Io* io = io_of(handle, false, index, model);
  if (!io || !range || io->dims.size() > MAX_DIMS) return fail(INVALID_PARAM, "aclmdlGetInputDimsRange: no such description, index or place");
  range->rangeCount = io->dims.size();
  for (size_t i = 0; i < io->dims.size(); ++i) {
    range->range[i][0] = std::max<int64_t>(io->dims[i], 0);
    range->range[i][1] = io->dims[i];
  }
  return OK;
}

API aclError aclmdlGetCurOutputDims(const aclmdlDesc* handle, size_t index, aclmdlIODims* to) {
  std::shared_ptr<Model> model;
  const Io* io = io_of(handle, true, index, model);
  if (!io || !to) return fail(INVALID_PARAM, "aclmdlGetCurOutputDims: no such description, index or place");
  std::lock_guard<std::mutex> lock(model->mutex);
  int gear = model->set_gear >= 0 ? model->set_gear : model->largest_gear;
  bool known = gear >= 0 && index < model->gears[gear].outputs.size();
  return give_dims(*model, true, index, known ? model->gears[gear].outputs[index] : io->dims, to);
}

static const char* name_by_index(const aclmdlDesc* handle, bool output, size_t index) {
  std::shared_ptr<Model> model;
  const Io* io = io_of(handle, output, index, model);
  return io ? io->name.c_str() : "";  // stands as long as the description does
}

API const char* aclmdlGetInputNameByIndex(const aclmdlDesc* handle, size_t index) { return name_by_index(handle, false, index); }
API const char* aclmdlGetOutputNameByIndex(const aclmdlDesc* handle, size_t index) { return name_by_index(handle, true, index); }

API const char* aclmdlGetTensorRealName(const aclmdlDesc* handle, const char* name) {
  size_t index;
  if (index_by_name(handle, false, name, &index) == OK) return name_by_index(handle, false, index);
  if (index_by_name(handle, true, name, &index) == OK) return name_by_index(handle, true, index);
  return nullptr;
}

API aclError aclmdlGetInputIndexByName(const aclmdlDesc* handle, const char* name, size_t* index) { return index_by_name(handle, false, name, index); }
API aclError aclmdlGetOutputIndexByName(const aclmdlDesc* handle, const char* name, size_t* index) { return index_by_name(handle, true, name, index); }

static int dtype_by_index(const aclmdlDesc* handle, bool output, size_t index) {
  std::shared_ptr<Model> model;
  const Io* io = io_of(handle, output, index, model);
  return io ? io->dtype : -1;
}

API int aclmdlGetInputDataType(const aclmdlDesc* handle, size_t index) { return dtype_by_index(handle, false, index); }
API int aclmdlGetOutputDataType(const aclmdlDesc* handle, size_t index) { return dtype_by_index(handle, true, index); }
API int aclmdlGetInputFormat(const aclmdlDesc* handle, size_t index) { return dtype_by_index(handle, false, index) < 0 ? -1 : FORMAT_ND; }
API int aclmdlGetOutputFormat(const aclmdlDesc* handle, size_t index) { return dtype_by_index(handle, true, index) < 0 ? -1 : FORMAT_ND; }
