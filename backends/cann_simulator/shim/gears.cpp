// The gears of a model: which one a client sets, and which one a run takes. What is set lies in device memory, in the buffer of the extra
// input, as on a device: setting another while a run is on its way changes that run.
#include <algorithm>
#include <cstring>

#include "simulator.h"

namespace sim {
namespace {

constexpr uint32_t MARK = 0x6EA20000;  // in the gear's buffer before its number; fresh memory has none

std::vector<int64_t> joined(const Gear& gear) {
  std::vector<int64_t> all;
  for (auto& dims : gear.inputs) all.insert(all.end(), dims.begin(), dims.end());
  return all;
}

aclError set_gear(uint32_t id, aclmdlDataset* handle, size_t index, const char* kind, const std::vector<int64_t>& values) {
  RETURN_IF(require_started());
  auto model = find_model(id);
  if (!model) return fail(GE_MODEL_ID, "setting a gear: no model with id " + std::to_string(id));
  if (model->gears.empty()) return fail(MODEL_NOT_DYNAMIC, "setting a gear: the model was compiled without gears");
  if (model->gear_kind != kind) return fail(GE_PARAM, "setting a gear: the model's gears are of kind " + model->gear_kind + ", not " + kind);
  auto dataset = datasets.find(handle);
  if (!dataset) return fail(INVALID_PARAM, "setting a gear: no such dataset");
  if (index != size_t(model->gear_input) || index >= dataset->items.size())
    return fail(GE_GEAR_ADDRESS, "setting a gear: input " + std::to_string(index) + " is not ascend_mbatch_shape_data");
  auto buffer = buffers.find(dataset->items[index].buffer);
  char* place = buffer && buffer->data ? view(buffer->data, buffer->nbytes) : nullptr;
  if (!place) return fail(GE_GEAR_ADDRESS, "setting a gear: its input has no buffer in device memory");
  if (buffer->nbytes < std::max<uint64_t>(model->inputs[index].nbytes, sizeof MARK))
    return fail(GE_GEAR_LENGTH, "setting a gear: the buffer of its input is too small");
  bool all = model->gear_kind == "dims";
  if (all && values.size() != joined(model->gears[0]).size())
    return fail(GE_GEAR_LENGTH, "setting a gear: " + std::to_string(values.size()) + " dims, of all inputs together there are " +
                                    std::to_string(joined(model->gears[0]).size()));
  for (size_t i = 0; i < model->gears.size(); ++i) {
    if ((all ? joined(model->gears[i]) : model->gears[i].values) != values) continue;
    uint32_t mark = MARK | uint32_t(i);
    memcpy(place, &mark, sizeof mark);
    std::lock_guard<std::mutex> lock(model->mutex);
    model->set_gear = int(i);
    return OK;
  }
  return fail(GE_GEAR, "setting a gear: the model was not compiled for " + shown(values));
}

std::shared_ptr<Model> with_gears(const aclmdlDesc* handle, const char* kind) {
  auto desc = model_descs.find(handle);
  return desc && desc->model && desc->model->gear_kind == kind ? desc->model : nullptr;
}

bool is_description(const aclmdlDesc* handle) {
  auto desc = model_descs.find(handle);
  return desc && desc->model;
}

}  // namespace

int gear_in_buffer(const Model& model, const char* data) {
  if (model.gears.empty()) return -1;
  uint32_t mark;
  memcpy(&mark, data, sizeof mark);
  bool set = (mark & 0xFFFF0000) == MARK && (mark & 0xFFFF) < model.gears.size();
  return set ? int(mark & 0xFFFF) : model.largest_gear;  // documented: nothing set takes the largest, and says nothing
}

}  // namespace sim

using namespace sim;

API aclError aclmdlSetDynamicBatchSize(uint32_t id, aclmdlDataset* dataset, size_t index, uint64_t batch) {
  CALLED("aclmdlSetDynamicBatchSize %u %lu", id, (unsigned long)batch);
  return set_gear(id, dataset, index, "batch", {int64_t(batch)});
}

API aclError aclmdlSetDynamicHWSize(uint32_t id, aclmdlDataset* dataset, size_t index, uint64_t height, uint64_t width) {
  CALLED("aclmdlSetDynamicHWSize %u %lu %lu", id, (unsigned long)height, (unsigned long)width);
  return set_gear(id, dataset, index, "image", {int64_t(height), int64_t(width)});
}

API aclError aclmdlSetInputDynamicDims(uint32_t id, aclmdlDataset* dataset, size_t index, const aclmdlIODims* dims) {
  CALLED("aclmdlSetInputDynamicDims %u", id);
  if (!dims || dims->dimCount > MAX_DIMS) return fail(INVALID_PARAM, "aclmdlSetInputDynamicDims: no dims, or too many");
  return set_gear(id, dataset, index, "dims", std::vector<int64_t>(dims->dims, dims->dims + dims->dimCount));
}

API aclError aclmdlGetDynamicBatch(const aclmdlDesc* handle, aclmdlBatch* to) {
  if (!to || !is_description(handle)) return fail(INVALID_PARAM, "aclmdlGetDynamicBatch: no such description or place");
  to->batchCount = 0;
  if (auto model = with_gears(handle, "batch"))
    for (size_t i = 0; i < std::min(model->gears.size(), MAX_DIMS); ++i) to->batch[to->batchCount++] = uint64_t(model->gears[i].values[0]);
  return OK;
}

API aclError aclmdlGetDynamicHW(const aclmdlDesc* handle, size_t, aclmdlHW* to) {
  if (!to || !is_description(handle)) return fail(INVALID_PARAM, "aclmdlGetDynamicHW: no such description or place");
  to->hwCount = 0;
  if (auto model = with_gears(handle, "image"))
    for (size_t i = 0; i < std::min(model->gears.size(), MAX_DIMS); ++i, ++to->hwCount)
      for (int axis : {0, 1}) to->hw[i][axis] = uint64_t(model->gears[i].values[axis]);
  return OK;
}

API aclError aclmdlGetInputDynamicGearCount(const aclmdlDesc* handle, size_t index, size_t* count) {
  if (!count || !is_description(handle)) return fail(INVALID_PARAM, "aclmdlGetInputDynamicGearCount: no such description or place");
  if (index != size_t(-1)) return fail(INVALID_PARAM, "aclmdlGetInputDynamicGearCount: the index has to be -1");
  auto model = with_gears(handle, "dims");
  *count = model ? model->gears.size() : 0;
  return OK;
}

API aclError aclmdlGetInputDynamicDims(const aclmdlDesc* handle, size_t index, aclmdlIODims* to, size_t count) {
  auto model = with_gears(handle, "dims");
  if (!to || !is_description(handle) || index != size_t(-1)) return fail(INVALID_PARAM, "aclmdlGetInputDynamicDims: no such description or place, or an index that is not -1");
  size_t gears = model ? model->gears.size() : 0;
  if (count < gears) return fail(INVALID_PARAM, "aclmdlGetInputDynamicDims: room for " + std::to_string(count) + " of " + std::to_string(gears));
  for (size_t i = 0; i < gears; ++i) {
    std::vector<int64_t> all = joined(model->gears[i]);
    if (all.size() > MAX_DIMS) return fail(INVALID_PARAM, "aclmdlGetInputDynamicDims: too many dims");
    to[i].name[0] = 0;
    to[i].dimCount = all.size();
    std::copy(all.begin(), all.end(), to[i].dims);
  }
  return OK;
}
