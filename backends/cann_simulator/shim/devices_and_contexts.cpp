// Start and end, devices, contexts: who may call what from which thread.
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>

#include "simulator.h"

namespace sim {
Handles<Context>& contexts = *new Handles<Context>(CONTEXT);

namespace {

struct Device {
  int set_count = 0;      // aclrtSetDevice calls that no aclrtResetDevice has undone
  void* primary = nullptr;  // its default context
  bool lost = false;
};
std::mutex guarding;  // of all below
std::atomic<bool> started{false};
uint64_t references = 0;
bool report_due = false;
pid_t owner = 0;  // a forked child writes no report: what it holds is its parent's
std::map<int, Device>& devices = *new std::map<int, Device>;
thread_local void* current = nullptr;

void write_report(bool finalised) {
  const std::string& path = settings().report;
  if (path.empty() || owner != getpid()) return;
  std::string text = report_text(finalised), temporary = path + ".new";
  FILE* file = fopen(temporary.c_str(), "w");
  if (!file) return;
  bool whole = fwrite(text.data(), 1, text.size(), file) == text.size();
  if (fclose(file) == 0 && whole) rename(temporary.c_str(), path.c_str());
}

void* new_context(int device, bool primary) {
  auto context = std::make_shared<Context>();
  context->device = device;
  context->primary = primary;
  context->handle = contexts.add(context);
  context->default_stream = new_stream(*context);
  return context->handle;
}

void drop_primary(Device& device) {
  if (!device.primary) return;
  forget_streams_of(device.primary);  // the documents: it takes its streams with it
  contexts.take(device.primary);
  device.primary = nullptr;
  device.set_count = 0;
}

void finalise() {
  stop_streams();
  {
    std::lock_guard<std::mutex> lock(guarding);
    for (auto& entry : devices) drop_primary(entry.second);
    started = false;
    references = 0;
    report_due = false;
  }
  write_report(true);
}

void after_fork_in_child() { started = false; }  // the threads of the streams are not there; it has to start anew

struct AtExit {
  ~AtExit() {
    if (report_due) write_report(false);
  }
} at_exit;

aclError device_exists(int32_t device, aclError code) {
  if (device >= 0 && uint32_t(device) < settings().devices) return OK;
  return fail(code, "device " + std::to_string(device) + " does not exist: there are " + std::to_string(settings().devices));
}

aclError not_lost(int device) {
  return is_lost(device) ? fail(RT_LOST, "device " + std::to_string(device) + " is lost: no heartbeat") : OK;
}

}  // namespace

aclError require_started() {
  return started ? OK : fail(UNINITIALISED, "aclInit was not called, or aclFinalize was");
}

void* thread_context() { return current; }

aclError current_context(std::shared_ptr<Context>& found) {
  RETURN_IF(require_started());
  found = contexts.find(current);
  if (!found) return fail(RT_NO_CONTEXT, "this thread has no context: call aclrtSetDevice or aclrtSetCurrentContext first");
  return not_lost(found->device);
}

bool is_lost(int device) {
  std::lock_guard<std::mutex> lock(guarding);
  return devices[device].lost;
}

void lose(int device) {
  std::lock_guard<std::mutex> lock(guarding);
  devices[device].lost = true;
}

}  // namespace sim

using namespace sim;

API aclError aclInit(const char* config) {
  CALLED("aclInit %s", config ? config : "");
  RETURN_IF(start_python());
  static int once = pthread_atfork(nullptr, nullptr, after_fork_in_child);
  (void)once;
  std::lock_guard<std::mutex> lock(guarding);
  if (config && *config) {
    FILE* file = fopen(config, "r");
    if (!file) return fail(INVALID_FILE, std::string("aclInit: cannot open ") + config);
    fclose(file);
  }
  ++references;
  if (started) return fail(REPEATED_INIT, "aclInit was called before");
  started = report_due = true;
  owner = getpid();
  return OK;
}

API aclError aclFinalize() {
  CALLED("aclFinalize");
  RETURN_IF(require_started());
  finalise();
  return OK;
}

API aclError aclFinalizeReference(uint64_t* count) {
  CALLED("aclFinalizeReference");
  RETURN_IF(require_started());
  uint64_t left;
  {
    std::lock_guard<std::mutex> lock(guarding);
    left = --references;
  }
  if (count) *count = left;
  if (left == 0) finalise();
  return OK;
}

API const char* aclrtGetSocName() {
  CALLED("aclrtGetSocName");
  return start_python() ? nullptr : settings().soc.c_str();
}

API aclError aclrtGetDeviceCount(uint32_t* count) {
  CALLED("aclrtGetDeviceCount");
  if (!count) return fail(INVALID_PARAM, "aclrtGetDeviceCount: null");
  RETURN_IF(start_python());
  *count = settings().devices;
  return OK;
}

