// Operators of libopapi, as torch_npu calls them: operands, and calls in two phases.
#pragma once
#include "simulator.h"

struct aclTensor;  // opaque, like all that a client holds
struct aclScalar;
struct aclIntArray;
struct aclFloatArray;
struct aclBoolArray;
struct aclTensorList;
struct aclScalarList;
struct aclOpExecutor;

namespace sim {

enum : aclError { OPAPI_NULL = 161001, OPAPI_PARAM = 161002, OPAPI_INNER = 561000 };  // ACLNN_ERR_PARAM_NULLPTR, _PARAM_INVALID, _INNER

struct OpTensor {  // a view of device memory
  int32_t dtype = 0;
  std::vector<int64_t> dims, strides;
  int64_t offset = 0;  // elements before the first
  void* data = nullptr;
};

struct OpScalar {
  int32_t dtype = 0;
  std::string bytes;
};

struct OpList {  // of numbers, tensors or scalars; numbers as 8 bytes each
  std::vector<int64_t> integers;
  std::vector<double> reals;
  std::vector<const void*> handles;
};

// What a client hands an operator, read at once: it may destroy its own objects before the operator runs.
struct Argument {
  char kind = 0;      // of opapi_signatures.py
  bool absent = false;  // a null pointer where one is allowed
  bool stale = false;   // a handle of nothing
  int32_t dtype = 0;
  int64_t integer = 0;
  double real = 0;
  std::string bytes;
  std::vector<std::shared_ptr<OpTensor>> tensors;
  std::vector<OpScalar> scalars;
  OpList list;
};

struct OperandView {  // mirrored in opapi.py
  const void* data;   // of the first element; null where there is no element
  const int64_t *dims, *strides;
  int32_t rank, dtype;
};
struct OpArgument {  // mirrored in opapi.py
  char kind;
  int8_t absent;
  int32_t dtype;
  int64_t integer;
  double real;
  const void* data;  // OperandViews, numbers or text, by kind
  uint64_t count;
};

Argument taken(char kind, const aclTensor* handle);
Argument taken(char kind, const aclScalar* handle);
Argument taken(char kind, const aclIntArray* handle);
Argument taken(char kind, const aclFloatArray* handle);
Argument taken(char kind, const aclBoolArray* handle);
Argument taken(char kind, const aclTensorList* handle);
Argument taken(char kind, const aclScalarList* handle);
Argument taken(char kind, const char* text);
Argument taken(char kind, int64_t value);
Argument taken(char kind, int32_t value);
Argument taken(char kind, int8_t value);
Argument taken(char kind, double value);
Argument taken(char kind, float value);

aclError first_phase(const char* name, std::vector<Argument> arguments, uint64_t* workspace, aclOpExecutor** executor);
aclError second_phase(const char* name, aclOpExecutor* executor, aclrtStream stream);
aclError not_in_opapi(const char* name);

}  // namespace sim
