# Toolchain of an aarch64 build on another machine, with Debian's cross compiler (g++-aarch64-linux-gnu); tests run under
# qemu (qemu-user-static):
#   cmake -S . -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake -DCENTERMASK_PYTHON=OFF
#   CENTERMASK_AARCH64_ROOT   where programs find their loader and libraries when they run here
# scripts/aarch64.sh does all of it, Python and ONNX Runtime included.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CENTERMASK_AARCH64_ROOT /usr/aarch64-linux-gnu CACHE PATH "Root file system that qemu shows to aarch64 programs")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES CENTERMASK_AARCH64_ROOT)
set(CMAKE_CROSSCOMPILING_EMULATOR "qemu-aarch64-static;-L;${CENTERMASK_AARCH64_ROOT}")
# Nothing of this machine's own is linked.
set(CMAKE_FIND_ROOT_PATH "${CENTERMASK_AARCH64_ROOT}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
