# CENTERMASK_CUDA=ON: the CUDA half of the core. It must never end in a build without CUDA: what cannot be built is an
# error, and says why. Included by the main CMakeLists.txt, after centermask_core is there.
#
# CMAKE_CUDA_ARCHITECTURES (or the environment's CUDAARCHS) chooses the cards; without it, every card from Turing on that
# the nvcc at hand knows (Xavier too, where it does), and the newest one's PTX for those that come after it.
include(CheckLanguage)

include(CentermaskCudaArchitectures)

check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "CENTERMASK_CUDA=ON needs nvcc, and none was found: put it on PATH or set the environment "
    "variable CUDACXX, and configure in a fresh build folder.")
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  # Before CUDA is enabled: CMake's own default may be a card that this nvcc no longer knows.
  execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --version OUTPUT_VARIABLE nvcc_text ERROR_QUIET)
  if(NOT nvcc_text MATCHES "release ([0-9]+\\.[0-9]+)")
    message(FATAL_ERROR "CENTERMASK_CUDA=ON: cannot tell the version of ${CMAKE_CUDA_COMPILER}; "
      "set CMAKE_CUDA_ARCHITECTURES.")
  endif()
  centermask_cuda_architectures("${CMAKE_MATCH_1}" architectures)
  set(CMAKE_CUDA_ARCHITECTURES "${architectures}" CACHE STRING "Cards that CUDA code is compiled for")
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
message(STATUS "centermask: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")

# Hopper's warpgroup instructions are only in code made for it alone, sm_90a, which needs CUDA 12. There is no other card
# of 9.0, so that this code takes the place of sm_90's; the PTX stays.
set(architectures "${CMAKE_CUDA_ARCHITECTURES}")
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.0 AND architectures MATCHES "(^|;)90a?(-real)?(;|$)")
  list(TRANSFORM architectures REPLACE "^90$" "90a-real;90-virtual")
  list(TRANSFORM architectures REPLACE "^90-real$" "90a-real")
  list(REMOVE_DUPLICATES architectures)
  target_compile_definitions(centermask_core PRIVATE CENTERMASK_SM90A=1)
endif()
set_target_properties(centermask_core PROPERTIES
  CUDA_ARCHITECTURES "${architectures}"
  CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
  CUDA_VISIBILITY_PRESET hidden
  CUDA_RUNTIME_LIBRARY Static)  # the library loads where no CUDA is installed
target_sources(centermask_core PRIVATE cpp/src/cuda/devices.cu ${CENTERMASK_CUDA_SOURCES})
target_compile_definitions(centermask_core PUBLIC CENTERMASK_HAS_CUDA=1)
target_link_libraries(centermask_core PUBLIC CUDA::cudart_static)
# Not -use_fast_math: coordinates and NaN must come out as on the CPU.
target_compile_options(centermask_core PRIVATE
  "$<$<COMPILE_LANGUAGE:CUDA>:-O3;--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas,-Wno-class-memaccess>")
if(CENTERMASK_WERROR)
  target_compile_options(centermask_core PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Werror>)
endif()
