# cmake -DNM=... -DFILES=a.a,b.so -P check_no_streams.cmake
# Nothing in these files may call the standard library's streams or locales.
string(REPLACE "," ";" files "${FILES}")
foreach(file IN LISTS files)
  set(dynamic "")
  if(NOT file MATCHES "\\.a$")
    set(dynamic --dynamic)  # a stripped module has no other table
  endif()
  execute_process(COMMAND "${NM}" --undefined-only ${dynamic} "${file}"
    OUTPUT_VARIABLE symbols RESULT_VARIABLE status ERROR_QUIET)
  if(NOT status EQUAL 0 OR NOT symbols MATCHES " U ")
    message(FATAL_ERROR "${NM} failed on ${file}")
  endif()
  # std::ostream and its like are abbreviated: So, Si, Sd; the others are named.
  string(REGEX MATCHALL " U _Z[A-Za-z0-9_]*(NSo|NSi|NSd|NKSo|stream|streambuf|locale|ios_base)[A-Za-z0-9_]*" found "${symbols}")
  list(REMOVE_DUPLICATES found)
  if(found)
    message(FATAL_ERROR "${file} calls streams or locales:${found}")
  endif()
endforeach()
message(STATUS "no streams in ${files}")
