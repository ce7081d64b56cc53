// Buffers, datasets and tensor descriptions: what a client hands a model, and how long it lasts.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "simulator.h"

namespace sim {

Handles<TensorDesc>& tensor_descs = *new Handles<TensorDesc>(TENSOR_DESC);
Handles<Buffer>& buffers = *new Handles<Buffer>(BUFFER);
Handles<Dataset>& datasets = *new Handles<Dataset>(DATASET);

size_t size_of(int dtype) {
  switch (dtype) {
    case 2: case 4: case 12: case 34: case 35: case 36: case 37: return 1;  // int8, uint8, bool, 8-bit floats
    case 1: case 6: case 7: case 27: return 2;                             // float16, int16, uint16, bfloat16
    case 0: case 3: case 8: case 33: return 4;                             // float, int32, uint32, complex32
    case 9: case 10: case 11: case 16: return 8;                           // int64, uint64, double, complex64
    case 17: return 16;                                                    // complex128
    default: return 0;
  }
}

bool bytes_of(int dtype, const std::vector<int64_t>& dims, uint64_t* nbytes) {
  uint64_t count = size_of(dtype);
  for (int64_t dim : dims)
    if (dim < 0 || __builtin_mul_overflow(count, uint64_t(dim), &count)) return false;
  *nbytes = count;
  return true;
}

std::string shown(const std::vector<int64_t>& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

void description_leaks() {
  count_leak("data buffer", buffers.all().size(), 0);
  count_leak("model description", model_descs.all().size(), 0);
  count_leak("dataset", datasets.all().size(), 0);
  auto owned = size_t(0);
  for (auto& dataset : datasets.all())
    for (auto& item : dataset->items) owned += item.desc != nullptr;
  size_t made = tensor_descs.all().size();
  count_leak("tensor description", made > owned ? made - owned : 0, 0);
}

}  // namespace sim

using namespace sim;

template <class T>
static void* raw(T* handle) {
  return const_cast<void*>(static_cast<const void*>(handle));
}

// ---- tensor descriptions ------------------------------------------------------------------------------------------------
API size_t aclDataTypeSize(int dtype) { return size_of(dtype); }

API aclTensorDesc* aclCreateTensorDesc(int dtype, int rank, const int64_t* dims, int format) {
  CALLED("aclCreateTensorDesc dtype %d rank %d", dtype, rank);
  if (rank < 0 || size_t(rank) > MAX_DIMS || (rank && !dims)) {
    fail(INVALID_PARAM, "aclCreateTensorDesc: no such shape");
    return nullptr;
  }
  auto desc = std::make_shared<TensorDesc>();
  desc->dtype = dtype;
  desc->format = format;
  desc->dims.assign(dims, dims + rank);
  return static_cast<aclTensorDesc*>(tensor_descs.add(desc));
}

API void aclDestroyTensorDesc(const aclTensorDesc* handle) {
  if (!tensor_descs.take(handle)) fail(INVALID_PARAM, "aclDestroyTensorDesc: no such description, or destroyed before");
}

static std::shared_ptr<TensorDesc> described(const aclTensorDesc* handle) {
  auto desc = tensor_descs.find(handle);
  if (!desc) fail(INVALID_PARAM, "no such tensor description, or destroyed before");
  return desc;
}

API int aclGetTensorDescType(const aclTensorDesc* handle) {
  auto desc = described(handle);
  return desc ? desc->dtype : -1;
}

API int aclGetTensorDescFormat(const aclTensorDesc* handle) {
  auto desc = described(handle);
  return desc ? desc->format : -1;
}

API size_t aclGetTensorDescElementCount(const aclTensorDesc* handle) {
  auto desc = described(handle);
  uint64_t count;
  return desc && bytes_of(2, desc->dims, &count) ? count : 0;  // as if of one byte each
}

API size_t aclGetTensorDescSize(const aclTensorDesc* handle) {
  auto desc = described(handle);
  uint64_t nbytes;
  return desc && bytes_of(desc->dtype, desc->dims, &nbytes) ? nbytes : 0;
}

API size_t aclGetTensorDescNumDims(const aclTensorDesc* handle) {
  auto desc = described(handle);
  return desc ? desc->dims.size() : 0;
}

API aclError aclGetTensorDescDimV2(const aclTensorDesc* handle, size_t index, int64_t* dim) {
  auto desc = described(handle);
  if (!desc || !dim || index >= desc->dims.size()) return fail(INVALID_PARAM, "aclGetTensorDescDimV2: no such dim");
  *dim = desc->dims[index];
  return OK;
}

API aclError aclGetTensorDescDimRange(const aclTensorDesc* handle, size_t index, size_t room, int64_t* range) {
  int64_t dim;
  if (!range || room < 2) return fail(INVALID_PARAM, "aclGetTensorDescDimRange: no room");
  RETURN_IF(aclGetTensorDescDimV2(handle, index, &dim));
  range[0] = dim < 0 ? 0 : dim;
  range[1] = dim;
  return OK;
}

API void aclSetTensorDescName(aclTensorDesc* handle, const char* name) {
  if (auto desc = described(handle)) desc->name = name ? name : "";
}

API const char* aclGetTensorDescName(aclTensorDesc* handle) {
  auto desc = described(handle);
  return desc ? desc->name.c_str() : "";
}

API aclError aclSetTensorFormat(aclTensorDesc* handle, int) { return described(handle) ? OK : INVALID_PARAM; }
API aclError aclSetTensorShape(aclTensorDesc* handle, int, const int64_t*) { return described(handle) ? OK : INVALID_PARAM; }
API aclError aclSetTensorPlaceMent(aclTensorDesc* handle, int) { return described(handle) ? OK : INVALID_PARAM; }

API aclError aclSetTensorConst(aclTensorDesc* handle, void* data, size_t nbytes) {
  CALLED("aclSetTensorConst %zu", nbytes);
  auto desc = described(handle);
  if (!desc || !data || is_handle(data)) return fail(INVALID_PARAM, "aclSetTensorConst: null");
  const char* bytes = on_a_device(data) ? view(data, nbytes) : static_cast<const char*>(data);
  if (!bytes) return fail(INVALID_PARAM, "aclSetTensorConst: not inside one live allocation of the device");
  desc->constant.assign(bytes, nbytes);
  desc->is_constant = true;
  return OK;
}

API uint16_t aclFloatToFloat16(float value) {  // round to nearest, ties to even
  uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  float size = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7E00;
  if (size == 0) return sign;
  int exponent = std::isinf(value) ? 16 : std::max(std::ilogb(size), -14);
  if (exponent > 15) return sign | 0x7C00;
  auto mantissa = uint32_t(std::nearbyint(std::ldexp(size, 10 - exponent)));  // its leading 1 adds one to the exponent's bits
  return sign | uint16_t(std::min<uint32_t>((uint32_t(exponent + 14) << 10) + mantissa, 0x7C00));
}

API float aclFloat16ToFloat(uint16_t bits) {
  int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  float size = exponent == 31 ? (mantissa ? NAN : INFINITY) : std::ldexp(float(exponent ? mantissa + 1024 : mantissa), std::max(exponent, 1) - 25);
  return std::copysign(size, bits & 0x8000 ? -1.0f : 1.0f);
}

// ---- buffers ------------------------------------------------------------------------------------------------------------
API aclDataBuffer* aclCreateDataBuffer(void* data, size_t nbytes) {
  CALLED("aclCreateDataBuffer %p %zu", data, nbytes);
  auto buffer = std::make_shared<Buffer>();
  buffer->data = data;
  buffer->nbytes = nbytes;
  return static_cast<aclDataBuffer*>(buffers.add(buffer));
}

API aclError aclDestroyDataBuffer(const aclDataBuffer* handle) {
  CALLED("aclDestroyDataBuffer %p", raw(handle));
  return buffers.take(handle) ? OK : fail(INVALID_PARAM, "aclDestroyDataBuffer: no such buffer, or destroyed before");
}

API aclError aclUpdateDataBuffer(aclDataBuffer* handle, void* data, size_t nbytes) {
  auto buffer = buffers.find(handle);
  if (!buffer) return fail(INVALID_PARAM, "aclUpdateDataBuffer: no such buffer, or destroyed before");
  buffer->data = data;
  buffer->nbytes = nbytes;
  return OK;
}

API void* aclGetDataBufferAddr(const aclDataBuffer* handle) {
  auto buffer = buffers.find(handle);
  if (!buffer) fail(INVALID_PARAM, "aclGetDataBufferAddr: no such buffer, or destroyed before");
  return buffer ? buffer->data : nullptr;
}

API size_t aclGetDataBufferSizeV2(const aclDataBuffer* handle) {
  auto buffer = buffers.find(handle);
  if (!buffer) fail(INVALID_PARAM, "aclGetDataBufferSizeV2: no such buffer, or destroyed before");
  return buffer ? buffer->nbytes : 0;
}

API uint32_t aclGetDataBufferSize(const aclDataBuffer* handle) { return uint32_t(aclGetDataBufferSizeV2(handle)); }

// ---- datasets -----------------------------------------------------------------------------------------------------------
API aclmdlDataset* aclmdlCreateDataset() {
  CALLED("aclmdlCreateDataset");
  return static_cast<aclmdlDataset*>(datasets.add(std::make_shared<Dataset>()));
}

API aclError aclmdlDestroyDataset(const aclmdlDataset* handle) {  // the buffers stay, the descriptions set on it go
  CALLED("aclmdlDestroyDataset %p", raw(handle));
  auto dataset = datasets.take(handle);
  if (!dataset) return fail(INVALID_PARAM, "aclmdlDestroyDataset: no such dataset, or destroyed before");
  for (auto& item : dataset->items) tensor_descs.take(item.desc);
  return OK;
}

static std::shared_ptr<Dataset> set_of(const aclmdlDataset* handle) {
  auto dataset = datasets.find(handle);
  if (!dataset) fail(INVALID_PARAM, "no such dataset, or destroyed before");
  return dataset;
}

API aclError aclmdlAddDatasetBuffer(aclmdlDataset* handle, aclDataBuffer* buffer) {
  auto dataset = set_of(handle);
  if (!dataset || !buffers.find(buffer)) return fail(INVALID_PARAM, "aclmdlAddDatasetBuffer: no such dataset or buffer");
  dataset->items.push_back({buffer, nullptr});
  return OK;
}

API size_t aclmdlGetDatasetNumBuffers(const aclmdlDataset* handle) {
  auto dataset = set_of(handle);
  return dataset ? dataset->items.size() : 0;
}

API aclDataBuffer* aclmdlGetDatasetBuffer(const aclmdlDataset* handle, size_t index) {
  auto dataset = set_of(handle);
  if (!dataset || index >= dataset->items.size()) return nullptr;
  return static_cast<aclDataBuffer*>(const_cast<void*>(dataset->items[index].buffer));
}

API aclError aclmdlSetDatasetTensorDesc(aclmdlDataset* handle, aclTensorDesc* desc, size_t index) {
  auto dataset = set_of(handle);
  if (!dataset || index >= dataset->items.size()) return fail(INVALID_PARAM, "aclmdlSetDatasetTensorDesc: no such dataset or index");
  auto described_by = tensor_descs.find(desc);
  if (desc && !described_by) return fail(INVALID_PARAM, "aclmdlSetDatasetTensorDesc: no such description");
  tensor_descs.take(dataset->items[index].desc);
  dataset->items[index].desc = desc ? tensor_descs.add(std::make_shared<TensorDesc>(*described_by)) : nullptr;  // a copy: the client keeps its own
  return OK;
}

API aclTensorDesc* aclmdlGetDatasetTensorDesc(const aclmdlDataset* handle, size_t index) {
  auto dataset = set_of(handle);
  if (!dataset || index >= dataset->items.size()) return nullptr;
  return static_cast<aclTensorDesc*>(dataset->items[index].desc);
}
