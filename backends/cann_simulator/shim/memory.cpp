// Device memory. Its addresses lie in a window that nobody may touch, so that host code which follows one faults as on a device;
// the simulator reads and writes through a second mapping. A window is four times the board, so that freed addresses stay dead longer.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "simulator.h"

namespace sim {
namespace {

constexpr size_t GRAIN = 512;                  // of addresses; the documents promise 64
constexpr size_t POISONED = size_t(64) << 20;  // most bytes of an allocation that are poisoned: more would take the host's own memory
constexpr int POISON = 0xFF;                   // NaN in every float format, -1 in integers

size_t reserved(size_t nbytes) { return (nbytes + 32 + GRAIN - 1) / GRAIN * GRAIN; }

class Heap {
 public:
  aclError allocate(size_t nbytes, bool poisoned, void** address) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!window_ && !map()) return fail(HOST_MEMORY, "the host cannot map the window of a simulated device");
    size_t room = settings().memory_bytes - used_;
    if (nbytes > settings().memory_bytes || reserved(nbytes) > room)
      return fail(RT_MEMORY, "device memory allocation failed: " + std::to_string(nbytes) + " bytes asked for, " + std::to_string(room) + " of " +
                                 std::to_string(settings().memory_bytes) + " are free");
    size_t offset = place(reserved(nbytes));
    if (offset == size_t(-1)) return fail(RT_MEMORY, "device memory is in pieces: no room for " + std::to_string(nbytes) + " bytes in one");
    live_[offset] = nbytes;
    used_ += reserved(nbytes);
    peak_ = std::max(peak_, used_);
    if (poisoned) memset(alias_ + offset, POISON, std::min(nbytes, POISONED));
    *address = window_ + offset;
    return OK;
  }

  bool release(void* address) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto at = live_.find(static_cast<char*>(address) - window_);
    if (at == live_.end()) return false;
    used_ -= reserved(at->second);
    madvise(alias_ + at->first, reserved(at->second), MADV_DONTNEED);
    live_.erase(at);
    return true;
  }

  bool holds(const void* p) const { return window_ && p >= window_ && p < window_ + span_; }

  // Bounds are those that were asked for: the 32 bytes that CANN adds are nobody's to use.
  char* view(const void* p, size_t nbytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    size_t offset = static_cast<const char*>(p) - window_;
    auto at = live_.upper_bound(offset);
    if (at == live_.begin()) return nullptr;
    --at;
    size_t inside = offset - at->first;
    return inside <= at->second && nbytes <= at->second - inside ? alias_ + offset : nullptr;
  }

  void count(size_t* allocations, size_t* nbytes, size_t* used, size_t* peak) {
    std::lock_guard<std::mutex> lock(mutex_);
    *allocations = live_.size();
    *nbytes = 0;
    for (auto& entry : live_) *nbytes += entry.second;
    *used = used_;
    *peak = peak_;
  }

 private:
  bool map() {
    span_ = std::max<size_t>(settings().memory_bytes * 4, size_t(1) << 30) / GRAIN * GRAIN;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* alias = mmap(nullptr, span_, PROT_READ | PROT_WRITE, flags, -1, 0);
    void* window = mmap(nullptr, span_, PROT_NONE, flags, -1, 0);
    if (alias == MAP_FAILED || window == MAP_FAILED) return false;
    alias_ = static_cast<char*>(alias);
    window_ = static_cast<char*>(window);
    return true;
  }

  // Next fit: from where the last one ended, then from the start.
  size_t place(size_t nbytes) {
    for (size_t from : {next_, size_t(0)}) {
      size_t offset = from;
      auto at = live_.lower_bound(from);
      if (at != live_.begin()) {
        auto before = std::prev(at);
        offset = std::max(offset, before->first + reserved(before->second));
      }
      for (; at != live_.end() && at->first - offset < nbytes; ++at) offset = at->first + reserved(at->second);
      if (span_ - offset >= nbytes) {
        next_ = offset + nbytes;
        return offset;
      }
    }
    return size_t(-1);
  }

  std::mutex mutex_;
  char *window_ = nullptr, *alias_ = nullptr;
  size_t span_ = 0, used_ = 0, peak_ = 0, next_ = 0;
  std::map<size_t, size_t> live_;  // offset -> bytes asked for
};

