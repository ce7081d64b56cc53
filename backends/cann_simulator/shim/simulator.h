// What the parts of the simulator share. No lock is held while Python is called, and none of these calls back.
#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "acl.h"

#define CALLED(...) sim::trace(__VA_ARGS__)
#define RETURN_IF(expression)              \
  do {                                     \
    if (aclError failed_ = (expression)) return failed_; \
  } while (0)

namespace sim {

// ---- faults_and_report.cpp: what goes wrong, what is said of it, what is left over ---------------------------------
enum FaultKind { OUT_OF_MEMORY, DEVICE_LOST, TIMEOUT, EXECUTE_FAILED, LOAD_FAILED, DEVICE_BUSY };
struct Settings {
  std::string soc, cann, report, trace;
  uint32_t devices = 1;
  uint64_t memory_bytes = 0, seed = 0, delay_us = 0;
  bool saturates = false;
  std::multimap<FaultKind, uint64_t> faults;  // kind -> at which allocation, execution or load, from 1
};
Settings& settings();                               // of the machine; the defaults until the interpreter is up
aclError fail(aclError code, const std::string& text);   // remembers the text for this thread, returns the code
aclError guess(aclError code, const std::string& text);  // the same, where no document gives the code
std::string take_error();                           // the text of this thread's last failure
void trace(const char* format, ...) __attribute__((format(printf, 1, 2)));
bool strikes(FaultKind kind, uint64_t nth);         // whether a fault is due at the nth
uint64_t next_execution();                          // numbers the executions, from 1
uint64_t next_load();
uint64_t next_choice();  // of a device
void count_leak(const char* kind, size_t count, size_t bytes);
std::string report_text(bool finalised);

// ---- python_bridge.cpp: the interpreter of the process -------------------------------------------------------------
struct Tensor {  // mirrored in runtime.py
  const void* data;
  uint64_t nbytes;
  const int64_t* dims;
  int32_t rank, dtype;
};
struct Io {
  std::string name;
  int dtype;
  std::vector<int64_t> dims;
  uint64_t nbytes;
};
struct Gear {
  std::vector<int64_t> values;
  std::vector<std::vector<int64_t>> inputs, outputs;
};
struct Reply {  // what a call into Python brings back
  std::string error, bytes, gear_kind;
  std::vector<Io> inputs, outputs;
  std::vector<Gear> gears;
  int gear_input = -1;
  uint64_t weight_bytes = 0, work_bytes = 0;
  std::function<aclError(int index, const Tensor&)> output;  // takes one result, valid during the call only
  std::function<void(int index, const std::vector<int64_t>& dims)> dims;  // of an argument whose size the operator found out
};
struct OpArgument;  // opapi.h
struct Logic {  // mirrored in runtime.py; each returns an aclError
  int (*compile)(const void* onnx, uint64_t nbytes, const char* options, void* reply);
  int (*load)(const void* om, uint64_t nbytes, uint32_t id, void* reply);
  int (*describe)(const void* om, uint64_t nbytes, void* reply);
  int (*run)(uint32_t id, int32_t gear, int32_t count, const Tensor* inputs, void* reply);
  int (*unload)(uint32_t id);
  int (*single)(const char* type, const char* attributes, int32_t count, const Tensor* inputs, void* reply);
  int (*operate)(const char* name, int32_t count, const OpArgument* arguments, void* reply);
};
aclError start_python();        // INTERNAL where the process has no interpreter
const Logic* logic();           // null before start_python and after the interpreter ended
class GilReleased {             // for whoever waits: the thread that is waited for may need the interpreter
 public:
  GilReleased();
  ~GilReleased();
  GilReleased(const GilReleased&) = delete;

 private:
  void* state_;
};

// ---- handles: tokens that are never reused and never addresses, so that stale and foreign ones are found out -------
enum HandleKind { CONTEXT = 1, STREAM, EVENT, BUFFER, DATASET, TENSOR_DESC, MODEL_DESC, OP_ATTR, CONFIG, EXEC_CONFIG, OP_TENSOR, OP_SCALAR, OP_LIST, OP_EXECUTOR };
// Tables of them, like all that has a destructor and is shared, are never destroyed: clients call from their own destructors.
inline bool is_handle(const void* p) { return (uintptr_t(p) >> 56) == 0x40; }  // no canonical address begins so
template <class T>
class Handles {
 public:
  explicit Handles(HandleKind kind) : next_((uint64_t(0x40) << 56) | (uint64_t(kind) << 48)) {}
  void* add(std::shared_ptr<T> thing) {
    std::lock_guard<std::mutex> lock(mutex_);
    next_ += 64;
    things_[next_] = std::move(thing);
    return reinterpret_cast<void*>(next_);
  }
  std::shared_ptr<T> find(const void* handle) const {
    std::lock_guard<std::mutex> lock(mutex_);
    auto at = things_.find(uintptr_t(handle));
    return at == things_.end() ? nullptr : at->second;
  }
  std::shared_ptr<T> take(const void* handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto at = things_.find(uintptr_t(handle));
    if (at == things_.end()) return nullptr;
    std::shared_ptr<T> thing = std::move(at->second);
    things_.erase(at);
    return thing;
  }
  std::vector<std::shared_ptr<T>> all() const {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::shared_ptr<T>> list;
    for (auto& entry : things_) list.push_back(entry.second);
    return list;
  }
  std::vector<std::pair<void*, std::shared_ptr<T>>> handles() const {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::pair<void*, std::shared_ptr<T>>> list;
    for (auto& entry : things_) list.emplace_back(reinterpret_cast<void*>(entry.first), entry.second);
    return list;
  }
  void clear() {
    std::map<uintptr_t, std::shared_ptr<T>> gone;  // destroyed after the lock is given back
    std::lock_guard<std::mutex> lock(mutex_);
    gone.swap(things_);
  }

