// What goes wrong on demand, what is said of a failure, and what is left over when the client is done.
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "simulator.h"

namespace sim {
namespace {

// the variable of CANN's documents, and the one that it replaces
bool logs_to_stdout() {
  static const bool wanted = [] {
    for (const char* name : {"ASCEND_LOG_PRINT_TO_STDOUT", "ASCEND_SLOG_PRINT_TO_STDOUT"}) {
      const char* value = getenv(name);
      if (value && strcmp(value, "1") == 0) return true;
    }
    return false;
  }();
  return wanted;
}

thread_local bool over = false;  // this thread is ending: its texts are gone, and destructors of others may still call
struct Texts {
  std::string last, handed_out;  // handed_out: what the pointer given to the client stands on
  ~Texts() { over = true; }
};
thread_local Texts texts;
std::atomic<uint64_t> executions{0}, loads{0}, choices{0};

struct Leak {
  std::string kind;
  size_t count, bytes;
};
std::vector<Leak>* collecting = nullptr;  // guarded by `reporting`
std::mutex reporting;

}  // namespace

Settings& settings() {
  static Settings* machine = new Settings;  // lives as long as the process: clients call from their destructors
  return *machine;
}

aclError fail(aclError code, const std::string& text) {
  if (!over) texts.last = text;
  if (logs_to_stdout()) {
    printf("[ERROR] CANN(simulated): %s\n", text.c_str());
    fflush(stdout);
  }
  trace("  answered %d: %s", code, text.c_str());
  return code;
}

aclError guess(aclError code, const std::string& text) { return fail(code, text + " (no document gives the code: " + std::to_string(code) + " is a guess)"); }

std::string take_error() {
  std::string text;
  if (!over) text.swap(texts.last);
  return text;
}

void trace(const char* format, ...) {
  const std::string& path = settings().trace;
  if (path.empty()) return;
  static std::mutex writing;
  static FILE* file = nullptr;
  std::lock_guard<std::mutex> lock(writing);
  if (!file) file = path == "-" ? stderr : fopen(path.c_str(), "a");
  if (!file) return;
  va_list arguments;
  va_start(arguments, format);
  vfprintf(file, format, arguments);
  va_end(arguments);
  fputc('\n', file);
  fflush(file);
}

bool strikes(FaultKind kind, uint64_t nth) {
  auto range = settings().faults.equal_range(kind);
  for (auto at = range.first; at != range.second; ++at)
    if (at->second == nth) return true;
  return false;
}

uint64_t next_execution() { return ++executions; }
uint64_t next_load() { return ++loads; }
uint64_t next_choice() { return ++choices; }

aclError due_fault(int device, const char* doing) {
  uint64_t nth = next_execution();
  std::string running = std::string("running ") + doing, at = ": a fault that was asked for, at execution " + std::to_string(nth);
  if (strikes(DEVICE_LOST, nth)) {
    lose(device);
    return fail(RT_LOST, "the device was lost" + at);
  }
  if (strikes(TIMEOUT, nth)) return fail(RT_REPORT_TIMEOUT, running + " took too long" + at);
  return strikes(EXECUTE_FAILED, nth) ? fail(RT_EXECUTE, running + " failed" + at) : OK;
}

void count_leak(const char* kind, size_t count, size_t bytes) {
  if (count) collecting->push_back({kind, count, bytes});
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    char escape[8];
    if (c == '"' || c == '\\') {
      out += '\\';
      out += char(c);
    } else if (c < 0x20) {
      snprintf(escape, sizeof escape, "\\u%04x", c);
      out += escape;
    } else {
      out += char(c);
    }
  }
  return out + "\"";
}

std::string report_text(bool finalised) {
  std::lock_guard<std::mutex> lock(reporting);
  std::vector<Leak> leaks;
  collecting = &leaks;
  memory_leaks();
  model_leaks();
  stream_leaks();
  description_leaks();
  operator_leaks();
  operand_leaks();
  executor_leaks();
  collecting = nullptr;
  std::string text = "{\"finalised\": " + std::string(finalised ? "true" : "false") + ", \"executions\": " + std::to_string(executions) +
                     ", \"loads\": " + std::to_string(loads) + ", \"devices\": [" + memory_report() + "], \"leaks\": [";
  for (size_t i = 0; i < leaks.size(); ++i)
    text += std::string(i ? ", " : "") + "{\"kind\": " + quoted(leaks[i].kind) + ", \"count\": " + std::to_string(leaks[i].count) +
            ", \"bytes\": " + std::to_string(leaks[i].bytes) + "}";
  return text + "]}";
}

}  // namespace sim

API const char* aclGetRecentErrMsg() {
  if (sim::over) return nullptr;
  sim::texts.handed_out = sim::take_error();
  return sim::texts.handed_out.empty() ? nullptr : sim::texts.handed_out.c_str();
}

API size_t cannsim_report(char* text, size_t capacity) {  // bytes the whole text needs, its end included
  std::string report = sim::report_text(false);
  if (text && capacity) snprintf(text, capacity, "%s", report.c_str());
  return report.size() + 1;
}
