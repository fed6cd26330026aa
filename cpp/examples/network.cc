#include "network.h"

#include <dlfcn.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "ort_c_api.h"

namespace example {

namespace {

constexpr std::uint32_t kApiVersion = 15;  // ONNX Runtime 1.15 and newer

const OrtApi* loaded = nullptr;

const OrtApi& api() {
  if (loaded == nullptr) throw std::logic_error("load_runtime() comes first");
  return *loaded;
}

void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api().GetErrorMessage(status);
  api().ReleaseStatus(status);
  throw std::runtime_error("ONNX Runtime: " + message);
}

// Whatever the API hands out, released by its own function.
template <class T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

template <class T, class Create>
Handle<T> make(void (*release)(T*), Create&& create) {
  T* pointer = nullptr;
  check(create(&pointer));
  return Handle<T>(pointer, release);
}

// A string that the runtime allocated with its default allocator; nothing for null.
template <class Get>
std::optional<std::string> text_of(Get&& get) {
  OrtAllocator* allocator = nullptr;
  check(api().GetAllocatorWithDefaultOptions(&allocator));
  char* text = nullptr;
  check(get(allocator, &text));
  if (text == nullptr) return std::nullopt;
  std::string copy = text;
  check(api().AllocatorFree(allocator, text));
  return copy;
}

std::vector<std::int64_t> shape_of(const OrtValue* value, ONNXTensorElementDataType expected) {
  const auto info = make<OrtTensorTypeAndShapeInfo>(
      api().ReleaseTensorTypeAndShapeInfo, [&](auto** out) { return api().GetTensorTypeAndShape(value, out); });
  ONNXTensorElementDataType type{};
  check(api().GetTensorElementType(info.get(), &type));
  if (type != expected) throw std::runtime_error("an output has element type " + std::to_string(type));
  std::size_t rank = 0;
  check(api().GetDimensionsCount(info.get(), &rank));
  std::vector<std::int64_t> shape(rank);
  check(api().GetDimensions(info.get(), shape.data(), rank));
  return shape;
}

// Copies an output, and returns its shape.
template <class T>
std::vector<std::int64_t> take(OrtValue* value, ONNXTensorElementDataType type, std::vector<T>& to) {
  const auto shape = shape_of(value, type);
  void* data = nullptr;
  check(api().GetTensorMutableData(value, &data));
  std::size_t size = 1;
  for (const std::int64_t extent : shape) size *= static_cast<std::size_t>(extent);
  to.assign(static_cast<const T*>(data), static_cast<const T*>(data) + size);
  return shape;
}

}  // namespace

std::string load_runtime(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);  // for good: it has threads
  if (handle == nullptr) throw std::runtime_error(std::string("ONNX Runtime cannot be loaded: ") + dlerror());
  auto* base_of = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
  if (base_of == nullptr) throw std::runtime_error(library + " is not ONNX Runtime");
  const OrtApiBase* base = base_of();
  const std::string version = base->GetVersionString();
  loaded = base->GetApi(kApiVersion);  // null where the library is older
  if (loaded == nullptr) throw std::runtime_error("needs ONNX Runtime 1.15 or newer, got " + version);
  return version;
}

struct Network::State {
  Handle<OrtEnv> env{nullptr, nullptr};
  Handle<OrtSession> session{nullptr, nullptr};
  Handle<OrtMemoryInfo> memory{nullptr, nullptr};
  ModelInfo info;
  bool makes_rle = false;
};

Network::Network(const std::string& path, const NetworkOptions& options) : state_(std::make_unique<State>()) {
  const OrtApi& ort = api();
  state_->env = make<OrtEnv>(ort.ReleaseEnv,
                             [&](auto** out) { return ort.CreateEnv(ORT_LOGGING_LEVEL_ERROR, "centermask", out); });
  const auto settings = make<OrtSessionOptions>(ort.ReleaseSessionOptions, ort.CreateSessionOptions);
  if (options.threads > 0) check(ort.SetIntraOpNumThreads(settings.get(), options.threads));
  if (!options.op_library.empty()) check(ort.RegisterCustomOpsLibrary_V2(settings.get(), options.op_library.c_str()));
  if (options.cuda) {
    const auto cuda = make<OrtCUDAProviderOptionsV2>(ort.ReleaseCUDAProviderOptions, ort.CreateCUDAProviderOptions);
    check(ort.SessionOptionsAppendExecutionProvider_CUDA_V2(settings.get(), cuda.get()));
  }
  state_->session = make<OrtSession>(ort.ReleaseSession, [&](auto** out) {
    return ort.CreateSession(state_->env.get(), path.c_str(), settings.get(), out);
  });
  state_->memory = make<OrtMemoryInfo>(ort.ReleaseMemoryInfo, [&](auto** out) {
    return ort.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, out);
  });
  const auto metadata = make<OrtModelMetadata>(
      ort.ReleaseModelMetadata, [&](auto** out) { return ort.SessionGetModelMetadata(state_->session.get(), out); });
  state_->info = read_model_info([&](const std::string& key) {
    return text_of([&](OrtAllocator* allocator, char** out) {
      return ort.ModelMetadataLookupCustomMetadataMap(metadata.get(), allocator, key.c_str(), out);
    });
  });
  std::size_t inputs = 0;
  check(ort.SessionGetInputCount(state_->session.get(), &inputs));
  for (std::size_t i = 0; i < inputs; ++i) {
    const auto name = text_of([&](OrtAllocator* allocator, char** out) {
      return ort.SessionGetInputName(state_->session.get(), i, allocator, out);
    });
    if (name == "image_to_input") state_->makes_rle = true;
  }
}

