// Tensors, scalars and lists that a client makes for operators.
#include <cstring>

#include "opapi.h"

namespace sim {
namespace {

Handles<OpTensor>& tensors = *new Handles<OpTensor>(OP_TENSOR);
Handles<OpScalar>& scalars = *new Handles<OpScalar>(OP_SCALAR);
Handles<OpList>& lists = *new Handles<OpList>(OP_LIST);

template <class Handle, class T>
Handle* made(Handles<T>& table, T thing) {
  return static_cast<Handle*>(table.add(std::make_shared<T>(std::move(thing))));
}

template <class T>
aclError destroyed(Handles<T>& table, const void* handle, const char* who) {
  return table.take(handle) ? OK : fail(OPAPI_PARAM, std::string(who) + ": no such object, or destroyed before");
}

Argument empty(char kind, const void* handle) {
  Argument argument;
  argument.kind = kind;
  argument.absent = !handle;
  return argument;
}

template <class T>
Argument of_list(char kind, const T* handle) {
  Argument argument = empty(kind, handle);
  if (argument.absent) return argument;
  auto list = lists.find(handle);
  argument.stale = !list;
  if (!list) return argument;
  argument.list = *list;
  for (const void* item : list->handles) {
    auto tensor = tensors.find(item);
    auto scalar = tensor ? nullptr : scalars.find(item);
    if (tensor || !item) argument.tensors.push_back(tensor);  // a null tensor stands for "all of this axis"
    else if (scalar) argument.scalars.push_back(*scalar);
    else argument.stale = true;
  }
  return argument;
}

Argument of_number(char kind, int64_t integer, double real) {
  Argument argument = empty(kind, "");
  argument.integer = integer;
  argument.real = real;
  return argument;
}

}  // namespace

void operand_leaks() {
  count_leak("operator tensor", tensors.all().size(), 0);
  count_leak("operator scalar", scalars.all().size(), 0);
  count_leak("operator list", lists.all().size(), 0);
}

Argument taken(char kind, const aclTensor* handle) {
  Argument argument = empty(kind, handle);
  if (argument.absent) return argument;
  auto tensor = tensors.find(handle);
  argument.stale = !tensor;
  if (tensor) argument.tensors.push_back(tensor);
  return argument;
}

Argument taken(char kind, const aclScalar* handle) {
  Argument argument = empty(kind, handle);
  if (argument.absent) return argument;
  auto scalar = scalars.find(handle);
  argument.stale = !scalar;
  if (scalar) argument.scalars.push_back(*scalar);
  return argument;
}

Argument taken(char kind, const aclIntArray* handle) { return of_list(kind, handle); }
Argument taken(char kind, const aclFloatArray* handle) { return of_list(kind, handle); }
Argument taken(char kind, const aclBoolArray* handle) { return of_list(kind, handle); }
Argument taken(char kind, const aclTensorList* handle) { return of_list(kind, handle); }
Argument taken(char kind, const aclScalarList* handle) { return of_list(kind, handle); }
Argument taken(char kind, int64_t value) { return of_number(kind, value, 0); }
Argument taken(char kind, int32_t value) { return of_number(kind, value, 0); }
Argument taken(char kind, int8_t value) { return of_number(kind, value, 0); }
Argument taken(char kind, double value) { return of_number(kind, 0, value); }
Argument taken(char kind, float value) { return of_number(kind, 0, value); }
Argument taken(char kind, const char* text) {
  Argument argument = empty(kind, text);
  if (text) argument.bytes = text;
  return argument;
}

}  // namespace sim

using namespace sim;

