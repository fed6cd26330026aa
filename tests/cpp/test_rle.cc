#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "centermask/rle.h"
#include "check.h"

using namespace centermask;

namespace {

using Runs = std::vector<std::uint32_t>;

TensorView view(Runs& runs) { return make_view(runs.data(), DType::kUInt32, {static_cast<std::int64_t>(runs.size())}); }

template <class Write>
Runs made(Write write) {
  Runs none;  // a capacity of 0 must only count
  Runs runs(static_cast<std::size_t>(write(view(none))));
  CHECK(write(view(runs)) == static_cast<std::int64_t>(runs.size()));
  return runs;
}

Runs encoded(std::vector<std::uint8_t>& bitmap, std::int64_t height, std::int64_t width, bool column_major) {
  TensorView pixels = make_view(bitmap.data(), DType::kUInt8, {height, width});
  if (column_major) {
    pixels.stride[0] = 1;
    pixels.stride[1] = height;
  }
  return made([&](const TensorView& runs) { return rle_encode(pixels, runs); });
}

std::vector<std::uint8_t> text_of(const char* text) {
  return std::vector<std::uint8_t>(text, text + std::strlen(text));
}

std::int64_t parse(const char* text, std::int64_t height, std::int64_t width, Runs& runs) {
  std::vector<std::uint8_t> bytes = text_of(text);
  return rle_from_string(make_view(bytes.data(), DType::kUInt8, {static_cast<std::int64_t>(bytes.size())}), height,
                         width, view(runs));
}

void test_known_mask() {
  // 0 1
  // 1 1
  std::vector<std::uint8_t> bitmap{0, 7, 255, 1};
  CHECK((encoded(bitmap, 2, 2, false) == Runs{1, 3}));
  CHECK((encoded(bitmap, 2, 2, true) == Runs{1, 3}));
  bitmap[0] = 1;
  Runs full = encoded(bitmap, 2, 2, false);
  CHECK((full == Runs{0, 4}));
  CHECK(rle_area(view(full)) == 4);
  double box[4];
  rle_bbox(view(full), 2, 2, make_view(box, DType::kFloat64, {4}));
  CHECK(box[0] == 0 && box[1] == 0 && box[2] == 2 && box[3] == 2);
}

void test_round_trips() {
  std::mt19937 random(7);
  for (std::int64_t height : {1, 2, 7, 33}) {
    for (std::int64_t width : {1, 8, 9, 31}) {
      for (int density = 0; density <= 10; ++density) {
        std::vector<std::uint8_t> bitmap(static_cast<std::size_t>(height * width));
        for (std::uint8_t& pixel : bitmap) pixel = static_cast<int>(random() % 10) < density;
        Runs runs = encoded(bitmap, height, width, false);
        std::vector<std::uint8_t> decoded(bitmap.size(), 9);
        rle_decode(view(runs), make_view(decoded.data(), DType::kUInt8, {height, width}));
        CHECK(decoded == bitmap);

        std::vector<std::uint8_t> text(7 * runs.size());
        TensorView text_view = make_view(text.data(), DType::kUInt8, {static_cast<std::int64_t>(text.size())});
        text_view.shape[0] = rle_to_string(view(runs), text_view);
        CHECK((made([&](const TensorView& out) { return rle_from_string(text_view, height, width, out); }) == runs));

        std::vector<double> points(1);
        std::vector<std::int64_t> offsets(1);
        RingSizes sizes = rle_to_polygons(view(runs), height, width, make_view(points.data(), DType::kFloat64, {0, 2}),
                                          make_view(offsets.data(), DType::kInt64, {0}));
        points.resize(static_cast<std::size_t>(2 * sizes.points + 1));
        offsets.resize(static_cast<std::size_t>(sizes.rings + 1));
        const TensorView xy = make_view(points.data(), DType::kFloat64, {sizes.points, 2});
        const TensorView rings = make_view(offsets.data(), DType::kInt64, {sizes.rings + 1});
        rle_to_polygons(view(runs), height, width, xy, rings);
        CHECK(offsets.back() == sizes.points);
        CHECK((made([&](const TensorView& out) {
                 return rle_from_polygons(xy, rings, height, width, PolygonFill::kEvenOdd, out);
               }) == runs));
      }
    }
  }
}

void test_hostile_text() {
  Runs runs(64);
  CHECK(parse("0", 0, 5, runs) == 1);
  CHECK(parse("", 0, 0, runs) == 0);
  CHECK_FAILS(parse("4P", 2, 2, runs), ErrorKind::kValue, "end within a number");
  CHECK_FAILS(parse("4\x7f", 2, 2, runs), ErrorKind::kValue, "'0' to 'o'");
  CHECK_FAILS(parse("/", 2, 2, runs), ErrorKind::kValue, "'0' to 'o'");
  CHECK_FAILS(parse("O", 2, 2, runs), ErrorKind::kValue, "run 0 is -1");
  CHECK_FAILS(parse("5", 2, 2, runs), ErrorKind::kValue, "run 0 is 5");
  CHECK_FAILS(parse("3", 2, 2, runs), ErrorKind::kValue, "must add up to height * width = 2 * 2 = 4, got 3");
  CHECK_FAILS(parse("PPPPPPPPPPPPPPPP", 2, 2, runs), ErrorKind::kValue, "too many bytes");
  CHECK_FAILS(parse("ooooooooooooooO", 2, 2, runs), ErrorKind::kValue, "too many bytes");
  CHECK_FAILS(parse("0", -1, 2, runs), ErrorKind::kValue, "height * width");
  CHECK_FAILS(parse("0", std::int64_t{1} << 40, std::int64_t{1} << 40, runs), ErrorKind::kValue, "height * width");

  std::mt19937 random(3);
  int valid = 0;
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::uint8_t> text(random() % 12);
    for (std::uint8_t& byte : text) byte = static_cast<std::uint8_t>(random() % 8 ? 48 + random() % 64 : random());
    Runs out(text.size());
    try {
      rle_from_string(make_view(text.data(), DType::kUInt8, {static_cast<std::int64_t>(text.size())}), 3, 4, view(out));
      ++valid;
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::kValue);
    }
  }
  CHECK(valid > 0);  // otherwise the loop has only seen refusals
}

