// Shape inference, while a model is loaded: sizes that are known, or have a name.
#include <atomic>

#include "centermask/error.h"
#include "kernel.h"

namespace centermask::ort {

// Stays the runtime's. Null where there is no such input.
const TensorInfo* ShapeInference::info(std::size_t index) const {
  TensorInfo* found = nullptr;
  Status* status = api_.ShapeInferContext_GetInputTypeShape(context_, index, &found);
  if (status == nullptr) return found;
  api_.ReleaseStatus(status);
  return nullptr;
}

ElementType ShapeInference::input_type(std::size_t index) const {
  ElementType type = kUndefined;
  if (const TensorInfo* found = info(index)) check(api_, api_.GetTensorElementType(found, &type));
  return type;
}

Dims ShapeInference::input(std::size_t index) const {
  const TensorInfo* found = info(index);
  if (found == nullptr) return {};
  std::size_t rank = 0;
  check(api_, api_.GetDimensionsCount(found, &rank));
  std::vector<std::int64_t> sizes(rank);
  std::vector<const char*> names(rank, nullptr);
  if (rank > 0) {
    check(api_, api_.GetDimensions(found, sizes.data(), rank));
    check(api_, api_.GetSymbolicDimensions(found, names.data(), rank));
  }
  Dims dims(rank);
  for (std::size_t i = 0; i < rank; ++i) {
    if (names[i] != nullptr) dims[i].name = names[i];
    if (dims[i].name.empty()) dims[i].size = sizes[i];
  }
  return dims;
}

void ShapeInference::set_output(std::size_t index, ElementType type, const Dims& dims) const {
  // Every size that is not known must have a name, and equal names mean equal sizes: a name of its own for each.
  static std::atomic<std::uint64_t> unknown{0};
  std::vector<std::int64_t> sizes;
  std::vector<std::string> names;
  for (const Dim& dim : dims) {
    sizes.push_back(dim.name.empty() ? dim.size : -1);
    names.push_back(dim.name);
    if (dim.name.empty() && dim.size < 0) names.back() = "centermask_" + std::to_string(unknown.fetch_add(1));
  }
  std::vector<const char*> name_pointers;
  for (const std::string& name : names) name_pointers.push_back(name.c_str());
  TensorInfo* info = nullptr;
  check(api_, api_.CreateTensorTypeAndShapeInfo(&info));
  const auto release = [&](TensorInfo* held) { api_.ReleaseTensorTypeAndShapeInfo(held); };
  const std::unique_ptr<TensorInfo, decltype(release)> owner(info, release);
  check(api_, api_.SetTensorElementType(info, type));
  check(api_, api_.SetDimensions(info, sizes.data(), sizes.size()));
  check(api_, api_.SetSymbolicDimensions(info, name_pointers.data(), name_pointers.size()));
  check(api_, api_.ShapeInferContext_SetOutputTypeShape(context_, index, info));
}

const Attribute* ShapeInference::attribute(const char* name) const {
  const Attribute* attribute = nullptr;
  Status* status = api_.ShapeInferContext_GetAttribute(context_, name, &attribute);
  if (status == nullptr) return attribute;
  api_.ReleaseStatus(status);
  return nullptr;
}

std::optional<std::int64_t> ShapeInference::integer(const char* name) const {
  const Attribute* found = attribute(name);
  if (found == nullptr) return {};
  std::int64_t value = 0;
  std::size_t size = 0;
  check(api_, api_.ReadOpAttr(found, kAttributeInt, &value, sizeof value, &size));
  return value;
}

std::vector<std::int64_t> ShapeInference::integers(const char* name, std::size_t count, std::int64_t otherwise) const {
  std::vector<std::int64_t> values(count, otherwise);
  const Attribute* found = attribute(name);
  if (found == nullptr) return values;
  std::size_t size = 0;
  check(api_, api_.ReadOpAttr(found, kAttributeInts, values.data(), count * sizeof(std::int64_t), &size));
  if (size != count * sizeof(std::int64_t)) {
    fail(ErrorKind::kValue, "centermask: attribute ", name, " must have ", count, " values");
  }
  return values;
}

}  // namespace centermask::ort
