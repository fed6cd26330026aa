#include "image_io.h"

#include <cstdio>
#include <limits>
#include <memory>
#include <stdexcept>

namespace example {

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::int64_t kMaxPixels = 1 << 28;

Bytes read_file(const std::string& path) {
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) throw std::runtime_error("cannot be opened");
  Bytes data;
  std::uint8_t block[65536];
  for (std::size_t n; (n = std::fread(block, 1, sizeof block, file.get())) > 0;)
    data.insert(data.end(), block, block + n);
  if (std::ferror(file.get())) throw std::runtime_error("cannot be read");
  if (data.empty()) throw std::runtime_error("is empty (0 bytes)");
  return data;
}

Image blank(std::int64_t width, std::int64_t height) {
  if (width < 1 || height < 1 || width > kMaxPixels || height > kMaxPixels / width) {
    throw std::runtime_error("has a size of " + std::to_string(width) + " x " + std::to_string(height));
  }
  Image image;
  image.width = width;
  image.height = height;
  image.pixels.resize(static_cast<std::size_t>(3 * width * height));
  return image;
}

void need(const Bytes& data, std::int64_t bytes) {
  if (static_cast<std::int64_t>(data.size()) < bytes) {
    throw std::runtime_error("is truncated: " + std::to_string(data.size()) + " bytes of " + std::to_string(bytes));
  }
}

// P5 and P6 of the netpbm family, 8 or 16 bits (netpbm.sourceforge.net/doc/ppm.html).
Image decode_pnm(const Bytes& data) {
  std::size_t at = 2;
  auto number = [&]() -> std::int64_t {
    while (at < data.size() && (data[at] == '#' || data[at] <= ' ')) {
      if (data[at] == '#') {
        while (at < data.size() && data[at] != '\n') ++at;
      } else {
        ++at;
      }
    }
    std::int64_t value = 0;
    const std::size_t start = at;
    for (; at < data.size() && data[at] >= '0' && data[at] <= '9' && value < kMaxPixels; ++at)
      value = 10 * value + data[at] - '0';
    if (at == start) throw std::runtime_error("has a damaged header");
    return value;
  };
  const std::int64_t width = number(), height = number(), largest = number();
  ++at;  // one blank
  if (largest < 1 || largest > 65535) throw std::runtime_error("has a largest value of " + std::to_string(largest));
  const std::int64_t channels = data[1] == '6' ? 3 : 1, bytes = largest > 255 ? 2 : 1;
  Image image = blank(width, height);
  need(data, static_cast<std::int64_t>(at) + width * height * channels * bytes);
  for (std::int64_t i = 0; i < width * height * 3; ++i) {
    const std::uint8_t* from = &data[at + static_cast<std::size_t>((channels == 3 ? i : i / 3) * bytes)];
    const std::int64_t value = bytes == 2 ? from[0] << 8 | from[1] : from[0];
    const std::int64_t grey = (value * 255 + largest / 2) / largest;
    image.pixels[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(grey > 255 ? 255 : grey);
  }
  return image;
}

// Windows bitmaps without compression, of 24 or 32 bits (BITMAPINFOHEADER); the fourth channel is not looked at.
Image decode_bmp(const Bytes& data) {
  need(data, 54);
  auto integer = [&](std::size_t at) {
    return static_cast<std::int32_t>(
        static_cast<std::uint32_t>(data[at]) | static_cast<std::uint32_t>(data[at + 1]) << 8 |
        static_cast<std::uint32_t>(data[at + 2]) << 16 | static_cast<std::uint32_t>(data[at + 3]) << 24);
  };
  const std::int64_t start = integer(10), width = integer(18), rows = integer(22), bits = data[28] | data[29] << 8;
  const std::int64_t compression = integer(30);
  if ((bits != 24 && bits != 32) || (compression != 0 && compression != 3)) {
    throw std::runtime_error("is a BMP of " + std::to_string(bits) + " bits, compression " +
                             std::to_string(compression) + "; 24 or 32 bits without compression are read");
  }
  const std::int64_t height = rows < 0 ? -rows : rows, pixel = bits / 8, pitch = (width * pixel + 3) / 4 * 4;
  Image image = blank(width, height);
  if (start < 54) throw std::runtime_error("has a damaged header");
  need(data, start + pitch * height);
  for (std::int64_t y = 0; y < height; ++y) {
    const std::uint8_t* row = &data[static_cast<std::size_t>(start + (rows < 0 ? y : height - 1 - y) * pitch)];
    std::uint8_t* to = &image.pixels[static_cast<std::size_t>(3 * width * y)];
    for (std::int64_t x = 0; x < width; ++x) {
      for (int c = 0; c < 3; ++c) to[3 * x + c] = row[pixel * x + 2 - c];
    }
  }
  return image;
}

Image decode(const Bytes& data) {
  if (data.size() > 2 && data[0] == 'P' && (data[1] == '5' || data[1] == '6')) return decode_pnm(data);
  if (data.size() > 2 && data[0] == 'B' && data[1] == 'M') return decode_bmp(data);
  if (data.size() > 2 && data[0] == 0xFF && data[1] == 0xD8) {
#ifdef CENTERMASK_HAVE_JPEG
    return decode_jpeg(data);
#else
    throw std::runtime_error("is a JPEG, and this program was built without libjpeg");
#endif
  }
  throw std::runtime_error(std::string("is none of ") + image_formats());
}

}  // namespace

const char* image_formats() {
#ifdef CENTERMASK_HAVE_JPEG
  return "PPM, PGM, BMP, JPEG";
#else
  return "PPM, PGM, BMP";
#endif
}

Image read_image(const std::string& path) {
  try {
    return decode(read_file(path));
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path + ": " + error.what());
  }
}

void write_ppm(const std::string& path, const Image& image) {
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "wb"), std::fclose);
  if (!file) throw std::runtime_error(path + ": cannot be written");
  std::fprintf(file.get(), "P6\n%lld %lld\n255\n", static_cast<long long>(image.width),
               static_cast<long long>(image.height));
  const bool whole = std::fwrite(image.pixels.data(), 1, image.pixels.size(), file.get()) == image.pixels.size();
  if (!whole || std::fflush(file.get()) != 0) throw std::runtime_error(path + ": cannot be written");
}

}  // namespace example
