// What the vendor's API has, a client may link, and the simulator does not do: it answers so, and never does nothing in silence.
#include "simulator.h"

#define NOT_SIMULATED(name, code) \
  API aclError name() { return sim::fail(code, #name ": not simulated"); }

NOT_SIMULATED(aclmdlLoadWithConfig, NOT_SUPPORTED)
NOT_SIMULATED(aclmdlSetConfigOpt, NOT_SUPPORTED)
NOT_SIMULATED(aclmdlSetExternalWeightAddress, NOT_SUPPORTED)
NOT_SIMULATED(aclmdlDestroyConfigHandle, NOT_SUPPORTED)
NOT_SIMULATED(aclmdlSetExecConfigOpt, NOT_SUPPORTED)
NOT_SIMULATED(aclmdlDestroyExecConfigHandle, NOT_SUPPORTED)
NOT_SIMULATED(aclmdlBundleLoadFromFile, NOT_SUPPORTED)
NOT_SIMULATED(aclmdlBundleGetModelNum, NOT_SUPPORTED)
NOT_SIMULATED(aclmdlBundleGetModelId, NOT_SUPPORTED)
NOT_SIMULATED(aclmdlBundleUnload, NOT_SUPPORTED)
NOT_SIMULATED(aclmdlSetInputAIPP, NOT_SUPPORTED)
NOT_SIMULATED(aclmdlGetAippType, NOT_SUPPORTED)
NOT_SIMULATED(aclmdlGetFirstAippInfo, NOT_SUPPORTED)
NOT_SIMULATED(aclopExecuteV2, NOT_SUPPORTED)
NOT_SIMULATED(aclopExecWithHandle, NOT_SUPPORTED)
NOT_SIMULATED(aclopSetModelDir, NOT_SUPPORTED)
NOT_SIMULATED(aclopLoad, NOT_SUPPORTED)
NOT_SIMULATED(aclrtGetDeviceInfo, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtHostRegister, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtHostUnregister, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtSubscribeHostFunc, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtProcessHostFunc, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtUnSubscribeHostFunc, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtBinaryLoadFromData, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtBinaryGetFunction, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtGetFunctionAddr, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtDeviceGetBareTgid, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtSetStreamAttribute, RT_NOT_SUPPORTED)  // with which torch_npu begins to capture a graph
NOT_SIMULATED(aclrtReserveMemAddress, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtReleaseMemAddress, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtMallocPhysical, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtFreePhysical, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtMapMem, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtUnmapMem, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtMemExportToShareableHandle, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtMemImportFromShareableHandle, RT_NOT_SUPPORTED)
NOT_SIMULATED(aclrtMemSetPidToShareableHandle, RT_NOT_SUPPORTED)

API void* aclmdlCreateConfigHandle() {
  sim::fail(NOT_SUPPORTED, "aclmdlCreateConfigHandle: not simulated");
  return nullptr;
}

API void* aclmdlCreateExecConfigHandle() {
  sim::fail(NOT_SUPPORTED, "aclmdlCreateExecConfigHandle: not simulated");
  return nullptr;
}
