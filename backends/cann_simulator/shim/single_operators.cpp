// Operators one by one: their attributes, and aclopCompileAndExecute.
#include <cstdio>
#include <cstring>

#include "simulator.h"

struct aclopAttr;

namespace sim {
namespace {

struct Attributes {
  std::map<std::string, std::string> json;  // name -> value as JSON
};
Handles<Attributes>& attributes = *new Handles<Attributes>(OP_ATTR);

std::string number(double value) {
  if (value != value) return "NaN";
  char text[32];
  snprintf(text, sizeof text, "%.17g", value);
  if (strstr(text, "inf")) return value < 0 ? "-Infinity" : "Infinity";
  return text;
}

std::string number(int64_t value) { return std::to_string(value); }
std::string flag(uint8_t value) { return value ? "true" : "false"; }

template <class T, class F>
std::string list(int count, const T* values, F shown_as) {
  std::string text = "[";
  for (int i = 0; values && i < count; ++i) text += (i ? ", " : "") + shown_as(values[i]);
  return text + "]";
}

aclError set(aclopAttr* handle, const char* name, const std::string& json) {
  auto attribute = attributes.find(handle);
  if (!attribute || !name) return fail(INVALID_PARAM, "setting an attribute: no such set of attributes, or no name");
  attribute->json[name] = json;
  return OK;
}

struct Operand {
  std::shared_ptr<TensorDesc> desc;
  void* data;
  size_t nbytes;
  bool absent;  // an optional one
};

struct Call {
  std::string type, attributes;
  std::vector<Operand> inputs, outputs;
};

aclError take_operands(int count, const aclTensorDesc* const descs[], const aclDataBuffer* const data[], std::vector<Operand>* to) {
  for (int i = 0; i < count; ++i) {
    auto desc = descs ? tensor_descs.find(descs[i]) : nullptr;
    auto buffer = data ? buffers.find(data[i]) : nullptr;
    if (!desc || (!buffer && !desc->is_constant)) return fail(INVALID_PARAM, "single operator: a description or buffer does not exist");
    bool absent = desc->dtype < 0 || (!desc->is_constant && !buffer->data);
    to->push_back({std::make_shared<TensorDesc>(*desc), buffer ? buffer->data : nullptr, buffer ? buffer->nbytes : 0, absent});
  }
  return OK;
}

aclError tensor_of(const Operand& operand, Tensor* tensor) {
  const TensorDesc& desc = *operand.desc;
  *tensor = {nullptr, 0, desc.dims.data(), int32_t(desc.dims.size()), desc.dtype};
  if (operand.absent) return OK;
  uint64_t least;
  if (!bytes_of(desc.dtype, desc.dims, &least)) return fail(INVALID_PARAM, "single operator: a shape of " + shown(desc.dims));
  const char* bytes = desc.is_constant ? desc.constant.data() : view(operand.data, operand.nbytes);
  if (!bytes) return fail(INVALID_PARAM, "single operator: a buffer is not inside one live allocation of device memory");
  if ((desc.is_constant ? desc.constant.size() : operand.nbytes) < least) return fail(INVALID_PARAM, "single operator: a buffer is too small for " + shown(desc.dims));
  tensor->data = bytes;
  tensor->nbytes = least;
  return OK;
}

aclError put(const Call& call, int index, const Tensor& result) {
  if (index < 0 || size_t(index) >= call.outputs.size()) return OK;  // an output the client did not ask for
  Tensor room;
  RETURN_IF(tensor_of(call.outputs[index], &room));
  if (call.outputs[index].absent) return OK;
  if (result.nbytes != room.nbytes || result.dtype != room.dtype)
    return fail(INVALID_PARAM, "single operator " + call.type + ": gives " + std::to_string(result.nbytes) + " bytes of dtype " + std::to_string(result.dtype) +
                                   " for an output of " + std::to_string(room.nbytes) + " of dtype " + std::to_string(room.dtype));
  memcpy(const_cast<void*>(room.data), result.data, result.nbytes);
  return OK;
}

aclError compute(const Call& call) {
  std::vector<Tensor> tensors(call.inputs.size());
  for (size_t i = 0; i < tensors.size(); ++i) RETURN_IF(tensor_of(call.inputs[i], &tensors[i]));
  const Logic* python = logic();
  if (!python) return guess(INTERNAL, "the interpreter that computes for the simulated CANN is gone");
  Reply reply;
  aclError failed = OK;
  std::string why;
  reply.output = [&](int index, const Tensor& result) {
    failed = put(call, index, result);
    if (failed) why = take_error();
    return failed;
  };
  int code = python->single(call.type.c_str(), call.attributes.c_str(), int32_t(tensors.size()), tensors.data(), &reply);
  if (failed) return fail(failed, why);
  return code ? fail(code, reply.error) : OK;
}

}  // namespace

void operator_leaks() { count_leak("operator attributes", attributes.all().size(), 0); }

}  // namespace sim

