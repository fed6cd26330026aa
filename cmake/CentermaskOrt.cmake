# libcentermask_ort.so: the operators for ONNX Runtime. Needs neither that runtime nor its headers. Included by the main
# CMakeLists.txt, after centermask_core (and its CUDA half) is there.
add_library(centermask_ort MODULE
  cpp/bindings/onnxruntime/assemble_masks.cc
  cpp/bindings/onnxruntime/decode_centers.cc
  cpp/bindings/onnxruntime/deform_conv.cc
  cpp/bindings/onnxruntime/gather_patches.cc
  cpp/bindings/onnxruntime/half.cc
  cpp/bindings/onnxruntime/kernel.cc
  cpp/bindings/onnxruntime/library.cc
  cpp/bindings/onnxruntime/shape.cc
)
target_link_libraries(centermask_ort PRIVATE centermask_core)
centermask_warnings(centermask_ort)
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  set(exports "${CMAKE_CURRENT_SOURCE_DIR}/cpp/bindings/onnxruntime/exports.map")
  # nodelete: the runtime unloads the library with the last session, while threads of its pool are waiting inside.
  target_link_options(centermask_ort PRIVATE
    "LINKER:--version-script,${exports}" "LINKER:--no-undefined" "LINKER:-z,nodelete")
  set_target_properties(centermask_ort PROPERTIES LINK_DEPENDS "${exports}")
endif()
if(CENTERMASK_CUDA)
  target_sources(centermask_ort PRIVATE cpp/bindings/onnxruntime/cuda_memory.cu)
  set_target_properties(centermask_ort PROPERTIES
    CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}" CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON
    CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
endif()

# Where the runtime's header is at hand, the places and types that cpp/bindings/onnxruntime/api.h declares are compared
# with it (scripts/check_ort_headers.sh fetches one).
set(ONNXRUNTIME_INCLUDE_DIR "" CACHE PATH "Folder of onnxruntime_c_api.h, for a check at compile time (not needed)")
if(ONNXRUNTIME_INCLUDE_DIR)
  if(NOT EXISTS "${ONNXRUNTIME_INCLUDE_DIR}/onnxruntime_c_api.h")
    message(FATAL_ERROR "ONNXRUNTIME_INCLUDE_DIR=${ONNXRUNTIME_INCLUDE_DIR} has no onnxruntime_c_api.h")
  endif()
  add_library(centermask_ort_check OBJECT cpp/bindings/onnxruntime/check_headers.cc)
  target_include_directories(centermask_ort_check SYSTEM PRIVATE "${ONNXRUNTIME_INCLUDE_DIR}")
  target_compile_features(centermask_ort_check PRIVATE cxx_std_17)
  centermask_warnings(centermask_ort_check)
  add_dependencies(centermask_ort centermask_ort_check)
endif()

if(SKBUILD)
  install(TARGETS centermask_ort LIBRARY DESTINATION centermask COMPONENT python)
elseif(CENTERMASK_PYTHON AND NOT CMAKE_CROSSCOMPILING)
  add_custom_command(TARGET centermask_ort POST_BUILD
    COMMAND "${CMAKE_COMMAND}" -E copy $<TARGET_FILE:centermask_ort> "${CMAKE_CURRENT_SOURCE_DIR}/python/centermask/")
endif()
