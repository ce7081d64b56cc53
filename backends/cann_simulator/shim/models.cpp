// Loading, running and unloading models.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "simulator.h"

namespace sim {
namespace {

std::mutex loading;
std::map<uint32_t, std::shared_ptr<Model>>& models = *new std::map<uint32_t, std::shared_ptr<Model>>;
uint32_t last_id = 0;

struct Given {  // memory that the client brings for a model's work or weights
  void* data = nullptr;
  size_t nbytes = 0;
};

aclError from_logic(int code, const Reply& reply, const char* what) {
  if (code == OK) return OK;
  return fail(code, reply.error.empty() ? std::string(what) + " failed" : reply.error);
}

aclError no_interpreter() { return guess(INTERNAL, "the interpreter that computes for the simulated CANN is gone"); }

// Device memory of `nbytes`: the client's where it brought some, else the model's own.
aclError hold(Model& model, uint64_t nbytes, const Given& given) {
  if (given.data) {
    if (given.nbytes < nbytes) return fail(GE_PARAM, "the memory given for a model has " + std::to_string(given.nbytes) + " bytes of " + std::to_string(nbytes));
    return view(given.data, given.nbytes) ? OK : fail(GE_PARAM, "the memory given for a model is not inside one live allocation");
  }
  if (nbytes == 0) return OK;
  void* address;
  if (allocate(model.device, nbytes, false, &address)) {
    std::string why = take_error();
    return fail(GE_MEMORY, "a model's memory: " + why);
  }
  model.memory.push_back(address);
  return OK;
}

void let_go(Model& model) {
  for (void* address : model.memory) release(address);
  model.memory.clear();
}

aclError load(const char* om, size_t nbytes, const Given& work, const Given& weights, uint32_t* id) {
  std::shared_ptr<Context> context;
  RETURN_IF(current_context(context));
  if (!id) return fail(INVALID_PARAM, "loading a model: no place for its id");
  if (nbytes == 0) return fail(GE_DATA_SIZE, "loading a model: it has no bytes");
  uint64_t nth = next_load();
  if (strikes(LOAD_FAILED, nth)) return fail(GE_LOAD, "loading a model: a fault that was asked for, at load " + std::to_string(nth));
  const Logic* python = logic();
  if (!python) return no_interpreter();
  auto model = std::make_shared<Model>();
  {
    std::lock_guard<std::mutex> lock(loading);
    model->id = ++last_id;
  }
  model->context = context->handle;
  model->device = context->device;
  Reply reply;
  RETURN_IF(from_logic(python->load(om, nbytes, model->id, &reply), reply, "loading a model"));
  take_description(*model, reply);
  aclError error = hold(*model, reply.weight_bytes, weights);
  if (!error) error = hold(*model, reply.work_bytes, work);
  if (error) {
    let_go(*model);
    python->unload(model->id);
    return error;
  }
  std::lock_guard<std::mutex> lock(loading);
  models[model->id] = model;
  *id = model->id;
  return OK;
}

aclError load_file(const char* path, const Given& work, const Given& weights, uint32_t* id) {
  if (!path) return fail(INVALID_PARAM, "loading a model: no path");
  FileView file(path);
  if (!file.readable) return fail(145002, std::string("loading a model: cannot read ") + path);
  return load(file.data, file.nbytes, work, weights, id);
}

aclError load_memory(const void* om, size_t nbytes, const Given& work, const Given& weights, uint32_t* id) {
  if (!om || is_handle(om)) return fail(INVALID_PARAM, "loading a model: no address");
  const char* bytes = on_a_device(om) ? view(om, nbytes) : static_cast<const char*>(om);
  if (!bytes) return fail(145007, "loading a model: not inside one live allocation of the device");
  return load(bytes, nbytes, work, weights, id);
}

// ---- running ------------------------------------------------------------------------------------------------------------
struct Bound {  // one buffer of a dataset, as it was when the run was asked for
  void* data;
  size_t nbytes;
  std::vector<int64_t> dims;  // of the description set on it, where there is one
  bool described;
};
struct Run {
  std::shared_ptr<Model> model;
  std::vector<Bound> inputs, outputs;
  std::shared_ptr<Dataset> results;
  const aclmdlDataset* results_handle;
  bool may_allocate;
};

aclError take_buffers(const aclmdlDataset* handle, size_t count, const char* what, std::vector<Bound>* bound) {
  auto dataset = datasets.find(handle);
  if (!dataset) return fail(INVALID_PARAM, std::string("running a model: no such dataset of ") + what);
  std::lock_guard<std::mutex> lock(dataset->mutex);
  if (dataset->items.size() != count)
    return fail(GE_PARAM, "running a model: " + std::to_string(dataset->items.size()) + " " + what + " for " + std::to_string(count));
  for (auto& item : dataset->items) {
    auto buffer = buffers.find(item.buffer);
    if (!buffer) return fail(INVALID_PARAM, "running a model: a buffer of the dataset was destroyed");
    auto desc = tensor_descs.find(item.desc);
    bound->push_back({buffer->data, buffer->nbytes, desc ? desc->dims : std::vector<int64_t>(), desc != nullptr});
  }
  return OK;
}

// Where a buffer can be read and written; the error names it.
aclError place(const Model& model, const Bound& bound, const Io& io, uint64_t least, char** address) {
  int device;
  std::string which = "'" + io.name + "'";
  if (!on_a_device(bound.data, &device)) return fail(GE_PARAM, "running a model: " + which + " is not in device memory");
  if (device != model.device) return fail(GE_PARAM, "running a model: " + which + " lies on another device than the model");
  if (bound.nbytes < least)
    return fail(GE_PARAM, "running a model: the buffer of " + which + " has " + std::to_string(bound.nbytes) + " bytes of " + std::to_string(least));
  *address = view(bound.data, bound.nbytes);
  return *address ? OK : fail(GE_PARAM, "running a model: the buffer of " + which + " is not inside one live allocation: freed, or too long");
}

aclError dims_of_input(const Model& model, const Run& run, size_t index, int gear, std::vector<int64_t>* dims) {
  const Io& io = model.inputs[index];
  bool fixed = std::find_if(io.dims.begin(), io.dims.end(), [](int64_t dim) { return dim < 0; }) == io.dims.end();
  if (gear >= 0) {
    size_t place = index - (model.gear_input >= 0 && index > size_t(model.gear_input));
    *dims = model.gears[gear].inputs[place];
  } else if (run.inputs[index].described && !fixed) {
    *dims = run.inputs[index].dims;
    bool fits = dims->size() == io.dims.size();
    for (size_t i = 0; fits && i < dims->size(); ++i) fits = io.dims[i] < 0 || io.dims[i] == (*dims)[i];
    if (!fits) return fail(145021, "running a model: '" + io.name + "' is " + shown(io.dims) + ", set to " + shown(*dims));
  } else if (fixed) {
    *dims = io.dims;
  } else {
    return fail(145021, "running a model: '" + io.name + "' is " + shown(io.dims) + ": its shape was not set");
  }
  return OK;
}

aclError gather(const Run& run, std::vector<std::vector<int64_t>>* shapes, std::vector<Tensor>* tensors, int* gear) {
  const Model& model = *run.model;
  *gear = -1;
  char* address;
  if (model.gear_input >= 0) {
    const Io& io = model.inputs[model.gear_input];
    RETURN_IF(place(model, run.inputs[model.gear_input], io, io.nbytes, &address));
    *gear = gear_in_buffer(model, address);
  }
  shapes->reserve(model.inputs.size());  // the tensors point into it
  for (size_t i = 0; i < model.inputs.size(); ++i) {
    if (int(i) == model.gear_input) continue;
    std::vector<int64_t> dims;
    uint64_t least;
    RETURN_IF(dims_of_input(model, run, i, *gear, &dims));
    if (!bytes_of(model.inputs[i].dtype, dims, &least)) return fail(145021, "running a model: a shape of " + shown(dims));
    RETURN_IF(place(model, run.inputs[i], model.inputs[i], least, &address));
    shapes->push_back(dims);
    tensors->push_back({address, least, shapes->back().data(), int32_t(dims.size()), model.inputs[i].dtype});
  }
  return OK;
}

aclError put_output(const Run& run, int index, const Tensor& tensor) {
  if (index < 0 || size_t(index) >= run.outputs.size()) return guess(INTERNAL, "a model gave an output that it does not have");
  const Io& io = run.model->outputs[index];
  Bound bound = run.outputs[index];
  bool fresh = !bound.data && bound.nbytes == 0 && run.may_allocate;
  if (fresh) {
    bound.nbytes = std::max<uint64_t>(tensor.nbytes, 1);
    RETURN_IF(allocate(run.model->device, bound.nbytes, true, &bound.data));
  }
  char* address;
  RETURN_IF(place(*run.model, bound, io, tensor.nbytes, &address));
  memcpy(address, tensor.data, tensor.nbytes);
  if (datasets.find(run.results_handle) != run.results) return OK;  // destroyed while the run was on its way
  auto desc = std::make_shared<TensorDesc>();
  desc->dtype = tensor.dtype;
  desc->dims.assign(tensor.dims, tensor.dims + tensor.rank);
  std::lock_guard<std::mutex> lock(run.results->mutex);
  auto& item = run.results->items[index];
  tensor_descs.take(item.desc);
  item.desc = tensor_descs.add(desc);
  auto buffer = buffers.find(item.buffer);
  if (fresh && buffer) {
    buffer->data = bound.data;
    buffer->nbytes = bound.nbytes;
  }
  return OK;
}

aclError compute(const Run& run) {
  RETURN_IF(due_fault(run.model->device, "a model"));
  std::vector<std::vector<int64_t>> shapes;
  std::vector<Tensor> tensors;
  int gear;
  RETURN_IF(gather(run, &shapes, &tensors, &gear));
  const Logic* python = logic();
  if (!python) return no_interpreter();
  Reply reply;
  aclError put = OK;
  std::string why;
  reply.output = [&](int index, const Tensor& tensor) {
    put = put_output(run, index, tensor);
    if (put) why = take_error();
    return put;
  };
  int code = python->run(run.model->id, gear, int32_t(tensors.size()), tensors.data(), &reply);
  return put ? fail(put, why) : from_logic(code, reply, "running a model");
}

// One run at a time, or one after the other on one stream.
aclError begin(Model& model, const Stream* stream, const void* thread) {
  std::lock_guard<std::mutex> lock(model.mutex);
  const void* who = stream ? static_cast<const void*>(stream) : thread;
  if (model.in_flight && model.runner != who)
    return guess(RT_EXECUTE, "model " + std::to_string(model.id) + " runs on another stream or thread: one at a time");
  ++model.in_flight;
  model.runner = who;
  return OK;
}

void end(Model& model) {
  std::lock_guard<std::mutex> lock(model.mutex);
  --model.in_flight;
}

aclError prepare(uint32_t id, const aclmdlDataset* in, aclmdlDataset* out, bool may_allocate, Run* run) {
  std::shared_ptr<Context> context;
  RETURN_IF(current_context(context));
  run->model = find_model(id);
  if (!run->model) return fail(GE_MODEL_ID, "running a model: there is none with id " + std::to_string(id));
  if (run->model->context != context->handle) return fail(RT_MODEL_CONTEXT, "the model was not loaded in this thread's context");
  RETURN_IF(take_buffers(in, run->model->inputs.size(), "inputs", &run->inputs));
  RETURN_IF(take_buffers(out, run->model->outputs.size(), "outputs", &run->outputs));
  run->results = datasets.find(out);
  run->results_handle = out;
  run->may_allocate = may_allocate;
  std::vector<std::vector<int64_t>> shapes;
  std::vector<Tensor> tensors;
  int gear;
  RETURN_IF(gather(*run, &shapes, &tensors, &gear));
  char* address;
  for (size_t i = 0; i < run->outputs.size(); ++i) {
    if (may_allocate && !run->outputs[i].data && run->outputs[i].nbytes == 0) continue;
    const Io& io = run->model->outputs[i];
    uint64_t least = gear < 0 ? io.nbytes : 0;  // a smaller gear needs less; what it gives is checked when it is there
    RETURN_IF(place(*run->model, run->outputs[i], io, least, &address));
  }
  return OK;
}

struct InFlight {  // ends when the task is over, dropped ones too
  std::shared_ptr<Model> model;
  ~InFlight() { end(*model); }
};

}  // namespace

std::shared_ptr<Model> find_model(uint32_t id) {
  std::lock_guard<std::mutex> lock(loading);
  auto at = models.find(id);
  return at == models.end() ? nullptr : at->second;
}

void model_leaks() {
  std::lock_guard<std::mutex> lock(loading);
  count_leak("model", models.size(), 0);
}

FileView::FileView(const char* path) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  struct stat info;
  if (file < 0) return;
  if (fstat(file, &info) == 0 && S_ISREG(info.st_mode)) {
    nbytes = size_t(info.st_size);
    void* mapped = nbytes ? mmap(nullptr, nbytes, PROT_READ, MAP_PRIVATE, file, 0) : nullptr;
    readable = mapped != MAP_FAILED;
    if (mapped && readable) data = static_cast<const char*>(mapped);
  }
  close(file);
}

