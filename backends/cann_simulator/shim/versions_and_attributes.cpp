// What a client asks about the machine and the release, and switches that change nothing here.
#include <cstdio>
#include <cstring>

#include "simulator.h"

using namespace sim;

API aclError aclrtGetVersion(int32_t* major, int32_t* minor, int32_t* patch) {
  if (!major || !minor || !patch) return fail(INVALID_PARAM, "aclrtGetVersion: null");
  *major = 1;
  *minor = 17;
  *patch = 0;
  return OK;
}

API aclError aclsysGetCANNVersion(int, aclCANNPackageVersion* to) {
  CALLED("aclsysGetCANNVersion");
  if (!to) return fail(INVALID_PARAM, "aclsysGetCANNVersion: null");
  RETURN_IF(start_python());
  memset(to, 0, sizeof *to);
  snprintf(to->version, sizeof to->version, "%s", settings().cann.c_str());
  unsigned parts[2] = {0, 0};
  char release[64] = "0";
  sscanf(settings().cann.c_str(), "%u.%u.%63s", &parts[0], &parts[1], release);
  snprintf(to->majorVersion, sizeof to->majorVersion, "%u", parts[0]);
  snprintf(to->minorVersion, sizeof to->minorVersion, "%u", parts[1]);
  snprintf(to->releaseVersion, sizeof to->releaseVersion, "%s", release);
  return OK;
}

API aclError aclsysGetVersionStr(char*, char* to) {
  CALLED("aclsysGetVersionStr");
  if (!to) return fail(INVALID_PARAM, "aclsysGetVersionStr: null");
  RETURN_IF(start_python());
  strcpy(to, settings().cann.c_str());  // the caller gives 128 bytes; a release has a dozen
  return OK;
}

API aclError aclsysGetVersionNum(char*, int32_t* to) {  // 8.5.0 -> 80500000
  CALLED("aclsysGetVersionNum");
  if (!to) return fail(INVALID_PARAM, "aclsysGetVersionNum: null");
  RETURN_IF(start_python());
  int major = 0, minor = 0, patch = 0;
  sscanf(settings().cann.c_str(), "%d.%d.%d", &major, &minor, &patch);
  *to = major * 10000000 + minor * 100000 + patch * 1000;
  return OK;
}

API aclError aclGetCannAttribute(int attribute, int32_t* value) {
  CALLED("aclGetCannAttribute %d", attribute);
  if (!value) return fail(INVALID_PARAM, "aclGetCannAttribute: null");
  RETURN_IF(start_python());
  enum { INF_NAN, BF16, JIT_COMPILE };
  switch (attribute) {
    case INF_NAN: *value = !settings().saturates; return OK;
    case BF16: *value = !settings().saturates; return OK;  // the chips that keep Inf are those with bf16
    case JIT_COMPILE: *value = 0; return OK;
    default: return fail(INVALID_PARAM, "aclGetCannAttribute: no such attribute");
  }
}

API aclError aclGetDeviceCapability(uint32_t device, int, int64_t* value) {
  CALLED("aclGetDeviceCapability %u", device);
  if (!value) return fail(INVALID_PARAM, "aclGetDeviceCapability: null");
  *value = 20;  // cores; no document that was read fixes them for a SoC
  return OK;
}

// Only the chip's own way: what the other does to every number is not simulated.
API aclError aclrtSetDeviceSatMode(int mode) {
  CALLED("aclrtSetDeviceSatMode %d", mode);
  std::shared_ptr<Context> context;
  RETURN_IF(current_context(context));
  if (mode != 0 && mode != 1) return fail(RT_PARAM, "aclrtSetDeviceSatMode: no such mode");
  if ((mode == 0) == settings().saturates) return OK;
  return guess(RT_NOT_SUPPORTED, "aclrtSetDeviceSatMode: not simulated but for the mode that " + settings().soc + " starts in");
}

API aclError aclrtGetDeviceSatMode(int* mode) {
  CALLED("aclrtGetDeviceSatMode");
  if (!mode) return fail(RT_PARAM, "aclrtGetDeviceSatMode: null");
  std::shared_ptr<Context> context;
  RETURN_IF(current_context(context));
  *mode = settings().saturates ? 0 : 1;
  return OK;
}

API aclError aclrtCheckArchCompatibility(const char* soc, int32_t* compatible) {
  CALLED("aclrtCheckArchCompatibility %s", soc ? soc : "(null)");
  if (!soc || !compatible) return fail(INVALID_PARAM, "aclrtCheckArchCompatibility: null");
  RETURN_IF(start_python());
  *compatible = settings().soc == soc;
  return OK;
}

// ---- taken and without effect: limits of time, modes of failure, hints ------------------------------------------------------
API aclError aclrtSetOpExecuteTimeOut(uint32_t) { return OK; }
API aclError aclrtSetOpWaitTimeout(uint32_t) { return OK; }
API aclError aclrtSetStreamFailureMode(aclrtStream, uint64_t) { return OK; }
API aclError aclrtSetStreamOverflowSwitch(aclrtStream, uint32_t) { return OK; }
API aclError aclrtSetExceptionInfoCallback(void (*)(void*)) { return OK; }
API aclError aclrtPeekAtLastError(int) { return OK; }
API aclError aclrtGetLastError(int) { return OK; }
API aclError aclrtSetSysParamOpt(int, int64_t) { return OK; }
API aclError aclrtGetSysParamOpt(int, int64_t* value) {
  if (!value) return fail(RT_PARAM, "aclrtGetSysParamOpt: null");
  *value = 0;
  return OK;
}
API aclError aclSetCompileopt(int, const char*) { return OK; }
API size_t aclGetCompileoptSize(int) { return sizeof "disable"; }
API aclError aclGetCompileopt(int, char* value, size_t room) {
  if (!value || room < sizeof "disable") return fail(INVALID_PARAM, "aclGetCompileopt: no room");
  memcpy(value, "disable", sizeof "disable");
  return OK;
}
API aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t, int32_t) {
  if (!can) return fail(RT_PARAM, "aclrtDeviceCanAccessPeer: null");
  *can = 1;
  return OK;
}
API aclError aclrtDeviceEnablePeerAccess(int32_t, uint32_t) { return OK; }
API aclError aclrtDeviceDisablePeerAccess(int32_t) { return OK; }
API void aclAppLog(int, const char*, const char*, uint32_t, const char*, ...) {}
API aclError aclmdlInitDump() { return OK; }
API aclError aclmdlSetDump(const char*) { return OK; }
API aclError aclmdlFinalizeDump() { return OK; }
