// Streams: a thread each, tasks in order, a seeded delay before each, so that who forgets to synchronise reads what was there before.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "simulator.h"

namespace sim {

typedef std::chrono::steady_clock Clock;

struct Stream {
  const void* context = nullptr;
  int device = 0;
  uint64_t number = 0;  // of the stream in this process: seeds its delays
  bool is_default = false;
  std::mutex mutex;  // for what follows
  std::condition_variable changed;
  std::deque<Task> tasks;
  uint64_t put = 0, done = 0;
  pid_t thread_in = 0;  // the process its thread runs in; 0: none yet
  bool stopping = false;
  aclError error = OK;  // of the first task that failed since somebody synchronised
  std::string text;
};

struct Event {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t recorded = 0, done = 0;  // how often it was asked to be recorded, and which of them was reached last
  Clock::time_point time;
};

struct Recording {  // counts as reached when its stream drops it, or who waits for it would wait for ever
  std::shared_ptr<Event> event;
  uint64_t generation = 0;
  void reached() {
    std::lock_guard<std::mutex> lock(event->mutex);
    if (event->done >= generation) return;
    event->done = generation;
    event->time = Clock::now();
    event->changed.notify_all();
  }
  ~Recording() { reached(); }
};

namespace {

constexpr int64_t STOP_MS = 10000;  // for tasks of a stream that ends; one that waits for the client may never end
constexpr size_t MOST_STREAMS = 1024;  // per process; what a device allows differs and is asked for by aclrtGetStreamAvailableNum

Handles<Stream>& streams = *new Handles<Stream>(STREAM);
Handles<Event>& events = *new Handles<Event>(EVENT);

void delay(const Stream& stream, uint64_t nth) {
  uint64_t mean = settings().delay_us;
  if (!mean) return;
  uint64_t x = settings().seed * 0x9E3779B97F4A7C15u + stream.number * 0xBF58476D1CE4E5B9u + nth * 0x94D049BB133111EBu + 1;  // splitmix64
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  uint64_t wait = (x ^ (x >> 31)) % (2 * mean + 1);
  trace("  stream %lu, task %lu: delayed by %lu us", (unsigned long)stream.number, (unsigned long)nth, (unsigned long)wait);
  std::this_thread::sleep_for(std::chrono::microseconds(wait));
}

void work(std::shared_ptr<Stream> stream) {
  std::unique_lock<std::mutex> lock(stream->mutex);
  for (;;) {
    stream->changed.wait(lock, [&] { return stream->stopping || !stream->tasks.empty(); });
    if (stream->tasks.empty()) return;
    Task task = std::move(stream->tasks.front());
    stream->tasks.pop_front();
    uint64_t nth = stream->done;
    lock.unlock();
    delay(*stream, nth);
    aclError error = is_lost(stream->device) ? fail(RT_LOST, "the device was lost while tasks were waiting") : task();
    std::string text = take_error();
    task = nullptr;  // what it holds goes before anybody is told that it is done
    lock.lock();
    if (error && !stream->error) {
      stream->error = error;
      stream->text = text;
    }
    ++stream->done;
    stream->changed.notify_all();
  }
}

template <class Condition>
bool wait_until(std::unique_lock<std::mutex>& lock, std::condition_variable& changed, int64_t timeout_ms, Condition condition) {
  if (timeout_ms >= 0) return changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), condition);
  changed.wait(lock, condition);
  return true;
}

void drop_tasks(Stream& stream) {
  std::deque<Task> dropped;  // destroyed after the lock is given back: a task may hold an event
  std::lock_guard<std::mutex> lock(stream.mutex);
  dropped.swap(stream.tasks);
  stream.done += dropped.size();
  stream.changed.notify_all();
}

void stop(const std::shared_ptr<Stream>& stream) {
  std::unique_lock<std::mutex> lock(stream->mutex);
  stream->stopping = true;
  stream->changed.notify_all();
  auto finished = [&] { return stream->done >= stream->put; };
  if (stream->thread_in == getpid()) wait_until(lock, stream->changed, STOP_MS, finished);
}