void test_errors() {
  Runs three{1, 1, 1};
  std::vector<std::uint8_t> bitmap(4);
  const TensorView pixels = make_view(bitmap.data(), DType::kUInt8, {2, 2});
  CHECK_FAILS(rle_decode(view(three), pixels), ErrorKind::kValue, "rle_decode: runs must add up");
  CHECK_FAILS(rle_encode(make_view(bitmap.data(), DType::kUInt8, {4}), view(three)), ErrorKind::kValue, "[H, W]");
  CHECK_FAILS(rle_encode(pixels, pixels), ErrorKind::kType, "uint32");
  double nan_points[] = {0, 0, 1, 0, std::nan(""), 1};
  std::int64_t ring[] = {0, 3};
  CHECK_FAILS(rle_from_polygons(make_view(nan_points, DType::kFloat64, {3, 2}), make_view(ring, DType::kInt64, {2}), 4,
                                4, PolygonFill::kUnion, view(three)),
              ErrorKind::kValue, "finite");
  std::int64_t past[] = {0, 4};
  CHECK_FAILS(rle_from_polygons(make_view(nan_points, DType::kFloat64, {3, 2}), make_view(past, DType::kInt64, {2}), 4,
                                4, PolygonFill::kUnion, view(three)),
              ErrorKind::kValue, "ring_offsets");
  const RleBatch none{view(three), make_view(ring, DType::kInt64, {1})};
  CHECK_FAILS(rle_merge(none, false, view(three)), ErrorKind::kValue, "at least one mask");
}

}  // namespace

int main() {
  test_known_mask();
  test_round_trips();
  test_hostile_text();
  test_errors();
  return check_result();
}
