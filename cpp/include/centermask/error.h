// The one exception type of the core. Each boundary (Python, ONNX Runtime) translates it to its own kind of error.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

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

// fail(ErrorKind::kValue, "decode_centers: top_k must be >= 1, got ", k): names op, argument, expected, got.
template <class... Parts>
[[noreturn]] void fail(ErrorKind kind, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(kind, text.str());
}

// "[2, 9, 64, 64]"
inline std::string shape_text(const TensorView& view) {
  std::ostringstream text;
  text << '[';
  for (int i = 0; i < view.rank; ++i) text << (i ? ", " : "") << view.shape[i];
  text << ']';
  return text.str();
}

}  // namespace centermask