FileView::~FileView() {
  if (readable && nbytes) munmap(const_cast<char*>(data), nbytes);
}

}  // namespace sim

using namespace sim;

API aclError aclmdlLoadFromFile(const char* path, uint32_t* id) {
  CALLED("aclmdlLoadFromFile %s", path ? path : "(null)");
  return load_file(path, {}, {}, id);
}

API aclError aclmdlLoadFromMem(const void* om, size_t nbytes, uint32_t* id) {
  CALLED("aclmdlLoadFromMem %zu", nbytes);
  return load_memory(om, nbytes, {}, {}, id);
}

API aclError aclmdlLoadFromFileWithMem(const char* path, uint32_t* id, void* work, size_t work_bytes, void* weights, size_t weight_bytes) {
  CALLED("aclmdlLoadFromFileWithMem %s", path ? path : "(null)");
  return load_file(path, {work, work_bytes}, {weights, weight_bytes}, id);
}

API aclError aclmdlLoadFromMemWithMem(const void* om, size_t nbytes, uint32_t* id, void* work, size_t work_bytes, void* weights, size_t weight_bytes) {
  CALLED("aclmdlLoadFromMemWithMem %zu", nbytes);
  return load_memory(om, nbytes, {work, work_bytes}, {weights, weight_bytes}, id);
}

