# cmake -DNM=... -DOBJECTS=a.o,b.o -P check_isa_symbols.cmake
# Objects compiled for one instruction set may define nothing that the linker could share with other objects, except
# their one table of kernels, whose name ends in that of the instruction set.
string(REPLACE "," ";" objects "${OBJECTS}")
list(LENGTH objects count)
if(count EQUAL 0)
  message(FATAL_ERROR "no objects to check")
endif()
foreach(object IN LISTS objects)
  execute_process(COMMAND "${NM}" --extern-only --defined-only "${object}"
    OUTPUT_VARIABLE symbols RESULT_VARIABLE status OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${NM} failed on ${object}")
  endif()
  string(REPLACE "\n" ";" symbols "${symbols}")
  list(LENGTH symbols defined)
  if(NOT defined EQUAL 1 OR NOT symbols MATCHES "[DR] _Z[A-Za-z0-9_]*_(baseline|avx2|avx512|avx512bf16)E$")
    message(FATAL_ERROR "${object} must define its table of kernels alone, but defines:\n${symbols}")
  endif()
endforeach()
message(STATUS "${count} objects checked")
