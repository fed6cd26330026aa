// JPEG by libjpeg (libjpeg-turbo), with the orientation that cameras note in EXIF.
#include <csetjmp>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <utility>

// After <cstdio>, which it needs.
#include <jpeglib.h>

#include "image_io.h"

namespace example {

namespace {

// All of a decoding: libjpeg leaves by longjmp when it fails, and what is in here survives that.
struct Decoding {
  jpeg_error_mgr manager{};  // the first: libjpeg hands its address back
  std::jmp_buf jump{};
  char message[JMSG_LENGTH_MAX] = {};
  jpeg_decompress_struct jpeg{};
  Image image;
  int orientation = 1;

  Decoding() = default;
  Decoding(const Decoding&) = delete;
  Decoding& operator=(const Decoding&) = delete;
  ~Decoding() { jpeg_destroy_decompress(&jpeg); }
};

// EXIF tag 0x0112, 1 to 8, in the APP1 segment: a TIFF header, then the entries of its first directory.
int exif_orientation(const JOCTET* data, std::size_t size) {
  if (size < 14 || std::string(reinterpret_cast<const char*>(data), 4) != "Exif") return 1;
  const JOCTET* tiff = data + 6;
  size -= 6;
  const bool little = tiff[0] == 'I';
  auto number = [&](std::size_t at, int bytes) {
    std::size_t value = 0;
    for (int i = 0; i < bytes; ++i)
      value |= std::size_t{tiff[at + static_cast<std::size_t>(i)]} << 8 * (little ? i : bytes - 1 - i);
    return value;
  };
  const std::size_t directory = number(4, 4);
  if (directory > size || size - directory < 2) return 1;
  for (std::size_t i = 0, entries = number(directory, 2); i < entries; ++i) {
    const std::size_t at = directory + 2 + 12 * i;
    if (at + 12 > size) break;
    const std::size_t value = number(at + 8, 2);
    if (number(at, 2) == 0x0112) return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

Image upright(Image image, int orientation) {
  const bool transpose = orientation >= 5;
  const bool flip_rows = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  const bool flip_columns = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  if (orientation == 1) return image;
  Image turned;
  turned.width = transpose ? image.height : image.width;
  turned.height = transpose ? image.width : image.height;
  turned.pixels.resize(image.pixels.size());
  for (std::int64_t y = 0; y < turned.height; ++y) {
    for (std::int64_t x = 0; x < turned.width; ++x) {
      const std::int64_t row = flip_rows ? turned.height - 1 - y : y, column = flip_columns ? turned.width - 1 - x : x;
      const std::int64_t from = transpose ? column * image.width + row : row * image.width + column;
      for (int c = 0; c < 3; ++c) {
        turned.pixels[static_cast<std::size_t>(3 * (y * turned.width + x) + c)] =
            image.pixels[static_cast<std::size_t>(3 * from + c)];
      }
    }
  }
  return turned;
}

// False where libjpeg gave up, with `message` set.
bool decode(const std::vector<std::uint8_t>& data, Decoding& own) {
  own.jpeg.err = jpeg_std_error(&own.manager);
  own.manager.error_exit = [](j_common_ptr info) {
    auto* failed = reinterpret_cast<Decoding*>(info->err);
    failed->manager.format_message(info, failed->message);
    std::longjmp(failed->jump, 1);
  };
  own.manager.output_message = [](j_common_ptr) {};
  if (setjmp(own.jump) != 0) return false;
  jpeg_create_decompress(&own.jpeg);
  jpeg_mem_src(&own.jpeg, data.data(), static_cast<unsigned long>(data.size()));
  jpeg_save_markers(&own.jpeg, JPEG_APP0 + 1, 0xFFFF);
  jpeg_read_header(&own.jpeg, TRUE);
  for (auto* marker = own.jpeg.marker_list; marker != nullptr; marker = marker->next) {
    if (marker->marker == JPEG_APP0 + 1 && own.orientation == 1) {
      own.orientation = exif_orientation(marker->data, marker->data_length);
    }
  }
  own.jpeg.out_color_space = JCS_RGB;
  jpeg_start_decompress(&own.jpeg);
  own.image.width = own.jpeg.output_width;
  own.image.height = own.jpeg.output_height;
  own.image.pixels.resize(static_cast<std::size_t>(3 * own.image.width * own.image.height));
  while (own.jpeg.output_scanline < own.jpeg.output_height) {
    JSAMPROW row = &own.image.pixels[std::size_t{3} * own.jpeg.output_width * own.jpeg.output_scanline];
    jpeg_read_scanlines(&own.jpeg, &row, 1);
  }
  jpeg_finish_decompress(&own.jpeg);
  return true;
}

}  // namespace

Image decode_jpeg(const std::vector<std::uint8_t>& data) {
  Decoding own;
  if (!decode(data, own)) throw std::runtime_error(std::string("cannot be decoded: ") + own.message);
  if (own.manager.num_warnings > 0) throw std::runtime_error("is a damaged or truncated JPEG");
  return upright(std::move(own.image), own.orientation);
}

}  // namespace example
