// One pass over the heatmap. A cell is looked at only if it reaches the bound: the threshold's logit at first, and
// once K peaks are known whatever beats the worst of the best K. Nearly all blocks of cells fail that test, which is
// a single vector comparison; the 3x3 comparison runs on the few cells that pass it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "centermask/decode.h"
#include "centermask/error.h"
#include "decode/threshold.h"

namespace centermask {

namespace {

constexpr std::int64_t kBlock = 64;           // cells tested at once
constexpr std::int64_t kMinUnitCells = 8192;  // below this a further thread costs more than it brings

template <class T>
struct Candidate {
  T logit;
  std::int64_t position;  // class * H * W + index: its order is the order of class, then index
};

template <class T>
bool better(const Candidate<T>& a, const Candidate<T>& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.position < b.position);
}

// A range of rows of one image, numbered class * H + y, and the best K peaks found in it.
template <class T>
struct Unit {
  std::int64_t image = 0;
  std::int64_t first_row = 0;
  std::int64_t last_row = 0;
  T bound = 0;
  std::vector<Candidate<T>> candidates;  // capacity reserved beforehand: tasks must not throw
  std::size_t capacity = 0;
  std::vector<T> scratch;  // three gathered rows, for maps whose cells are not adjacent in memory
};

template <class T>
void keep_best(Unit<T>& unit, std::size_t k) {
  if (unit.candidates.size() <= k) return;
  auto kth = unit.candidates.begin() + static_cast<std::ptrdiff_t>(k) - 1;
  std::nth_element(unit.candidates.begin(), kth, unit.candidates.end(), better<T>);
  // Later cells of this unit come later in the order, so an equal logit no longer gets in.
  unit.bound = std::nextafter(kth->logit, std::numeric_limits<T>::infinity());
  unit.candidates.resize(k);
}

template <class T>
bool any_reaches(const T* values, T bound) {
  int any = 0;
  for (std::int64_t i = 0; i < kBlock; ++i) any |= static_cast<int>(values[i] >= bound);
  return any != 0;
}

// `above` and `below` are null at the border of the map. Written so that NaN never suppresses.
template <class T>
bool is_peak(const T* above, const T* row, const T* below, std::int64_t x, std::int64_t width) {
  const T value = row[x];
  const std::int64_t first = std::max<std::int64_t>(x - 1, 0);
  const std::int64_t last = std::min(x + 1, width - 1);
  for (const T* line : {above, row, below}) {
    if (line == nullptr) continue;
    for (std::int64_t i = first; i <= last; ++i) {
      if (line[i] > value) return false;
    }
  }
  return true;
}

template <class T>
class Scan {
 public:
  Scan(const TensorView& heatmap, std::size_t k, Unit<T>& unit) : map_(heatmap), k_(k), unit_(unit) {}

  void run() {
    const std::int64_t height = map_.shape[2];
    for (std::int64_t row = unit_.first_row; row < unit_.last_row; ++row) {
      const std::int64_t c = row / height;
      const std::int64_t y = row % height;
      const T* above = y > 0 ? line(c, y - 1) : nullptr;
      const T* here = line(c, y);
      const T* below = y + 1 < height ? line(c, y + 1) : nullptr;
      scan_row(above, here, below, (c * height + y) * map_.shape[3]);
    }
    keep_best(unit_, k_);
  }

 private:
  // Row y of class c with adjacent cells.
  const T* line(std::int64_t c, std::int64_t y) {
    const T* source = map_.ptr<T>() + unit_.image * map_.stride[0] + c * map_.stride[1] + y * map_.stride[2];
    const std::int64_t width = map_.shape[3];
    if (map_.stride[3] == 1 || width == 1) return source;
    const std::int64_t slot = y % 3;
    T* copy = unit_.scratch.data() + slot * width;
    const std::int64_t row = c * map_.shape[2] + y;
    if (held_[slot] != row) {
      for (std::int64_t x = 0; x < width; ++x) copy[x] = source[x * map_.stride[3]];
      held_[slot] = row;
    }
    return copy;
  }

  void scan_row(const T* above, const T* row, const T* below, std::int64_t position) {
    const std::int64_t width = map_.shape[3];
    std::int64_t x = 0;
    for (; x + kBlock <= width; x += kBlock) {
      if (any_reaches(row + x, unit_.bound)) scan_cells(above, row, below, position, x, x + kBlock);
    }
    scan_cells(above, row, below, position, x, width);
  }

  void scan_cells(const T* above, const T* row, const T* below, std::int64_t position, std::int64_t begin,
                  std::int64_t end) {
    for (std::int64_t x = begin; x < end; ++x) {
      if (!(row[x] >= unit_.bound) || !is_peak(above, row, below, x, map_.shape[3])) continue;
      if (unit_.candidates.size() == unit_.capacity) {
        keep_best(unit_, k_);
        if (!(row[x] >= unit_.bound)) continue;
      }
      unit_.candidates.push_back({row[x], position + x});
    }
  }