API aclError aclrtGetRunMode(int* mode) {
  CALLED("aclrtGetRunMode");
  if (!mode) return fail(INVALID_PARAM, "aclrtGetRunMode: null");
  *mode = 1;  // ACL_HOST: a card in a host
  return OK;
}

API aclError aclrtSetDevice(int32_t device) {
  CALLED("aclrtSetDevice %d", device);
  RETURN_IF(require_started());
  RETURN_IF(device_exists(device, RT_DEVICE_ID));
  RETURN_IF(not_lost(device));
  if (strikes(DEVICE_BUSY, next_choice())) return fail(RT_DRIVER, "EL0005: the device or its resources are busy: a fault that was asked for");
  std::lock_guard<std::mutex> lock(guarding);
  Device& entry = devices[device];
  if (!entry.primary) entry.primary = new_context(device, true);
  ++entry.set_count;
  current = entry.primary;
  return OK;
}

static aclError reset(int32_t device, bool force) {
  RETURN_IF(require_started());
  RETURN_IF(device_exists(device, RT_DEVICE_ID));
  {
    std::lock_guard<std::mutex> lock(guarding);
    Device& entry = devices[device];
    if (!entry.primary) return OK;  // the documents do not say; a second reset does no harm
    if (!force && --entry.set_count > 0) return OK;
  }
  wait_for_device(device, -1);
  std::lock_guard<std::mutex> lock(guarding);
  drop_primary(devices[device]);
  return OK;
}

API aclError aclrtResetDevice(int32_t device) {
  CALLED("aclrtResetDevice %d", device);
  return reset(device, false);
}

API aclError aclrtResetDeviceForce(int32_t device) {
  CALLED("aclrtResetDeviceForce %d", device);
  return reset(device, true);
}

API aclError aclrtGetDevice(int32_t* device) {
  CALLED("aclrtGetDevice");
  if (!device) return fail(INVALID_PARAM, "aclrtGetDevice: null");
  std::shared_ptr<Context> context = contexts.find(current);
  if (!context) return fail(RT_NO_CONTEXT, "aclrtGetDevice: no device is set on this thread");
  *device = context->device;
  return OK;
}

API aclError aclrtQueryDeviceStatus(int32_t device, int* status) {
  CALLED("aclrtQueryDeviceStatus %d", device);
  RETURN_IF(require_started());
  RETURN_IF(device_exists(device, RT_DEVICE_ID));
  if (!status) return fail(INVALID_PARAM, "aclrtQueryDeviceStatus: null");
  *status = is_lost(device) ? 1 : 0;  // ACL_RT_DEVICE_STATUS_NORMAL is 0
  return OK;
}

API aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout_ms) {
  CALLED("aclrtSynchronizeDevice");
  std::shared_ptr<Context> context;
  RETURN_IF(current_context(context));
  return wait_for_device(context->device, timeout_ms);
}

API aclError aclrtSynchronizeDevice() { return aclrtSynchronizeDeviceWithTimeout(-1); }

API aclError aclrtCreateContext(aclrtContext* context, int32_t device) {
  CALLED("aclrtCreateContext %d", device);
  RETURN_IF(require_started());
  if (!context) return fail(INVALID_PARAM, "aclrtCreateContext: null");
  RETURN_IF(device_exists(device, RT_DEVICE_ID));
  RETURN_IF(not_lost(device));
  *context = current = new_context(device, false);
  return OK;
}

API aclError aclrtDestroyContext(aclrtContext handle) {
  CALLED("aclrtDestroyContext %p", handle);
  RETURN_IF(require_started());
  std::shared_ptr<Context> context = contexts.find(handle);
  if (!context) return fail(RT_PARAM, "aclrtDestroyContext: no such context, or destroyed before");
  if (context->primary) return fail(RT_PARAM, "aclrtDestroyContext: the default context goes with aclrtResetDevice");
  wait_for(context->default_stream, -1, "aclrtDestroyContext");
  contexts.take(handle);
  return OK;
}

API aclError aclrtSetCurrentContext(aclrtContext handle) {
  CALLED("aclrtSetCurrentContext %p", handle);
  RETURN_IF(require_started());
  if (!contexts.find(handle)) return fail(RT_PARAM, "aclrtSetCurrentContext: no such context, or destroyed before");
  current = handle;
  return OK;
}

API aclError aclrtGetCurrentContext(aclrtContext* context) {
  CALLED("aclrtGetCurrentContext");
  if (!context) return fail(INVALID_PARAM, "aclrtGetCurrentContext: null");
  if (!contexts.find(current)) return fail(RT_NO_CONTEXT, "aclrtGetCurrentContext: this thread has none");
  *context = current;
  return OK;
}