Heap& heap(int device) {
  static std::mutex making;
  static std::map<int, Heap*>* heaps = new std::map<int, Heap*>;  // never destroyed: clients free from their destructors
  std::lock_guard<std::mutex> lock(making);
  Heap*& entry = (*heaps)[device];
  if (!entry) entry = new Heap;
  return *entry;
}

std::atomic<uint64_t> allocations{0};
std::mutex pinning;
std::map<uintptr_t, size_t>& pinned = *new std::map<uintptr_t, size_t>;  // of aclrtMallocHost: address -> bytes

}  // namespace

aclError allocate(int device, size_t nbytes, bool poisoned, void** address) {
  uint64_t nth = ++allocations;
  if (strikes(OUT_OF_MEMORY, nth))
    return fail(RT_MEMORY, "device memory allocation failed: a fault that was asked for, at allocation " + std::to_string(nth));
  return heap(device).allocate(nbytes, poisoned, address);
}

bool on_a_device(const void* p, int* device) {
  for (uint32_t i = 0; i < settings().devices; ++i)
    if (heap(int(i)).holds(p)) {
      if (device) *device = int(i);
      return true;
    }
  return false;
}

aclError release(void* address) {
  int device;
  if (!on_a_device(address, &device)) return fail(RT_PARAM, "aclrtFree: not an address of device memory");
  if (!heap(device).release(address)) return fail(RT_PARAM, "aclrtFree: no allocation begins there, or it was freed before");
  return OK;
}

char* view(const void* p, size_t nbytes) {
  int device;
  return on_a_device(p, &device) ? heap(device).view(p, nbytes) : nullptr;
}

bool is_pinned(const void* p, size_t nbytes) {
  std::lock_guard<std::mutex> lock(pinning);
  auto at = pinned.upper_bound(uintptr_t(p));
  if (at == pinned.begin()) return false;
  --at;
  return uintptr_t(p) + nbytes <= at->first + at->second;
}

void memory_leaks() {
  for (uint32_t i = 0; i < settings().devices; ++i) {
    size_t live, nbytes, used, peak;
    heap(int(i)).count(&live, &nbytes, &used, &peak);
    count_leak("device memory", live, nbytes);
  }
  std::lock_guard<std::mutex> lock(pinning);
  size_t nbytes = 0;
  for (auto& entry : pinned) nbytes += entry.second;
  count_leak("pinned host memory", pinned.size(), nbytes);
}

std::string memory_report() {
  std::string text;
  for (uint32_t i = 0; i < settings().devices; ++i) {
    size_t live, nbytes, used, peak;
    heap(int(i)).count(&live, &nbytes, &used, &peak);
    text += std::string(i ? ", " : "") + "{\"device\": " + std::to_string(i) + ", \"live_bytes\": " + std::to_string(nbytes) +
            ", \"peak_bytes\": " + std::to_string(peak) + "}";
  }
  return text;
}

}  // namespace sim

using namespace sim;

API aclError aclrtMalloc(void** address, size_t nbytes, int) {
  CALLED("aclrtMalloc %zu", nbytes);
  std::shared_ptr<Context> context;
  if (!address || nbytes == 0) return fail(RT_PARAM, "aclrtMalloc: null address or a size of 0");
  RETURN_IF(current_context(context));
  return allocate(context->device, nbytes, true, address);
}

API aclError aclrtMallocAlign32(void** address, size_t nbytes, int policy) { return aclrtMalloc(address, nbytes, policy); }
API aclError aclrtMallocCached(void** address, size_t nbytes, int policy) { return aclrtMalloc(address, nbytes, policy); }