Network::~Network() = default;

const ModelInfo& Network::info() const { return state_->info; }

NetworkOutput Network::run(const NetworkInput& input) const {
  const OrtApi& ort = api();
  std::vector<const char*> input_names, output_names = {"boxes", "scores", "labels", "count"};
  std::vector<Handle<OrtValue>> inputs, outputs;
  // The runtime reads this memory where it is. It takes it as writable, but writes to no input.
  auto feed = [&](const char* name, const void* data, std::vector<std::int64_t> shape, std::size_t element,
                  ONNXTensorElementDataType type) {
    std::size_t bytes = element;
    for (const std::int64_t extent : shape) bytes *= static_cast<std::size_t>(extent);
    input_names.push_back(name);
    inputs.push_back(make<OrtValue>(ort.ReleaseValue, [&](auto** out) {
      return ort.CreateTensorWithDataAsOrtValue(state_->memory.get(), const_cast<void*>(data), bytes, shape.data(),
                                                shape.size(), type, out);
    }));
  };
  feed("image", input.data, {1, 3, input.height, input.width}, sizeof(float), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
  const std::int64_t image_size[] = {input.image_height, input.image_width};
  if (state_->makes_rle) {
    feed("image_to_input", input.image_to_input, {1, 2, 3}, sizeof(double), ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE);
    feed("image_size", image_size, {1, 2}, sizeof(std::int64_t), ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    output_names.insert(output_names.end(), {"rle_counts", "rle_offsets"});
  } else if (state_->info.mask_head != "none") {
    output_names.insert(output_names.end(), {"mask_params", "mask_features"});
  }
  std::vector<const OrtValue*> values;
  for (const auto& value : inputs) values.push_back(value.get());
  std::vector<OrtValue*> made(output_names.size(), nullptr);
  OrtStatus* status = ort.Run(state_->session.get(), nullptr, input_names.data(), values.data(), values.size(),
                              output_names.data(), output_names.size(), made.data());
  for (OrtValue* value : made) outputs.emplace_back(value, ort.ReleaseValue);
  check(status);

  NetworkOutput output;
  std::vector<std::int64_t> count;
  output.rows = take(outputs[0].get(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, output.boxes).at(1);
  take(outputs[1].get(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, output.scores);
  take(outputs[2].get(), ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, output.labels);
  take(outputs[3].get(), ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, count);
  output.count = count.at(0);
  const auto rows = static_cast<std::size_t>(output.rows);
  if (output.count < 0 || output.count > output.rows || output.scores.size() != rows || output.labels.size() != rows ||
      output.boxes.size() != 4 * rows) {
    throw std::runtime_error("the model's outputs do not fit each other");
  }
  if (state_->makes_rle) {
    take(outputs[4].get(), ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32, output.rle_counts);
    take(outputs[5].get(), ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, output.rle_offsets);
    const auto& offsets = output.rle_offsets;
    if (offsets.size() != rows + 1 || offsets.front() != 0 || !std::is_sorted(offsets.begin(), offsets.end()) ||
        offsets.back() != static_cast<std::int64_t>(output.rle_counts.size())) {
      throw std::runtime_error("the model's run lengths do not fit their offsets");
    }
  } else if (outputs.size() > 4) {
    output.param_count = take(outputs[4].get(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, output.mask_params).at(2);
    const auto shape = take(outputs[5].get(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, output.mask_features);
    std::copy_n(shape.begin() + 1, 3, output.features);
  }
  return output;
}

}  // namespace example
