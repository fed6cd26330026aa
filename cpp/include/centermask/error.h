// The one exception type of the core. Each boundary (Python, ONNX Runtime) translates it to its own kind of error.
#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "centermask/tensor_view.h"

namespace centermask {

enum class ErrorKind {
  kValue,        // a shape, a range or a content is wrong (Python: ValueError)
  kType,         // a dtype or a kind of argument is wrong (Python: TypeError)
  kUnsupported,  // valid, but not on this device or build (Python: NotImplementedError)
  kRuntime,      // the machine failed: a launch, an allocation (Python: RuntimeError)
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

// Text, integers and floating-point numbers, as a stream writes them. Not by a stream: where the compiler links
// libstdc++ statically and a library loaded before, PyTorch's for one, brings another copy, the two share the ids of
// the locale's facets but not the facets, and a stream that is given a number loses it or crashes.
template <class Part>
void append_text(std::string& text, const Part& part) {
  if constexpr (std::is_floating_point_v<Part>) {
    char number[32];
    std::snprintf(number, sizeof number, "%g", static_cast<double>(part));
    for (char* c = number; *c != 0; ++c) text += *c == ',' ? '.' : *c;  // whatever setlocale() was told
  } else if constexpr (std::is_integral_v<Part> && !std::is_same_v<Part, char>) {
    text += std::to_string(part);
  } else {
    text += part;
  }
}

// fail(ErrorKind::kValue, "decode_centers: top_k must be >= 1, got ", k): names op, argument, expected, got.
template <class... Parts>
[[noreturn]] void fail(ErrorKind kind, const Parts&... parts) {
  std::string text;
  (append_text(text, parts), ...);
  throw Error(kind, text);
}

// "[2, 9, 64, 64]"
inline std::string shape_text(const TensorView& view) {
  std::string text = "[";
  for (int i = 0; i < view.rank; ++i) text += (i > 0 ? ", " : "") + std::to_string(view.shape[i]);
  return text + "]";
}

}  // namespace centermask