  const TensorView& map_;
  const std::size_t k_;
  Unit<T>& unit_;
  std::int64_t held_[3] = {-1, -1, -1};
};

template <class T>
void write_image(std::vector<Candidate<T>>& best, std::int64_t plane, std::int64_t k, T* scores, std::int64_t* labels,
                 std::int64_t* index, std::int64_t* count) {
  const auto found = std::min<std::int64_t>(static_cast<std::int64_t>(best.size()), k);
  std::partial_sort(best.begin(), best.begin() + found, best.end(), better<T>);
  *count = found;
  for (std::int64_t i = 0; i < found; ++i) {
    const Candidate<T>& candidate = best[static_cast<std::size_t>(i)];
    scores[i] = static_cast<T>(1.0 / (1.0 + std::exp(-static_cast<double>(candidate.logit))));
    labels[i] = candidate.position / plane;
    index[i] = candidate.position % plane;
  }
  std::fill(scores + found, scores + k, T(0));
  std::fill(labels + found, labels + k, std::int64_t(-1));
  std::fill(index + found, index + k, std::int64_t(0));
}

template <class T>
void decode(const TensorView& heatmap, const DecodeParams& params, const TensorView& scores, const TensorView& labels,
            const TensorView& index, const TensorView& count, const ParallelFor& parallel) {
  const std::int64_t images = heatmap.shape[0];
  const std::int64_t width = heatmap.shape[3];
  const std::int64_t plane = heatmap.shape[2] * width;
  const std::int64_t cells = heatmap.shape[1] * plane;
  const std::int64_t rows = cells == 0 ? 0 : heatmap.shape[1] * heatmap.shape[2];
  const std::int64_t k = params.top_k;
  if (images == 0) return;

  // Several ranges for each image where there are more threads than images, twice as many as needed for balance.
  std::int64_t parts = 1;
  if (parallel.threads > 1) {
    parts = std::max<std::int64_t>(1, (2 * parallel.threads + images - 1) / images);
    parts = std::max<std::int64_t>(1, std::min({parts, rows, cells / kMinUnitCells}));
  }
  std::vector<Unit<T>> units(static_cast<std::size_t>(images * parts));
  for (std::int64_t i = 0; i < images * parts; ++i) {
    Unit<T>& unit = units[static_cast<std::size_t>(i)];
    unit.image = i / parts;
    unit.first_row = rows * (i % parts) / parts;
    unit.last_row = rows * (i % parts + 1) / parts;
    unit.bound = threshold_logit<T>(params.score_threshold);
    // Room for K and as many again, so that selecting the best K costs O(1) for each candidate.
    const std::int64_t unit_cells = (unit.last_row - unit.first_row) * width;
    unit.capacity = static_cast<std::size_t>(k >= unit_cells ? unit_cells : std::min(unit_cells, 2 * k + 64));
    unit.candidates.reserve(unit.capacity);
    if (rows > 0 && heatmap.stride[3] != 1) unit.scratch.resize(static_cast<std::size_t>(3 * width));
  }
  parallel(images * parts, [&](std::int64_t i) {
    Scan<T>(heatmap, static_cast<std::size_t>(std::min(k, cells)), units[static_cast<std::size_t>(i)]).run();
  });
  for (std::int64_t n = 0; n < images; ++n) {
    std::vector<Candidate<T>>& best = units[static_cast<std::size_t>(n * parts)].candidates;
    for (std::int64_t part = 1; part < parts; ++part) {
      const auto& more = units[static_cast<std::size_t>(n * parts + part)].candidates;
      best.insert(best.end(), more.begin(), more.end());
    }
    write_image(best, plane, k, scores.ptr<T>() + n * k, labels.ptr<std::int64_t>() + n * k,
                index.ptr<std::int64_t>() + n * k, count.ptr<std::int64_t>() + n);
  }
}

}  // namespace

void decode_centers_cpu(const TensorView& heatmap, const DecodeParams& params, const TensorView& scores,
                        const TensorView& labels, const TensorView& index, const TensorView& count,
                        const ParallelFor& parallel) {
  check_decode_centers(heatmap, params, scores, labels, index, count);
  if (heatmap.device.type != DeviceType::kCpu) {
    fail(ErrorKind::kUnsupported, "decode_centers: heatmap must be on the CPU");
  }
  if (heatmap.dtype == DType::kFloat32) {
    decode<float>(heatmap, params, scores, labels, index, count, parallel);
  } else {
    decode<double>(heatmap, params, scores, labels, index, count, parallel);
  }
}

}  // namespace centermask
