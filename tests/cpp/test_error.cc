#include <clocale>
#include <limits>
#include <string>

#include "check.h"

namespace {

using centermask::append_text;

template <class... Parts>
std::string text_of(const Parts&... parts) {
  std::string text;
  (append_text(text, parts), ...);
  return text;
}

}  // namespace

int main() {
  CHECK(text_of("k must be >= ", 1, ", got ", std::string("none"), '!') == "k must be >= 1, got none!");
  CHECK(text_of(std::numeric_limits<std::int64_t>::min()) == "-9223372036854775808");
  CHECK(text_of(std::numeric_limits<std::uint64_t>::max()) == "18446744073709551615");
  CHECK(text_of(std::uint8_t{2}, std::int32_t{-7}, std::uint16_t{9}) == "2-79");
  CHECK(text_of(0.1, " ", 2.0F, " ", -1e30, " ", 123456789.0) == "0.1 2 -1e+30 1.23457e+08");
  CHECK(text_of(std::numeric_limits<double>::infinity(), -std::numeric_limits<float>::infinity()) == "inf-inf");
  CHECK(text_of(std::numeric_limits<double>::quiet_NaN()).find("nan") != std::string::npos);
  for (const char* name : {"de_DE.UTF-8", "fr_FR.UTF-8", "C"}) {  // those that the machine has
    if (std::setlocale(LC_ALL, name) != nullptr) CHECK(text_of(0.5) == "0.5");
  }

  centermask::TensorView view;
  CHECK(shape_text(view) == "[]");
  view.rank = 3;
  view.shape[0] = 2;
  view.shape[1] = 0;
  view.shape[2] = std::int64_t{1} << 40;
  CHECK(shape_text(view) == "[2, 0, 1099511627776]");
  CHECK_FAILS(centermask::fail(centermask::ErrorKind::kType, "op: got ", 3), centermask::ErrorKind::kType, "op: got 3");
  return check_result();
}