aclError find_event(aclrtEvent handle, std::shared_ptr<Event>& found, const char* who) {
  RETURN_IF(require_started());
  found = events.find(handle);
  return found ? OK : fail(RT_PARAM, std::string(who) + ": no such event, or destroyed before");
}

uint64_t recorded(Event& event) {
  std::lock_guard<std::mutex> lock(event.mutex);
  return event.recorded;
}

aclError wait_for_event(Event& event, uint64_t generation, int64_t timeout_ms, aclError late) {
  std::unique_lock<std::mutex> lock(event.mutex);
  bool came = wait_until(lock, event.changed, timeout_ms, [&] { return event.done >= generation; });
  return came ? OK : fail(late, "an event was not reached in " + std::to_string(timeout_ms) + " ms");
}

}  // namespace

std::shared_ptr<Stream> new_stream(const Context& context) {
  static std::atomic<uint64_t> made{0};
  auto stream = std::make_shared<Stream>();
  stream->context = context.handle;
  stream->device = context.device;
  stream->number = made++;
  return stream;
}

aclError find_stream(aclrtStream handle, std::shared_ptr<Stream>& found) {
  std::shared_ptr<Context> context;
  RETURN_IF(current_context(context));
  found = handle ? streams.find(handle) : context->default_stream;
  if (!found) return fail(RT_PARAM, "no such stream, or destroyed before");
  if (found->context != context->handle) return fail(RT_STREAM_CONTEXT, "the stream is not of this thread's context");
  return OK;
}

aclError enqueue(const std::shared_ptr<Stream>& stream, Task task) {
  std::lock_guard<std::mutex> lock(stream->mutex);
  if (stream->stopping) return fail(RT_PARAM, "the stream is being destroyed");
  stream->tasks.push_back(std::move(task));
  ++stream->put;
  if (stream->thread_in != getpid()) {  // none yet, or it stayed in the process this one was forked from
    stream->thread_in = getpid();
    std::thread(work, stream).detach();
  }
  stream->changed.notify_all();
  return OK;
}

aclError wait_for(const std::shared_ptr<Stream>& stream, int64_t timeout_ms, const char* who) {
  GilReleased released;
  std::unique_lock<std::mutex> lock(stream->mutex);
  uint64_t all = stream->put;
  if (!wait_until(lock, stream->changed, timeout_ms, [&] { return stream->done >= all; }))
    return fail(RT_STREAM_TIMEOUT, std::string(who) + ": the stream was not done in " + std::to_string(timeout_ms) + " ms");
  aclError error = stream->error;
  std::string text = stream->text;
  stream->error = OK;
  lock.unlock();
  return error ? fail(error, text) : OK;
}

aclError wait_for_device(int device, int64_t timeout_ms) {
  auto list = streams.all();
  for (auto& context : contexts.all()) list.push_back(context->default_stream);
  aclError first = OK;
  std::string text;
  for (auto& stream : list) {
    if (device >= 0 && stream->device != device) continue;
    aclError error = wait_for(stream, timeout_ms, "aclrtSynchronizeDevice");
    if (error && !first) {
      first = error;
      text = take_error();
    }
  }
  return first ? fail(first, text) : OK;
}

void stop_streams() {
  GilReleased released;
  for (auto& stream : streams.all()) stop(stream);
  for (auto& context : contexts.all()) stop(context->default_stream);
}

void forget_streams_of(const void* context) {
  for (auto& entry : streams.handles())
    if (entry.second->context == context) {
      stop(entry.second);
      streams.take(entry.first);
    }
}

void stream_leaks() {
  count_leak("stream", streams.all().size(), 0);
  count_leak("event", events.all().size(), 0);
  auto made = contexts.all();
  count_leak("context", size_t(std::count_if(made.begin(), made.end(), [](auto& c) { return !c->primary; })), 0);
}

}  // namespace sim

using namespace sim;

