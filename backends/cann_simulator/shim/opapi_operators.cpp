// Operators in two phases: what a call needs, then the call itself, in a stream. What they compute is decided in Python.
#include <algorithm>

#include "opapi.h"

namespace sim {
namespace {

struct Call {
  std::string name;
  std::vector<Argument> arguments;
};
Handles<Call>& executors = *new Handles<Call>(OP_EXECUTOR);


// Where a tensor's elements lie, or null: from its first element to its last, all of it in one live allocation.
aclError place(const std::string& name, const OpTensor* tensor, OperandView* view_of) {
  static const int64_t none = -1;
  if (!tensor) {
    *view_of = {nullptr, &none, &none, -1, 0};
    return OK;
  }
  *view_of = {nullptr, tensor->dims.data(), tensor->strides.data(), int32_t(tensor->dims.size()), tensor->dtype};
  uint64_t last = 0;
  for (size_t i = 0; i < tensor->dims.size(); ++i) {
    if (tensor->dims[i] == 0) return OK;
    if (tensor->dims[i] < 0 || tensor->strides[i] < 0) return fail(OPAPI_PARAM, name + ": a tensor of " + shown(tensor->dims) + " by " + shown(tensor->strides));
    last += uint64_t(tensor->dims[i] - 1) * uint64_t(tensor->strides[i]);
  }
  size_t each = size_of(tensor->dtype);
  if (tensor->offset < 0 || last >= SIZE_MAX / 64) return fail(OPAPI_PARAM, name + ": a tensor of " + shown(tensor->dims) + " does not fit in memory");
  view_of->data = view(static_cast<char*>(tensor->data) + size_t(tensor->offset) * each, (last + 1) * each);
  return view_of->data ? OK : fail(OPAPI_PARAM, name + ": a tensor of " + shown(tensor->dims) + " is not inside one live allocation of device memory");
}

aclError compute(const Call& call, int device) {
  RETURN_IF(due_fault(device, ("operator " + call.name).c_str()));
  const Logic* python = logic();
  if (!python) return guess(INTERNAL, "the interpreter that computes for the simulated CANN is gone");
  std::vector<std::vector<OperandView>> views(call.arguments.size());
  std::vector<OpArgument> arguments;
  for (size_t i = 0; i < call.arguments.size(); ++i) {
    const Argument& from = call.arguments[i];
    for (auto& tensor : from.tensors) {
      views[i].emplace_back();
      RETURN_IF(place(call.name, tensor.get(), &views[i].back()));
    }
    OpArgument to{from.kind, from.absent, from.dtype, from.integer, from.real, nullptr, 0};
    if (!from.tensors.empty()) to.data = views[i].data(), to.count = views[i].size();
    else if (!from.scalars.empty()) to.data = from.scalars[0].bytes.data(), to.count = 1, to.dtype = from.scalars[0].dtype;
    else if (!from.list.integers.empty()) to.data = from.list.integers.data(), to.count = from.list.integers.size();
    else if (!from.list.reals.empty()) to.data = from.list.reals.data(), to.count = from.list.reals.size();
    else if (from.kind == 'S') to.data = from.bytes.c_str(), to.count = from.bytes.size();
    arguments.push_back(to);
  }
  Reply reply;
  reply.dims = [&](int index, const std::vector<int64_t>& dims) {
    if (size_t(index) < call.arguments.size() && !call.arguments[index].tensors.empty()) call.arguments[index].tensors[0]->dims = dims;
  };
  int code = python->operate(call.name.c_str(), int32_t(arguments.size()), arguments.data(), &reply);
  return code ? fail(code, reply.error) : OK;
}

}  // namespace

void executor_leaks() { count_leak("operator executor", executors.all().size(), 0); }

aclError first_phase(const char* name, std::vector<Argument> arguments, uint64_t* workspace, aclOpExecutor** executor) {
  CALLED("aclnn%sGetWorkspaceSize", name);
  RETURN_IF(require_started());
  if (!workspace || !executor) return fail(OPAPI_NULL, std::string("aclnn") + name + "GetWorkspaceSize: null");
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].stale) return fail(OPAPI_PARAM, std::string("aclnn") + name + ": argument " + std::to_string(i) + " does not exist, or was destroyed");
  *workspace = 0;
  *executor = static_cast<aclOpExecutor*>(executors.add(std::make_shared<Call>(Call{name, std::move(arguments)})));
  return OK;
}

aclError second_phase(const char* name, aclOpExecutor* handle, aclrtStream on) {
  CALLED("aclnn%s stream %p", name, on);
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_stream(on, stream));
  std::shared_ptr<Context> context;
  RETURN_IF(current_context(context));
  auto call = executors.take(handle);
  if (!call || call->name != name) return fail(OPAPI_PARAM, std::string("aclnn") + name + ": no such executor, used before, or of another operator");
  int device = context->device;
  return enqueue(stream, [call, device] { return compute(*call, device); });
}

aclError not_in_opapi(const char* name) { return guess(OPAPI_INNER, std::string(name) + ": this operator is not simulated"); }

}  // namespace sim

API void cannsim_reply_dims(void* reply, int index, int rank, const int64_t* dims) {
  auto& to = *static_cast<sim::Reply*>(reply);
  if (to.dims) to.dims(index, std::vector<int64_t>(dims, dims + rank));
}
