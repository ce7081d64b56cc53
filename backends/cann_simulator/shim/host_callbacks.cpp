// Functions of the host that wait their turn in a stream: in the stream's own thread, or in one that the client subscribed.
#include <pthread.h>

#include <chrono>

#include "simulator.h"

namespace sim {
namespace {

struct Mailbox {  // of one subscribed thread
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> calls;
};

std::mutex subscribing;
typedef std::map<uint64_t, std::shared_ptr<Mailbox>> ByThread;
typedef std::map<const void*, std::pair<uint64_t, std::shared_ptr<Mailbox>>> ByStream;
ByThread& mailboxes = *new ByThread;
ByStream& subscribers = *new ByStream;

}  // namespace
}  // namespace sim

using namespace sim;

API aclError aclrtSubscribeReport(uint64_t thread, aclrtStream handle) {
  CALLED("aclrtSubscribeReport stream %p", handle);
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_stream(handle, stream));
  std::lock_guard<std::mutex> lock(subscribing);
  auto& mailbox = mailboxes[thread];
  if (!mailbox) mailbox = std::make_shared<Mailbox>();
  subscribers[stream.get()] = {thread, mailbox};
  return OK;
}

API aclError aclrtUnSubscribeReport(uint64_t thread, aclrtStream handle) {
  CALLED("aclrtUnSubscribeReport stream %p", handle);
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_stream(handle, stream));
  std::lock_guard<std::mutex> lock(subscribing);
  auto at = subscribers.find(stream.get());
  if (at == subscribers.end() || at->second.first != thread) return fail(RT_NOT_SUBSCRIBED_STREAM, "aclrtUnSubscribeReport: not subscribed");
  subscribers.erase(at);
  return OK;
}

API aclError aclrtProcessReport(int32_t timeout_ms) {
  CALLED("aclrtProcessReport");
  RETURN_IF(require_started());
  std::shared_ptr<Mailbox> mailbox;
  {
    std::lock_guard<std::mutex> lock(subscribing);
    auto at = mailboxes.find(uint64_t(pthread_self()));
    if (at == mailboxes.end()) return fail(RT_NOT_SUBSCRIBED_THREAD, "aclrtProcessReport: this thread is subscribed to no stream");
    mailbox = at->second;
  }
  GilReleased released;
  std::function<void()> call;
  {
    std::unique_lock<std::mutex> lock(mailbox->mutex);
    auto ready = [&] { return !mailbox->calls.empty(); };
    if (timeout_ms < 0)
      mailbox->changed.wait(lock, ready);
    else if (!mailbox->changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), ready))
      return fail(RT_REPORT_TIMEOUT, "aclrtProcessReport: nothing came in " + std::to_string(timeout_ms) + " ms");
    call = std::move(mailbox->calls.front());
    mailbox->calls.pop_front();
  }
  call();
  return OK;
}

API aclError aclrtLaunchCallback(aclrtCallback function, void* argument, int blocks, aclrtStream handle) {
  CALLED("aclrtLaunchCallback stream %p", handle);
  if (!function) return fail(RT_PARAM, "aclrtLaunchCallback: null");
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_stream(handle, stream));
  std::shared_ptr<Mailbox> mailbox;
  {
    std::lock_guard<std::mutex> lock(subscribing);
    auto at = subscribers.find(stream.get());
    if (at == subscribers.end()) return fail(RT_NOT_SUBSCRIBED_STREAM, "aclrtLaunchCallback: no thread is subscribed to the stream");
    mailbox = at->second.second;
  }
  return enqueue(stream, [=] {
    auto done = std::make_shared<bool>(false);
    std::unique_lock<std::mutex> lock(mailbox->mutex);
    mailbox->calls.push_back([=] {
      function(argument);
      std::lock_guard<std::mutex> again(mailbox->mutex);
      *done = true;
      mailbox->changed.notify_all();
    });
    mailbox->changed.notify_all();
    if (blocks) mailbox->changed.wait(lock, [&] { return *done; });
    return OK;
  });
}

API aclError aclrtLaunchHostFunc(aclrtStream handle, aclrtCallback function, void* argument) {
  CALLED("aclrtLaunchHostFunc stream %p", handle);
  if (!function) return fail(RT_PARAM, "aclrtLaunchHostFunc: null");
  std::shared_ptr<Stream> stream;
  RETURN_IF(find_stream(handle, stream));
  return enqueue(stream, [=] {
    function(argument);
    return OK;
  });
}