API aclError aclrtFree(void* address) {
  CALLED("aclrtFree %p", address);
  return release(address);
}

API aclError aclrtFreeWithDevSync(void* address) {
  CALLED("aclrtFreeWithDevSync %p", address);
  int device;
  if (on_a_device(address, &device)) RETURN_IF(wait_for_device(device, -1));
  return release(address);
}

API aclError aclrtMallocHost(void** address, size_t nbytes) {
  CALLED("aclrtMallocHost %zu", nbytes);
  std::shared_ptr<Context> context;
  if (!address || nbytes == 0) return fail(RT_PARAM, "aclrtMallocHost: null address or a size of 0");
  RETURN_IF(current_context(context));
  if (nbytes > PTRDIFF_MAX / 2 || posix_memalign(address, 64, nbytes)) return guess(RT_MEMORY, "aclrtMallocHost: the host has no memory");
  std::lock_guard<std::mutex> lock(pinning);
  pinned[uintptr_t(*address)] = nbytes;
  return OK;
}

API aclError aclrtFreeHost(void* address) {
  CALLED("aclrtFreeHost %p", address);
  {
    std::lock_guard<std::mutex> lock(pinning);
    if (!pinned.erase(uintptr_t(address))) return fail(RT_PARAM, "aclrtFreeHost: not from aclrtMallocHost, or freed before");
  }
  free(address);
  return OK;
}

API aclError aclrtGetMemInfo(int, size_t* left, size_t* total) {
  CALLED("aclrtGetMemInfo");
  std::shared_ptr<Context> context;
  if (!left || !total) return fail(RT_PARAM, "aclrtGetMemInfo: null");
  RETURN_IF(current_context(context));
  size_t live, nbytes, used, peak;
  heap(context->device).count(&live, &nbytes, &used, &peak);
  *total = settings().memory_bytes;
  *left = *total - used;
  return OK;
}

namespace {

enum class Side { HOST, DEVICE };

// Which side a copy's ends must be on: what `kind` says, held against where the pointers point.
aclError sides(const void* to, const void* from, int kind, Side* to_side, Side* from_side) {
  Side is_to = on_a_device(to) ? Side::DEVICE : Side::HOST, is_from = on_a_device(from) ? Side::DEVICE : Side::HOST;
  *to_side = is_to;
  *from_side = is_from;
  bool fits;
  switch (kind) {
    case HOST_TO_HOST: fits = is_to == Side::HOST && is_from == Side::HOST; break;
    case HOST_TO_DEVICE:
    case HOST_BUFFER_TO_DEVICE: fits = is_to == Side::DEVICE && is_from == Side::HOST; break;
    case DEVICE_TO_HOST: fits = is_to == Side::HOST && is_from == Side::DEVICE; break;
    case DEVICE_TO_DEVICE:
    case INNER_DEVICE:
    case INTER_DEVICE: fits = is_to == Side::DEVICE && is_from == Side::DEVICE; break;
    case COPY_DEFAULT: fits = true; break;
    default: return fail(RT_PARAM, "copy: no such kind: " + std::to_string(kind));
  }
  return fits ? OK : fail(RT_PARAM, "copy: kind " + std::to_string(kind) + " does not fit where the pointers point");
}

aclError at(const void* p, size_t nbytes, Side side, char** place) {
  if (side == Side::HOST) {
    *place = static_cast<char*>(const_cast<void*>(p));
    return is_handle(p) ? fail(RT_PARAM, "copy: a handle is no address") : OK;
  }
  *place = view(p, nbytes);
  return *place ? OK : fail(RT_PARAM, "copy: " + std::to_string(nbytes) + " bytes are not inside one live allocation of the device");
}

aclError copy_now(void* to, const void* from, size_t nbytes, Side to_side, Side from_side) {
  char *target, *source;
  RETURN_IF(at(to, nbytes, to_side, &target));
  RETURN_IF(at(from, nbytes, from_side, &source));
  memmove(target, source, nbytes);
  return OK;
}

aclError checked(void* to, size_t room, const void* from, size_t nbytes, int kind, Side* to_side, Side* from_side) {
  std::shared_ptr<Context> context;
  RETURN_IF(current_context(context));
  if (!to || !from || nbytes == 0) return fail(RT_PARAM, "copy: a null pointer or a size of 0");
  if (nbytes > room) return fail(RT_PARAM, "copy: " + std::to_string(nbytes) + " bytes into " + std::to_string(room));
  RETURN_IF(sides(to, from, kind, to_side, from_side));
  char* unused;
  RETURN_IF(at(to, nbytes, *to_side, &unused));
  return at(from, nbytes, *from_side, &unused);
}

}  // namespace