// ---- streams ----------------------------------------------------------------------------------------------------------
API aclError aclrtCreateStream(aclrtStream* handle) {
  CALLED("aclrtCreateStream");
  if (!handle) return fail(RT_PARAM, "aclrtCreateStream: null");
  std::shared_ptr<Context> context;
  RETURN_IF(current_context(context));
  if (streams.all().size() >= MOST_STREAMS) return fail(RT_NO_STREAM, "aclrtCreateStream: no stream is left");
  *handle = streams.add(new_stream(*context));
  return OK;
}

API aclError aclrtCreateStreamWithConfig(aclrtStream* handle, uint32_t, uint32_t) { return aclrtCreateStream(handle); }

static aclError destroy(aclrtStream handle, bool force) {
  RETURN_IF(require_started());
  std::shared_ptr<Stream> stream = streams.take(handle);
  if (!stream) return fail(RT_PARAM, "aclrtDestroyStream: no such stream, or destroyed before");
  GilReleased released;
  if (force) drop_tasks(*stream);
  stop(stream);
  return OK;
}

API aclError aclrtDestroyStream(aclrtStream handle) {
  CALLED("aclrtDestroyStream %p", handle);
  return destroy(handle, false);
}

API aclError aclrtDestroyStreamForce(aclrtStream handle) {
  CALLED("aclrtDestroyStreamForce %p", handle);
  return destroy(handle, true);
}

API aclError aclrtSynchronizeStreamWithTimeout(aclrtStream handle, int32_t timeout_ms) {
  CALLED("aclrtSynchronizeStream %p", handle);
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_stream(handle, stream));
  return wait_for(stream, timeout_ms, "aclrtSynchronizeStream");
}

API aclError aclrtSynchronizeStream(aclrtStream handle) { return aclrtSynchronizeStreamWithTimeout(handle, -1); }

API aclError aclrtStreamQuery(aclrtStream handle, int* status) {
  CALLED("aclrtStreamQuery %p", handle);
  if (!status) return fail(RT_PARAM, "aclrtStreamQuery: null");
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_stream(handle, stream));
  std::lock_guard<std::mutex> lock(stream->mutex);
  *status = stream->done >= stream->put ? 0 : 1;  // ACL_STREAM_STATUS_COMPLETE, _NOT_READY
  return OK;
}

API aclError aclrtStreamAbort(aclrtStream handle) {
  CALLED("aclrtStreamAbort %p", handle);
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_stream(handle, stream));
  drop_tasks(*stream);
  return OK;
}

API aclError aclrtCtxGetCurrentDefaultStream(aclrtStream* handle) {
  CALLED("aclrtCtxGetCurrentDefaultStream");
  if (!handle) return fail(RT_PARAM, "aclrtCtxGetCurrentDefaultStream: null");
  std::shared_ptr<Context> context;
  RETURN_IF(current_context(context));
  *handle = nullptr;  // null stands for the default stream everywhere
  return OK;
}

API aclError aclrtGetStreamAvailableNum(uint32_t* count) {
  CALLED("aclrtGetStreamAvailableNum");
  if (!count) return fail(RT_PARAM, "aclrtGetStreamAvailableNum: null");
  *count = uint32_t(MOST_STREAMS - std::min(MOST_STREAMS, streams.all().size()));
  return OK;
}

API aclError aclrtStreamGetId(aclrtStream handle, int32_t* id) {
  CALLED("aclrtStreamGetId %p", handle);
  if (!id) return fail(RT_PARAM, "aclrtStreamGetId: null");
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_stream(handle, stream));
  *id = int32_t(stream->number);
  return OK;
}

API aclError aclrtGetStreamId(aclrtStream handle, int32_t* id) { return aclrtStreamGetId(handle, id); }

// ---- events -----------------------------------------------------------------------------------------------------------
API aclError aclrtCreateEvent(aclrtEvent* handle) {
  CALLED("aclrtCreateEvent");
  if (!handle) return fail(RT_PARAM, "aclrtCreateEvent: null");
  std::shared_ptr<Context> context;
  RETURN_IF(current_context(context));
  *handle = events.add(std::make_shared<Event>());
  return OK;
}

