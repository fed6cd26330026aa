// Pictures in files: PPM, PGM, BMP, and JPEG where CMake found libjpeg.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace example {

struct Image {
  std::int64_t width = 0, height = 0;
  std::vector<std::uint8_t> pixels;  // RGB, row by row
};

// Throws std::runtime_error that names the file and the cause.
Image read_image(const std::string& path);

void write_ppm(const std::string& path, const Image& image);

// Names of the formats, for the usage text.
const char* image_formats();

// Implemented in image_jpeg.cc, if at all. The EXIF orientation is applied.
Image decode_jpeg(const std::vector<std::uint8_t>& data);

}  // namespace example