API aclError aclrtMemcpy(void* to, size_t room, const void* from, size_t nbytes, int kind) {
  CALLED("aclrtMemcpy %zu kind %d", nbytes, kind);
  Side to_side, from_side;
  RETURN_IF(checked(to, room, from, nbytes, kind, &to_side, &from_side));
  return copy_now(to, from, nbytes, to_side, from_side);
}

// Asynchronous with pinned host memory only; pageable memory is staged on the way in and waited for on the way out.
API aclError aclrtMemcpyAsync(void* to, size_t room, const void* from, size_t nbytes, int kind, aclrtStream handle) {
  CALLED("aclrtMemcpyAsync %zu kind %d stream %p", nbytes, kind, handle);
  Side to_side, from_side;
  RETURN_IF(checked(to, room, from, nbytes, kind, &to_side, &from_side));
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_stream(handle, stream));
  if (to_side == Side::HOST && from_side == Side::HOST) return fail(RT_NOT_SUPPORTED, "aclrtMemcpyAsync: not from host to host");
  if (from_side == Side::HOST && !is_pinned(from, nbytes)) {
    auto staged = std::make_shared<std::string>(static_cast<const char*>(from), nbytes);
    return enqueue(stream, [=] { return copy_now(to, staged->data(), nbytes, to_side, Side::HOST); });
  }
  const void* host = to_side == Side::HOST ? to : from_side == Side::HOST ? from : nullptr;
  bool waits = to_side == Side::HOST && !is_pinned(to, nbytes);
  RETURN_IF(enqueue(stream, [=] {
    if (host && !waits && !is_pinned(host, nbytes)) return guess(RT_PARAM, "aclrtMemcpyAsync: the pinned memory was freed before the copy ran");
    return copy_now(to, from, nbytes, to_side, from_side);
  }));
  return waits ? wait_for(stream, -1, "aclrtMemcpyAsync") : OK;
}

static aclError set_now(void* to, int32_t value, size_t nbytes) {
  char* place;
  RETURN_IF(at(to, nbytes, on_a_device(to) ? Side::DEVICE : Side::HOST, &place));
  memset(place, value, nbytes);
  return OK;
}

static aclError check_set(void* to, size_t room, size_t nbytes) {
  std::shared_ptr<Context> context;
  RETURN_IF(current_context(context));
  if (!to || nbytes == 0 || nbytes > room) return fail(RT_PARAM, "aclrtMemset: null, a size of 0, or more bytes than there is room for");
  char* unused;
  return at(to, nbytes, on_a_device(to) ? Side::DEVICE : Side::HOST, &unused);
}

API aclError aclrtMemset(void* to, size_t room, int32_t value, size_t nbytes) {
  CALLED("aclrtMemset %zu", nbytes);
  RETURN_IF(check_set(to, room, nbytes));
  return set_now(to, value, nbytes);
}

API aclError aclrtMemsetAsync(void* to, size_t room, int32_t value, size_t nbytes, aclrtStream handle) {
  CALLED("aclrtMemsetAsync %zu stream %p", nbytes, handle);
  RETURN_IF(check_set(to, room, nbytes));
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_stream(handle, stream));
  return enqueue(stream, [=] { return set_now(to, value, nbytes); });
}
