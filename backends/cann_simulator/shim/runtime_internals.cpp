// What torch_npu links besides the public API: the profiler's reports, which nobody reads here, and the runtime's own functions.
#include "simulator.h"

API int32_t MsprofRegisterCallback(uint32_t, void*) { return 0; }
API int32_t MsprofReportApi(uint32_t, const void*) { return 0; }
API int32_t MsprofReportCompactInfo(uint32_t, const void*, uint32_t) { return 0; }
API int32_t MsprofReportAdditionalInfo(uint32_t, const void*, uint32_t) { return 0; }
API uint64_t MsprofGetHashId(const char*, size_t) { return 0; }
API uint64_t MsprofSysCycleTime() { return 0; }

#define NOT_SIMULATED(name) \
  API aclError name() { return sim::fail(RT_NOT_SUPPORTED, #name ": not simulated"); }

NOT_SIMULATED(rtDevBinaryRegister)
NOT_SIMULATED(rtFunctionRegister)
NOT_SIMULATED(rtGetC2cCtrlAddr)
NOT_SIMULATED(rtKernelLaunch)