API aclError aclmdlUnload(uint32_t id) {
  CALLED("aclmdlUnload %u", id);
  std::shared_ptr<Context> context;
  aclError state = current_context(context);
  if (state && state != RT_LOST) return state;  // of a lost device, what the host holds for the model is given back all the same
  std::shared_ptr<Model> model = find_model(id);
  if (!model) return fail(GE_MODEL_ID, "aclmdlUnload: no model with id " + std::to_string(id));
  if (model->context != context->handle) return fail(RT_MODEL_CONTEXT, "aclmdlUnload: the model was not loaded in this thread's context");
  {
    std::lock_guard<std::mutex> lock(model->mutex);
    if (model->in_flight) return guess(GE_UNLOAD, "aclmdlUnload: model " + std::to_string(id) + " still runs");
    std::lock_guard<std::mutex> also(loading);
    if (!models.erase(id)) return fail(GE_MODEL_ID, "aclmdlUnload: no model with id " + std::to_string(id));
  }
  let_go(*model);
  if (const Logic* python = logic()) python->unload(id);
  return state;
}

API aclError aclmdlExecute(uint32_t id, const aclmdlDataset* in, aclmdlDataset* out) {
  CALLED("aclmdlExecute %u", id);
  static thread_local char own_thread;
  Run run;
  RETURN_IF(prepare(id, in, out, true, &run));
  RETURN_IF(begin(*run.model, nullptr, &own_thread));
  InFlight running{run.model};
  return compute(run);
}

API aclError aclmdlExecuteAsync(uint32_t id, const aclmdlDataset* in, aclmdlDataset* out, aclrtStream handle) {
  CALLED("aclmdlExecuteAsync %u stream %p", id, handle);
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_stream(handle, stream));
  auto run = std::make_shared<Run>();
  RETURN_IF(prepare(id, in, out, false, run.get()));
  RETURN_IF(begin(*run->model, stream.get(), nullptr));
  auto running = std::make_shared<InFlight>();
  running->model = run->model;
  return enqueue(stream, [run, running] { return compute(*run); });
}

API aclError aclmdlExecuteV2(uint32_t id, const aclmdlDataset* in, aclmdlDataset* out, aclrtStream, const aclmdlExecConfigHandle*) {
  return aclmdlExecute(id, in, out);
}

API aclError aclmdlExecuteAsyncV2(uint32_t id, const aclmdlDataset* in, aclmdlDataset* out, aclrtStream stream, const aclmdlExecConfigHandle*) {
  return aclmdlExecuteAsync(id, in, out, stream);
}
