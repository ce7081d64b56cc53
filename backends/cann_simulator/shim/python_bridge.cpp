// The interpreter of the process: found by dlsym, never linked, since the same library serves any Python and plain programs.
#include <dlfcn.h>

#include <atomic>

#include "simulator.h"

namespace sim {
namespace {

std::atomic<const Logic*> installed{nullptr};
std::mutex starting;

template <class F>
F symbol(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
}

std::string own_path() {
  Dl_info info;
  return dladdr(reinterpret_cast<void*>(&symbol<void*>), &info) ? info.dli_fname : "";
}

bool running() {
  auto initialised = symbol<int (*)()>("Py_IsInitialized");
  return initialised && initialised();
}

}  // namespace

const Logic* logic() { return installed; }

aclError start_python() {
  if (installed) return OK;
  if (!running()) return guess(INTERNAL, "the simulated CANN needs a Python interpreter in the process, and there is none");
  GilReleased released;  // a thread that starts it meanwhile needs the interpreter for that
  std::lock_guard<std::mutex> lock(starting);
  if (installed) return OK;
  int state = symbol<int (*)()>("PyGILState_Ensure")();
  std::string code = "__import__('porting.backends.cann_simulator.runtime', fromlist=['install']).install(" + quoted(own_path()) + ")";
  symbol<int (*)(const char*)>("PyRun_SimpleString")(code.c_str());  // prints a traceback where it fails
  symbol<void (*)(int)>("PyGILState_Release")(state);
  return installed ? OK : guess(INTERNAL, "the simulator's Python part did not start; stderr has its traceback");
}

GilReleased::GilReleased() : state_(nullptr) {
  static auto held = symbol<int (*)()>("PyGILState_Check");
  static auto release = symbol<void* (*)()>("PyEval_SaveThread");
  if (held && release && running() && held()) state_ = release();
}

GilReleased::~GilReleased() {
  static auto restore = symbol<void (*)(void*)>("PyEval_RestoreThread");
  if (state_) restore(state_);
}

}  // namespace sim

using sim::Reply;

// ---- what runtime.py calls ------------------------------------------------------------------------------------------
API void cannsim_install(const sim::Logic* logic) { sim::installed = logic; }

API void cannsim_set_machine(const char* soc, const char* cann, const char* report, const char* trace, uint32_t devices, uint64_t memory_bytes,
                             uint64_t seed, uint64_t delay_us, int saturates) {
  sim::Settings& settings = sim::settings();
  settings.soc = soc;
  settings.cann = cann;
  settings.report = report;
  settings.trace = trace;
  settings.devices = devices;
  settings.memory_bytes = memory_bytes;
  settings.seed = seed;
  settings.delay_us = delay_us;
  settings.saturates = saturates != 0;
}

API void cannsim_add_fault(int kind, uint64_t at) { sim::settings().faults.emplace(sim::FaultKind(kind), at); }

API void cannsim_shutdown() {  // at the interpreter's end: nothing may call into it afterwards
  sim::GilReleased released;
  sim::wait_for_device(-1, 10000);
  sim::installed = nullptr;
}

API void cannsim_reply_error(void* reply, const char* text) { static_cast<Reply*>(reply)->error = text; }

API void cannsim_reply_bytes(void* reply, const char* bytes, uint64_t nbytes) { static_cast<Reply*>(reply)->bytes.assign(bytes, nbytes); }

API void cannsim_reply_io(void* reply, int is_output, const char* name, int dtype, int rank, const int64_t* dims, uint64_t nbytes) {
  auto& list = is_output ? static_cast<Reply*>(reply)->outputs : static_cast<Reply*>(reply)->inputs;
  list.push_back({name, dtype, std::vector<int64_t>(dims, dims + rank), nbytes});
}

API void cannsim_reply_model(void* reply, const char* gear_kind, int gear_input, uint64_t weight_bytes, uint64_t work_bytes) {
  Reply& to = *static_cast<Reply*>(reply);
  to.gear_kind = gear_kind;
  to.gear_input = gear_input;
  to.weight_bytes = weight_bytes;
  to.work_bytes = work_bytes;
}

API void cannsim_reply_gear(void* reply, int rank, const int64_t* values) {
  static_cast<Reply*>(reply)->gears.push_back({std::vector<int64_t>(values, values + rank), {}, {}});
}

API void cannsim_reply_gear_dims(void* reply, int is_output, int rank, const int64_t* dims) {  // of the gear added last
  sim::Gear& gear = static_cast<Reply*>(reply)->gears.back();
  (is_output ? gear.outputs : gear.inputs).emplace_back(dims, dims + rank);
}

API int cannsim_reply_output(void* reply, int index, const sim::Tensor* tensor) {
  Reply& to = *static_cast<Reply*>(reply);
  return to.output ? to.output(index, *tensor) : OK;
}
