// The C++ interface of the graph engine that the CANN provider of onnxruntime links: only as much of it as that calls.
// Layouts are those of the public headers: a class is one shared pointer, whose content only this file looks into.
#include <cstdio>
#include <cstring>

#include "simulator.h"

#define GE_API __attribute__((visibility("default")))

namespace ge {

typedef uint32_t graphStatus;
constexpr graphStatus SUCCESS = 0, FAILED = 0xFFFFFFFF;

class GE_API AscendString {
 public:
  AscendString() = default;
  explicit AscendString(const char* text);
  AscendString(const AscendString& other);
  AscendString& operator=(const AscendString& other);
  ~AscendString();
  bool operator<(const AscendString& other) const;
  bool operator==(const AscendString& other) const;
  const char* GetString() const;
  size_t GetLength() const;

 private:
  std::shared_ptr<std::string> text_;
};

AscendString::AscendString(const char* text) : text_(text ? std::make_shared<std::string>(text) : nullptr) {}
AscendString::AscendString(const AscendString& other) = default;
AscendString& AscendString::operator=(const AscendString& other) = default;
AscendString::~AscendString() = default;
bool AscendString::operator<(const AscendString& other) const { return strcmp(GetString(), other.GetString()) < 0; }
bool AscendString::operator==(const AscendString& other) const { return strcmp(GetString(), other.GetString()) == 0; }
const char* AscendString::GetString() const { return text_ ? text_->c_str() : ""; }
size_t AscendString::GetLength() const { return text_ ? text_->size() : 0; }

struct GraphImpl {
  std::string name, onnx;
};

class GE_API Graph {
 public:
  explicit Graph(const char* name);
  std::shared_ptr<GraphImpl> content;
};

Graph::Graph(const char* name) : content(std::make_shared<GraphImpl>()) { content->name = name ? name : ""; }

struct ModelBufferData {
  std::shared_ptr<uint8_t> data = nullptr;
  uint64_t length = 0;
};

typedef std::map<AscendString, AscendString> Options;

namespace {

std::mutex initialising;
bool initialised = false;
std::map<std::string, std::string>& of_process = *new std::map<std::string, std::string>;  // the options of the first who initialised: they hold for all

void note(const char* function, const Options& options) {
  for (auto& option : options) CALLED("%s %s=%s", function, option.first.GetString(), option.second.GetString());
}

std::string as_json(const std::map<std::string, std::string>& options) {
  std::string text = "{";
  for (auto& option : options) text += (text.size() > 1 ? ", " : "") + sim::quoted(option.first) + ": " + sim::quoted(option.second);
  return text + "}";
}

}  // namespace

GE_API graphStatus aclgrphBuildInitialize(Options& options) {
  CALLED("aclgrphBuildInitialize");
  note("aclgrphBuildInitialize", options);
  std::lock_guard<std::mutex> lock(initialising);
  if (initialised) return SUCCESS;
  for (auto& option : options) of_process[option.first.GetString()] = option.second.GetString();
  initialised = true;
  return SUCCESS;
}

GE_API void aclgrphBuildFinalize() {
  CALLED("aclgrphBuildFinalize");
  std::lock_guard<std::mutex> lock(initialising);
  initialised = false;
  of_process.clear();
}

GE_API graphStatus aclgrphParseONNXFromMem(const char* onnx, size_t nbytes, const Options& options, Graph& graph) {
  CALLED("aclgrphParseONNXFromMem %zu", nbytes);
  note("aclgrphParseONNXFromMem", options);
  if (!onnx || nbytes == 0 || !graph.content) {
    sim::fail(GE_PARAM, "aclgrphParseONNXFromMem: there is no model");
    return FAILED;
  }
  graph.content->onnx.assign(onnx, nbytes);
  return SUCCESS;
}

GE_API graphStatus aclgrphBuildModel(const Graph& graph, const Options& options, ModelBufferData& model) {
  CALLED("aclgrphBuildModel");
  note("aclgrphBuildModel", options);
  if (!graph.content || sim::start_python()) return FAILED;
  std::map<std::string, std::string> all;
  {
    std::lock_guard<std::mutex> lock(initialising);
    if (!initialised) {
      sim::fail(545000, "aclgrphBuildModel: aclgrphBuildInitialize was not called");
      return FAILED;
    }
    all = of_process;
  }
  for (auto& option : options) all[option.first.GetString()] = option.second.GetString();
  const sim::Logic* python = sim::logic();
  if (!python) return FAILED;
  sim::Reply reply;
  const std::string& onnx = graph.content->onnx;
  if (int code = python->compile(onnx.data(), onnx.size(), as_json(all).c_str(), &reply)) {
    sim::fail(code, reply.error);
    return FAILED;
  }
  auto bytes = new uint8_t[reply.bytes.size()];
  memcpy(bytes, reply.bytes.data(), reply.bytes.size());
  model.data.reset(bytes, std::default_delete<uint8_t[]>());
  model.length = reply.bytes.size();
  return SUCCESS;
}

GE_API graphStatus aclgrphSaveModel(const char* path, const ModelBufferData& model) {
  CALLED("aclgrphSaveModel %s", path ? path : "(null)");
  if (!path || !model.data) return FAILED;
  std::string name = path;
  if (name.size() < 3 || name.compare(name.size() - 3, 3, ".om") != 0) name += ".om";
  FILE* file = fopen(name.c_str(), "wb");
  if (!file) return FAILED;
  bool whole = fwrite(model.data.get(), 1, model.length, file) == model.length;
  return fclose(file) == 0 && whole ? SUCCESS : FAILED;
}

}  // namespace ge
