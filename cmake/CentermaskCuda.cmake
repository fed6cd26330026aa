# CENTERMASK_CUDA=ON must never end in a build without CUDA: what cannot be built is an error, and says why.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "CENTERMASK_CUDA=ON needs nvcc, and none was found: put it on PATH, or set the environment "
    "variable CUDACXX. (This version has CPU kernels only, so that CENTERMASK_CUDA=OFF loses nothing.)")
endif()
message(FATAL_ERROR "CENTERMASK_CUDA=ON, but this version of centermask has CPU kernels only: there is nothing to "
  "compile with ${CMAKE_CUDA_COMPILER}. Configure with CENTERMASK_CUDA=OFF.")