API aclTensor* aclCreateTensor(const int64_t* dims, uint64_t rank, int dtype, const int64_t* strides, int64_t offset, int, const int64_t*, uint64_t,
                               void* data) {
  if ((rank && !dims) || rank > MAX_DIMS || !size_of(dtype)) {
    fail(OPAPI_PARAM, "aclCreateTensor: no dims, too many, or aclDataType " + std::to_string(dtype) + ", which is not simulated");
    return nullptr;
  }
  OpTensor tensor;
  tensor.dtype = dtype;
  tensor.dims.assign(dims, dims + rank);
  tensor.strides.resize(rank);
  int64_t step = 1;
  for (size_t i = rank; i-- > 0; step *= tensor.dims[i]) tensor.strides[i] = strides ? strides[i] : step;
  tensor.offset = offset;
  tensor.data = data;
  return made<aclTensor>(tensors, std::move(tensor));
}

API aclScalar* aclCreateScalar(void* value, int dtype) {
  if (!value || !size_of(dtype)) {
    fail(OPAPI_PARAM, "aclCreateScalar: no value, or an unknown dtype");
    return nullptr;
  }
  return made<aclScalar>(scalars, OpScalar{dtype, std::string(static_cast<const char*>(value), size_of(dtype))});
}

API aclIntArray* aclCreateIntArray(const int64_t* values, uint64_t count) {
  return made<aclIntArray>(lists, OpList{std::vector<int64_t>(values, values + count), {}, {}});
}

API aclFloatArray* aclCreateFloatArray(const float* values, uint64_t count) {
  return made<aclFloatArray>(lists, OpList{{}, std::vector<double>(values, values + count), {}});
}

API aclBoolArray* aclCreateBoolArray(const bool* values, uint64_t count) {
  return made<aclBoolArray>(lists, OpList{std::vector<int64_t>(values, values + count), {}, {}});
}

API aclTensorList* aclCreateTensorList(const aclTensor* const* values, uint64_t count) {
  return made<aclTensorList>(lists, OpList{{}, {}, std::vector<const void*>(values, values + count)});
}

API aclScalarList* aclCreateScalarList(const aclScalar* const* values, uint64_t count) {
  return made<aclScalarList>(lists, OpList{{}, {}, std::vector<const void*>(values, values + count)});
}

API aclError aclDestroyTensor(const aclTensor* handle) { return destroyed(tensors, handle, "aclDestroyTensor"); }
API aclError aclDestroyScalar(const aclScalar* handle) { return destroyed(scalars, handle, "aclDestroyScalar"); }
API aclError aclDestroyIntArray(const aclIntArray* handle) { return destroyed(lists, handle, "aclDestroyIntArray"); }
API aclError aclDestroyFloatArray(const aclFloatArray* handle) { return destroyed(lists, handle, "aclDestroyFloatArray"); }
API aclError aclDestroyBoolArray(const aclBoolArray* handle) { return destroyed(lists, handle, "aclDestroyBoolArray"); }

API aclError aclDestroyTensorList(const aclTensorList* handle) {  // and the tensors in it
  auto list = lists.find(handle);
  for (size_t i = 0; list && i < list->handles.size(); ++i) tensors.take(list->handles[i]);
  return destroyed(lists, handle, "aclDestroyTensorList");
}

API aclError aclDestroyScalarList(const aclScalarList* handle) {
  auto list = lists.find(handle);
  for (size_t i = 0; list && i < list->handles.size(); ++i) scalars.take(list->handles[i]);
  return destroyed(lists, handle, "aclDestroyScalarList");
}

// The dims that an operator found out; the caller deletes them.
API aclError aclGetViewShape(const aclTensor* handle, int64_t** dims, uint64_t* rank) {
  auto tensor = tensors.find(handle);
  if (!tensor || !dims || !rank) return fail(OPAPI_PARAM, "aclGetViewShape: no such tensor, or null");
  *rank = tensor->dims.size();
  *dims = new int64_t[*rank ? *rank : 1];
  std::copy(tensor->dims.begin(), tensor->dims.end(), *dims);
  return OK;
}

// ---- a pool of memory that the client lends the library: it needs none here -------------------------------------------------
API int InitHugeMemThreadLocal(void*, bool) { return 0; }
API void UnInitHugeMemThreadLocal(void*, bool) {}
API void ReleaseHugeMem(void*, bool) {}
