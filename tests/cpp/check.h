// The whole test harness: checks that print where and what, and count. End main() with `return check_result();`.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

#include "centermask/error.h"

inline int& check_failures() {
  static int failures = 0;
  return failures;
}

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      ++check_failures();                                                       \
      std::printf("%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
    }                                                                           \
  } while (0)

// |actual - expected| <= tolerance; NaN equals nothing.
#define CHECK_NEAR(actual, expected, tolerance)                                                         \
  do {                                                                                                  \
    const double check_a = static_cast<double>(actual), check_e = static_cast<double>(expected);        \
    if (!(std::fabs(check_a - check_e) <= (tolerance))) {                                               \
      ++check_failures();                                                                               \
      std::printf("%s:%d: %s is %.9g, expected %.9g\n", __FILE__, __LINE__, #actual, check_a, check_e); \
    }                                                                                                   \
  } while (0)

// The expression throws centermask::Error of this kind, and its message contains `part`.
#define CHECK_FAILS(expression, error_kind, part)                                                      \
  do {                                                                                                 \
    bool check_thrown = false;                                                                         \
    try {                                                                                              \
      expression;                                                                                      \
    } catch (const centermask::Error& error) {                                                         \
      check_thrown = true;                                                                             \
      if (error.kind() != (error_kind) || std::string(error.what()).find(part) == std::string::npos) { \
        ++check_failures();                                                                            \
        std::printf("%s:%d: unexpected error: %s\n", __FILE__, __LINE__, error.what());                \
      }                                                                                                \
    }                                                                                                  \
    if (!check_thrown) {                                                                               \
      ++check_failures();                                                                              \
      std::printf("%s:%d: no error from %s\n", __FILE__, __LINE__, #expression);                       \
    }                                                                                                  \
  } while (0)

inline int check_result() {
  if (check_failures() == 0) std::printf("ok\n");
  return check_failures() == 0 ? 0 : 1;
}
