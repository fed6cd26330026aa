// A library as another process loads it: one function, which gives the text of an error with numbers in it.
#include <cstring>

#include "centermask/error.h"

extern "C" __attribute__((visibility("default"))) void error_text(char* text, std::size_t size) {
  try {
    centermask::fail(centermask::ErrorKind::kValue, "got ", std::int64_t{-3}, " and ", 0.5);
  } catch (const centermask::Error& error) {
    std::strncpy(text, error.what(), size - 1);
  }
}