API aclError aclrtCreateEventWithFlag(aclrtEvent* handle, uint32_t) { return aclrtCreateEvent(handle); }
API aclError aclrtCreateEventExWithFlag(aclrtEvent* handle, uint32_t) { return aclrtCreateEvent(handle); }

API aclError aclrtDestroyEvent(aclrtEvent handle) {
  CALLED("aclrtDestroyEvent %p", handle);
  RETURN_IF(require_started());
  return events.take(handle) ? OK : fail(RT_PARAM, "aclrtDestroyEvent: no such event, or destroyed before");
}

API aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream on) {
  CALLED("aclrtRecordEvent %p stream %p", handle, on);
  std::shared_ptr<Event> event;
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_event(handle, event, "aclrtRecordEvent"));
  RETURN_IF(find_stream(on, stream));
  auto recording = std::make_shared<Recording>();
  recording->event = event;
  {
    std::lock_guard<std::mutex> lock(event->mutex);
    recording->generation = ++event->recorded;
  }
  return enqueue(stream, [recording] {
    recording->reached();
    return OK;
  });
}

API aclError aclrtResetEvent(aclrtEvent handle, aclrtStream on) {
  CALLED("aclrtResetEvent %p stream %p", handle, on);
  std::shared_ptr<Event> event;
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_event(handle, event, "aclrtResetEvent"));
  return find_stream(on, stream);  // every recording has a number of its own here: there is nothing to take back
}

API aclError aclrtStreamWaitEvent(aclrtStream on, aclrtEvent handle) {
  CALLED("aclrtStreamWaitEvent %p stream %p", handle, on);
  std::shared_ptr<Event> event;
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_event(handle, event, "aclrtStreamWaitEvent"));
  RETURN_IF(find_stream(on, stream));
  uint64_t generation = recorded(*event);
  return enqueue(stream, [event, generation] { return wait_for_event(*event, generation, -1, OK); });
}

API aclError aclrtSynchronizeEventWithTimeout(aclrtEvent handle, int32_t timeout_ms) {
  CALLED("aclrtSynchronizeEvent %p", handle);
  std::shared_ptr<Event> event;
  RETURN_IF(find_event(handle, event, "aclrtSynchronizeEvent"));
  GilReleased released;
  uint64_t generation = recorded(*event);
  return wait_for_event(*event, generation, timeout_ms, RT_EVENT_TIMEOUT);
}

API aclError aclrtSynchronizeEvent(aclrtEvent handle) { return aclrtSynchronizeEventWithTimeout(handle, -1); }

API aclError aclrtQueryEventStatus(aclrtEvent handle, int* status) {
  CALLED("aclrtQueryEventStatus %p", handle);
  std::shared_ptr<Event> event;
  RETURN_IF(find_event(handle, event, "aclrtQueryEventStatus"));
  if (!status) return fail(RT_PARAM, "aclrtQueryEventStatus: null");
  std::lock_guard<std::mutex> lock(event->mutex);
  *status = event->done >= event->recorded ? 1 : 0;  // ACL_EVENT_RECORDED_STATUS_COMPLETE
  return OK;
}

API aclError aclrtQueryEventWaitStatus(aclrtEvent handle, int* status) { return aclrtQueryEventStatus(handle, status); }

API aclError aclrtEventElapsedTime(float* ms, aclrtEvent first, aclrtEvent second) {
  CALLED("aclrtEventElapsedTime");
  std::shared_ptr<Event> from, to;
  RETURN_IF(find_event(first, from, "aclrtEventElapsedTime"));
  RETURN_IF(find_event(second, to, "aclrtEventElapsedTime"));
  if (!ms) return fail(RT_PARAM, "aclrtEventElapsedTime: null");
  Clock::time_point times[2];
  int i = 0;
  for (auto& event : {from, to}) {
    std::lock_guard<std::mutex> lock(event->mutex);
    if (event->recorded == 0 || event->done < event->recorded)
      return guess(RT_PARAM, "aclrtEventElapsedTime: an event was not recorded, or not reached yet");
    times[i++] = event->time;
  }
  *ms = std::chrono::duration<float, std::milli>(times[1] - times[0]).count();
  return OK;
}