using namespace sim;

API aclopAttr* aclopCreateAttr() { return static_cast<aclopAttr*>(attributes.add(std::make_shared<Attributes>())); }

API void aclopDestroyAttr(const aclopAttr* handle) {
  if (!attributes.take(handle)) fail(INVALID_PARAM, "aclopDestroyAttr: no such attributes, or destroyed before");
}

API aclError aclopSetAttrBool(aclopAttr* handle, const char* name, uint8_t value) { return set(handle, name, flag(value)); }
API aclError aclopSetAttrInt(aclopAttr* handle, const char* name, int64_t value) { return set(handle, name, number(value)); }
API aclError aclopSetAttrFloat(aclopAttr* handle, const char* name, float value) { return set(handle, name, number(double(value))); }
API aclError aclopSetAttrString(aclopAttr* handle, const char* name, const char* value) { return set(handle, name, quoted(value ? value : "")); }
API aclError aclopSetAttrDataType(aclopAttr* handle, const char* name, int dtype) { return set(handle, name, number(int64_t(dtype))); }
API aclError aclopSetAttrListBool(aclopAttr* handle, const char* name, int count, const uint8_t* values) { return set(handle, name, list(count, values, flag)); }
API aclError aclopSetAttrListInt(aclopAttr* handle, const char* name, int count, const int64_t* values) {
  return set(handle, name, list(count, values, [](int64_t v) { return number(v); }));
}
API aclError aclopSetAttrListFloat(aclopAttr* handle, const char* name, int count, const float* values) {
  return set(handle, name, list(count, values, [](float v) { return number(double(v)); }));
}
API aclError aclopSetAttrListListInt(aclopAttr* handle, const char* name, int count, const int* lengths, const int64_t* const values[]) {
  std::string text = "[";
  for (int i = 0; lengths && values && i < count; ++i)
    text += (i ? ", " : "") + list(lengths[i], values[i], [](int64_t v) { return number(v); });
  return set(handle, name, text + "]");
}

API aclError aclopCompileAndExecute(const char* type, int input_count, const aclTensorDesc* const input_descs[], const aclDataBuffer* const inputs[],
                                    int output_count, const aclTensorDesc* const output_descs[], aclDataBuffer* const outputs[], const aclopAttr* attribute_handle,
                                    int, int, const char*, aclrtStream handle) {
  CALLED("aclopCompileAndExecute %s", type ? type : "(null)");
  if (!type || input_count < 0 || output_count < 0) return fail(INVALID_PARAM, "aclopCompileAndExecute: no type, or a negative count");
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_stream(handle, stream));
  auto call = std::make_shared<Call>();
  call->type = type;
  call->attributes = "{";
  if (auto set = attributes.find(attribute_handle))
    for (auto& entry : set->json) call->attributes += (call->attributes.size() > 1 ? ", " : "") + quoted(entry.first) + ": " + entry.second;
  call->attributes += "}";
  RETURN_IF(take_operands(input_count, input_descs, inputs, &call->inputs));
  RETURN_IF(take_operands(output_count, output_descs, outputs, &call->outputs));
  return enqueue(stream, [call] { return compute(*call); });
}