 private:
  mutable std::mutex mutex_;
  std::map<uintptr_t, std::shared_ptr<T>> things_;
  uint64_t next_;
};

// ---- devices_and_contexts.cpp --------------------------------------------------------------------------------------
struct Stream;
struct Context {
  int device = 0;
  bool primary = false;  // made by aclrtSetDevice
  void* handle = nullptr;
  std::shared_ptr<Stream> default_stream;
};
extern Handles<Context>& contexts;
aclError require_started();                                 // UNINITIALISED before aclInit and after aclFinalize
aclError current_context(std::shared_ptr<Context>& found);  // RT_NO_CONTEXT, RT_LOST
void* thread_context();                                     // the handle, whether it still stands or not
bool is_lost(int device);
void lose(int device);

// ---- memory.cpp ----------------------------------------------------------------------------------------------------
aclError allocate(int device, size_t nbytes, bool poisoned, void** address);
aclError release(void* address);
bool on_a_device(const void* p, int* device = nullptr);
char* view(const void* p, size_t nbytes);  // where [p, p + nbytes) can be read and written, or null: not in one live allocation
bool is_pinned(const void* p, size_t nbytes);
void memory_leaks();
void drop_memory();
std::string memory_report();

// ---- streams_and_events.cpp ----------------------------------------------------------------------------------------
typedef std::function<aclError()> Task;
aclError find_stream(aclrtStream handle, std::shared_ptr<Stream>& found);  // null: the default stream of the context
aclError enqueue(const std::shared_ptr<Stream>& stream, Task task);
aclError wait_for(const std::shared_ptr<Stream>& stream, int64_t timeout_ms, const char* who);  // < 0: forever
aclError wait_for_device(int device, int64_t timeout_ms);  // all its streams; < 0 devices: all
std::shared_ptr<Stream> new_stream(const Context& context);
void stop_streams();
void forget_streams_of(const void* context);
void stream_leaks();

// ---- datasets_and_descriptions.cpp ---------------------------------------------------------------------------------
struct TensorDesc {
  int dtype = 0, format = FORMAT_ND;
  std::vector<int64_t> dims;
  std::string name, constant;  // constant: bytes set by aclSetTensorConst
  bool is_constant = false;
};
struct Buffer {
  void* data = nullptr;
  size_t nbytes = 0;
};
struct Dataset {
  struct Item {
    const void* buffer;  // handle
    void* desc;          // handle of a description the dataset owns, or null
  };
  std::mutex mutex;  // a run that ends sets the descriptions of outputs
  std::vector<Item> items;
};
struct Model;
struct ModelDesc {
  std::shared_ptr<Model> model;
};
extern Handles<ModelDesc>& model_descs;
extern Handles<TensorDesc>& tensor_descs;
extern Handles<Buffer>& buffers;
extern Handles<Dataset>& datasets;
size_t size_of(int dtype);                                          // bytes of one element, 0 where unknown
bool bytes_of(int dtype, const std::vector<int64_t>& dims, uint64_t* nbytes);  // false: a dim is unknown, or too many bytes
std::string shown(const std::vector<int64_t>& dims);
void description_leaks();

// ---- models.cpp, gears.cpp -----------------------------------------------------------------------------------------
struct Model {
  uint32_t id = 0;
  const void* context = nullptr;
  int device = 0;
  std::vector<Io> inputs, outputs;
  std::vector<Gear> gears;
  std::string gear_kind;
  int gear_input = -1;
  int largest_gear = -1;
  std::vector<void*> memory;          // its weights and its work memory on the device, where the client gave none
  std::mutex mutex;                   // for what follows
  int set_gear = -1;                  // last set by the client
  int in_flight = 0;
  const void* runner = nullptr;       // the stream or thread of the executions in flight
};
std::shared_ptr<Model> find_model(uint32_t id);
int gear_in_buffer(const Model& model, const char* data);  // that which the run takes: -1 for a model without gears
aclError describe(const char* path, Model& model, uint64_t* work_bytes, uint64_t* weight_bytes);  // of an .om, without loading it
void take_description(Model& model, Reply& reply);
class FileView {  // a file's bytes, mapped: an .om is as large as its weights
 public:
  explicit FileView(const char* path);
  ~FileView();
  FileView(const FileView&) = delete;
  bool readable = false;
  const char* data = "";
  size_t nbytes = 0;
};
void model_leaks();
void operator_leaks();
void operand_leaks();
void executor_leaks();
aclError due_fault(int device, const char* doing);  // numbers an execution, and answers with the fault that was asked for there
std::string quoted(const std::string& text);  // as JSON

}  // namespace sim
