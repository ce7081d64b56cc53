// The public C API as the vendor documents it: types, codes, layouts. Facts of the ABI, nothing of the simulator.
#pragma once
#include <cstddef>
#include <cstdint>

#define API extern "C" __attribute__((visibility("default")))

typedef int aclError;
typedef void* aclrtContext;
typedef void* aclrtStream;
typedef void* aclrtEvent;
typedef void (*aclrtCallback)(void*);
struct aclTensorDesc;  // opaque: the client holds handles, never addresses
struct aclDataBuffer;
struct aclmdlDataset;
struct aclmdlDesc;
struct aclmdlConfigHandle;
struct aclmdlExecConfigHandle;
struct aclopAttr;

constexpr size_t MAX_DIMS = 128;
constexpr size_t MAX_NAME = 128;

struct aclmdlIODims {
  char name[MAX_NAME];
  size_t dimCount;
  int64_t dims[MAX_DIMS];
};
struct aclmdlIODimsRange {
  size_t rangeCount;
  int64_t range[MAX_DIMS][2];
};
struct aclmdlBatch {
  size_t batchCount;
  uint64_t batch[MAX_DIMS];
};
struct aclmdlHW {
  size_t hwCount;
  uint64_t hw[MAX_DIMS][2];
};
struct aclCANNPackageVersion {
  char version[128], majorVersion[64], minorVersion[64], releaseVersion[64], patchVersion[64], reserved[128];
};

enum : aclError {
  OK = 0,
  INVALID_PARAM = 100000,
  UNINITIALISED = 100001,
  REPEATED_INIT = 100002,
  INVALID_FILE = 100003,
  READ_FAILED = 100014,
  MODEL_NOT_DYNAMIC = 100019,
  RT_PARAM = 107000,
  RT_DEVICE_ID = 107001,
  RT_NO_CONTEXT = 107002,
  RT_STREAM_CONTEXT = 107003,
  RT_MODEL_CONTEXT = 107004,
  RT_NOT_SUBSCRIBED_THREAD = 107014,
  RT_NOT_SUBSCRIBED_STREAM = 107015,
  GE_PARAM = 145000,
  GE_MODEL_ID = 145003,
  GE_DATA_SIZE = 145006,
  GE_GEAR_ADDRESS = 145011,
  GE_GEAR_LENGTH = 145012,
  GE_GEAR = 145013,
  HOST_MEMORY = 200000,
  NOT_SUPPORTED = 200001,
  RT_NOT_SUPPORTED = 207000,
  RT_MEMORY = 207001,
  RT_NO_STREAM = 207008,
  GE_MEMORY = 245000,
  INTERNAL = 500000,
  RT_LOST = 507010,
  RT_DRIVER = 507899,  // an internal error of the driver
  RT_EXECUTE = 507011,
  RT_REPORT_TIMEOUT = 507012,
  RT_STREAM_TIMEOUT = 507046,
  RT_EVENT_TIMEOUT = 507047,
  GE_LOAD = 545001,
  GE_UNLOAD = 545009,
};

enum CopyKind { HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, COPY_DEFAULT, HOST_BUFFER_TO_DEVICE, INNER_DEVICE, INTER_DEVICE };
enum Format { FORMAT_ND = 2 };
