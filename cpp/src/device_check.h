// The rule that all tensors of one call lie on one device, with one wording for all ops. Private to the sources.
#pragma once

#include <string>

#include "centermask/cuda.h"
#include "centermask/error.h"
#include "centermask/tensor_view.h"

namespace centermask {

// "cpu", "cuda:0"
inline std::string device_name(const Device& device) {
  return device.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

// `op` ends in ": ", as in "decode_centers: ".
inline void check_same_device(const char* op, const char* name, const TensorView& view, const char* first_name,
                              const TensorView& first) {
  if (view.device == first.device) return;
  fail(ErrorKind::kValue, op, name, " must be on the device of ", first_name, " (", device_name(first.device),
       "), got ", device_name(view.device));
}

// That `view` is where the stream's work happens.
inline void check_on_stream(const char* op, const char* name, const TensorView& view, const CudaStream& stream) {
  const Device expected{DeviceType::kCuda, stream.device};
  if (view.device == expected) return;
  fail(ErrorKind::kValue, op, name, " must be on the stream's device (", device_name(expected), "), got ",
       device_name(view.device));
}

}  // namespace centermask
