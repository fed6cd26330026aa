# centermask_isa_sources(<target> <source> [<isa>...]): compiles one kernel source once for each instruction set of the
# architecture, or for those named. The source defines everything inside CENTERMASK_ISA_NAMESPACE or an unnamed namespace and uses no
# inline function or template of another header (those would be emitted with wide instructions under a shared name,
# and the linker might keep that copy for every caller).
include(CheckCXXCompilerFlag)

set(CENTERMASK_KERNEL_FLAGS -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  check_cxx_compiler_flag(-mavx512bf16 CENTERMASK_COMPILER_HAS_AVX512BF16)  # GCC 10, Clang 9
endif()

function(centermask_isa_sources target source)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(isas baseline avx2 avx512)
    set(flags_baseline "")
    set(flags_avx2 -mavx2 -mfma -mf16c)
    set(flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512)
    set(flags_avx512bf16 ${flags_avx512} -mavx512bf16 -DCENTERMASK_ISA_avx512=1)
    target_compile_definitions(${target} PRIVATE CENTERMASK_HAVE_AVX2 CENTERMASK_HAVE_AVX512)
  else()
    set(isas baseline)  # aarch64: NEON is the baseline
    set(flags_baseline "")
  endif()
  if(ARGN)
    set(isas ${ARGN})
  endif()
  get_filename_component(name "${source}" NAME_WE)
  get_filename_component(source_path "${source}" ABSOLUTE)
  foreach(isa IN LISTS isas)
    set(object ${target}_${name}_${isa})
    add_library(${object} OBJECT "${source_path}")
    target_include_directories(${object} PRIVATE
      ${CMAKE_CURRENT_SOURCE_DIR}/cpp/include ${CMAKE_CURRENT_SOURCE_DIR}/cpp/src)
    target_compile_definitions(${object} PRIVATE CENTERMASK_ISA=${isa} CENTERMASK_ISA_${isa}=1)
    target_compile_options(${object} PRIVATE ${CENTERMASK_KERNEL_FLAGS} ${flags_${isa}})
    centermask_warnings(${object})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${object}>)
    set_property(GLOBAL APPEND PROPERTY CENTERMASK_ISA_OBJECTS ${object})
  endforeach()
endfunction()
