// Two kernels. The first reads the heatmap once and writes three numbers for each group of 512 cells: its best peak,
// its worst, and how many it has. These give a bound that at least K peaks reach and that the best peaks of at most K
// groups reach; the second kernel, one block for an image, works it out, looks at those groups again, and sorts what it
// finds. So no list of candidates exists that could overflow, and a map where every cell is a peak costs what any map
// costs. K above kListKeys goes through the workspace and a few launches more.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "centermask/decode.h"
#include "cuda/mma.h"
#include "cuda/runtime.h"
#include "decode/peaks.cuh"
#include "decode/select.cuh"
#include "decode/threshold.h"
#include "device_check.h"

namespace centermask {

namespace {

using namespace decode;

constexpr const char* kOp = "decode_centers";
constexpr const char* kPrefix = "decode_centers: ";
constexpr int kScanThreads = 256;
constexpr int kScanWarps = kScanThreads / kLanes;
constexpr int kSelectWarps = kSelectThreads / kLanes;
constexpr std::uint32_t kListKeys = 4096;  // in shared memory; also the chunk of the sort in device memory
constexpr int kEmitThreads = 256;

struct GroupSummary {
  Key best;  // 0 if the group has no peak
  Key worst;
};

struct Outputs {
  float* scores;
  std::int64_t* labels;
  std::int64_t* index;
  std::int64_t* count;
  std::int64_t top_k;
};

// Device memory of the caller.
struct Scratch {
  GroupSummary* summaries;  // [N, groups]
  std::uint32_t* counts;    // [N, groups]: peaks of a group
  std::uint32_t* active;    // [N, active_stride]: the groups that hold the best peaks
  Key* sorted;              // [N, sorted_stride], for K above kListKeys
  std::uint32_t active_stride;
  std::uint32_t sorted_stride;
};

template <class T, Layout layout>
__global__ void __launch_bounds__(kScanThreads, 2) scan_kernel(HeatmapView map, std::int64_t images, Scratch scratch) {
  const std::uint32_t group = blockIdx.x * kScanWarps + threadIdx.x / kLanes;
  if (group >= map.groups) return;
  for (std::int64_t image = blockIdx.y; image < images; image += gridDim.y) {
    const Patch patch = load_patch<T, layout>(map, image, group);
    GroupSummary summary{0, ~Key(0)};
    auto count = static_cast<std::uint32_t>(__popc(patch.peaks));
    if (__any_sync(kFull, count > 0)) {
      patch.for_each_peak([&](Key key) {
        summary.best = key > summary.best ? key : summary.best;
        summary.worst = key < summary.worst ? key : summary.worst;
      });
      for (int distance = kLanes / 2; distance > 0; distance /= 2) {
        const Key best = __shfl_xor_sync(kFull, summary.best, distance);
        const Key worst = __shfl_xor_sync(kFull, summary.worst, distance);
        summary.best = best > summary.best ? best : summary.best;
        summary.worst = worst < summary.worst ? worst : summary.worst;
        count += __shfl_xor_sync(kFull, count, distance);
      }
    }
    if (threadIdx.x % kLanes == 0) {
      scratch.summaries[image * map.groups + group] = summary;
      scratch.counts[image * map.groups + group] = count;
    }
  }
}

__device__ void write_center(const Outputs& outputs, const HeatmapView& map, std::int64_t row, bool exists, Key key) {
  const std::uint32_t plane = map.height * map.width;
  const std::uint32_t position = key_position(key);
  // In double as on the CPU; it is done K times only.
  outputs.scores[row] = exists ? static_cast<float>(1.0 / (1.0 + exp(-static_cast<double>(key_logit(key))))) : 0.0F;
  outputs.labels[row] = exists ? static_cast<std::int64_t>(position / plane) : -1;
  outputs.index[row] = exists ? static_cast<std::int64_t>(position % plane) : 0;
}

// Calls take(key) for every peak of the active groups that reaches the bound, in any order.
template <class T, Layout layout, class Take>
__device__ void for_each_reaching(const HeatmapView& map, const Scratch& scratch, std::uint32_t active_count, Key bound,
                                  const Take& take) {
  const std::int64_t image = cuda::computed_here(blockIdx.x);  // here, not before: registers are scarce in the loop
  const std::uint32_t* active = scratch.active + image * scratch.active_stride;
  for (std::uint32_t i = threadIdx.x / kLanes; i < active_count; i += kSelectWarps) {
    load_patch<T, layout>(map, image, active[i]).for_each_peak([&](Key key) {
      if (key >= bound) take(key);
    });
  }
}

// One block for each image. `k` is K, or the number of cells where that is less.
template <class T, Layout layout>
__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(HeatmapView map, std::uint32_t k, Scratch scratch, Outputs outputs) {
  __shared__ SelectMemory memory;
  __shared__ Key list[kListKeys];
  __shared__ std::uint32_t counter;
  const std::int64_t image = blockIdx.x;
  const std::uint32_t thread = threadIdx.x;
  const GroupSummary* summaries = scratch.summaries + image * map.groups;
  const std::uint32_t* counts = scratch.counts + image * map.groups;
  std::uint32_t* active = scratch.active + image * scratch.active_stride;

  // A group with best peak b and worst peak w certainly has one peak that reaches b, and `count` that reach w.
  Key bound = select_key(k, memory, [&](const auto& take) {
    for (std::uint32_t group = thread; group < map.groups; group += kSelectThreads) {
      const std::uint32_t count = counts[group];
      if (count == 0) continue;
      take(summaries[group].best, 1u);
      if (count > 1) take(summaries[group].worst, count - 1);
    }
  });
  if (thread == 0) counter = 0;
  __syncthreads();
  // At most k groups: by the bound's choice the best peaks that reach it are at most k.
  for (std::uint32_t group = thread; group < map.groups; group += kSelectThreads) {
    const Key best = summaries[group].best;
    if (best != 0 && best >= bound) active[atomicAdd(&counter, 1u)] = group;
  }
  __syncthreads();
  const std::uint32_t active_count = counter;
  __syncthreads();

  const bool in_list = k <= kListKeys;
  Key* keys = in_list ? list : scratch.sorted + image * scratch.sorted_stride;
  const std::uint32_t capacity = in_list ? kListKeys : scratch.sorted_stride;
  const auto collect = [&] {
    if (thread == 0) counter = 0;
    __syncthreads();
    for_each_reaching<T, layout>(map, scratch, active_count, bound, [&](Key key) {
      const std::uint32_t slot = atomicAdd(&counter, 1u);
      if (slot < capacity) keys[slot] = key;
    });
    __syncthreads();
    return counter;
  };
  std::uint32_t found = in_list ? collect() : capacity + 1;
  if (found > capacity) {
    // Peaks crowd in few groups: find the exact K-th, at the price of some more looks at these groups.
    bound = select_key(k, memory, [&](const auto& take) {
      for_each_reaching<T, layout>(map, scratch, active_count, bound, [&](Key key) { take(key, 1u); });
    });
    found = collect();
  }

  const std::uint32_t centers = found < k ? found : k;
  if (thread == 0) outputs.count[image] = centers;
  if (!in_list) {
    for (std::uint32_t i = found + thread; i < capacity; i += kSelectThreads) keys[i] = 0;
    return;
  }
  std::uint32_t length = 2;
  while (length < found) length *= 2;
  for (std::uint32_t i = found + thread; i < length; i += kSelectThreads) list[i] = 0;
  __syncthreads();
  bitonic_sort(list, length);
  for (std::int64_t i = thread; i < outputs.top_k; i += kSelectThreads) {
    const bool exists = i < centers;
    write_center(outputs, map, image * outputs.top_k + i, exists, exists ? list[i] : 0);
  }
}

// ---- K above kListKeys: a bitonic sort in device memory ----

// The stages of `first_size` to `last_size`, as far as they work within chunks of kListKeys.
__global__ void __launch_bounds__(kSelectThreads)
    sort_chunks_kernel(Key* keys, std::int64_t chunks, std::uint32_t run, std::uint32_t first_size,
                       std::uint32_t last_size) {
  __shared__ Key list[kListKeys];
  for (std::int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    Key* own = keys + chunk * kListKeys;
    for (std::uint32_t i = threadIdx.x; i < kListKeys; i += kSelectThreads) list[i] = own[i];
    __syncthreads();
    const auto base = static_cast<std::uint32_t>(chunk * kListKeys & (run - 1));
    for (std::uint64_t size = first_size; size <= last_size; size *= 2) {
      bitonic_stage(list, kListKeys, base, static_cast<std::uint32_t>(size));
    }
    for (std::uint32_t i = threadIdx.x; i < kListKeys; i += kSelectThreads) own[i] = list[i];
    __syncthreads();
  }
}

// One step of a stage, with a distance of kListKeys or more. `run` keys (a power of two) belong to each image.
__global__ void __launch_bounds__(kSelectThreads)
    sort_step_kernel(Key* keys, std::int64_t pairs, std::uint32_t run, std::uint32_t size, std::uint32_t distance) {
  const std::int64_t threads = static_cast<std::int64_t>(gridDim.x) * kSelectThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kSelectThreads + threadIdx.x; i < pairs; i += threads) {
    const std::int64_t image = i / (run / 2);
    const auto pair = static_cast<std::uint32_t>(i % (run / 2));
    const std::uint32_t low = 2 * pair - (pair & (distance - 1));
    order_pair(keys + image * run, low, low + distance, (low & size) == 0);
  }
}

__global__ void __launch_bounds__(kEmitThreads)
    emit_kernel(HeatmapView map, std::int64_t rows, Scratch scratch, Outputs outputs) {
  const std::int64_t threads = static_cast<std::int64_t>(gridDim.x) * kEmitThreads;
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kEmitThreads + threadIdx.x; row < rows;
       row += threads) {
    const std::int64_t image = row / outputs.top_k;
    const std::int64_t i = row % outputs.top_k;
    const bool exists = i < outputs.count[image];
    write_center(outputs, map, row, exists, exists ? scratch.sorted[image * scratch.sorted_stride + i] : 0);
  }
}

// ---- the host's side ----

struct Plan {
  HeatmapView map;
  std::int64_t images = 0;
  std::uint32_t k = 0;  // no more than there are cells
  std::uint32_t active_stride = 0;
  std::uint32_t sorted_stride = 0;
  std::size_t summaries_at = 0;
  std::size_t counts_at = 0;
  std::size_t active_at = 0;
  std::size_t sorted_at = 0;
  std::size_t bytes = 0;
};

std::uint32_t ceil_div(std::uint32_t a, std::uint32_t b) { return a / b + (a % b != 0); }

Plan make_plan(const TensorView& heatmap, const DecodeParams& params) {
  if (heatmap.rank != 4) fail(ErrorKind::kValue, kPrefix, "heatmap must be [N, C, H, W], got ", shape_text(heatmap));
  if (params.top_k < 1) fail(ErrorKind::kValue, kPrefix, "top_k must be >= 1, got ", params.top_k);
  Plan plan;
  plan.images = heatmap.shape[0];
  constexpr std::int64_t most = std::numeric_limits<std::uint32_t>::max();
  std::int64_t cells = 1;
  bool empty = false;
  for (int i = 1; i < 4; ++i) empty = empty || heatmap.shape[i] == 0;
  for (int i = 1; i < 4 && !empty; ++i) {
    if (heatmap.shape[i] > most / cells) {
      fail(ErrorKind::kUnsupported, kPrefix, "heatmap must have less than 2^32 cells per image on CUDA, got ",
           shape_text(heatmap));
    }
    cells *= heatmap.shape[i];
  }
  if (empty) cells = 0;
  plan.k = static_cast<std::uint32_t>(std::min(params.top_k, cells));
  HeatmapView& map = plan.map;
  if (!empty) {
    map.data = heatmap.data;
    map.image_stride = heatmap.stride[0];
    map.class_stride = heatmap.stride[1];
    map.row_stride = heatmap.stride[2];
    map.column_stride = heatmap.stride[3];
    map.classes = static_cast<std::uint32_t>(heatmap.shape[1]);
    map.height = static_cast<std::uint32_t>(heatmap.shape[2]);
    map.width = static_cast<std::uint32_t>(heatmap.shape[3]);
    map.patch_columns = ceil_div(map.width, kSide);
    map.patch_rows = ceil_div(map.height, kSide);
    map.patches = map.classes * map.patch_rows * map.patch_columns;
    map.groups = ceil_div(map.patches, kLanes);
  }
  plan.active_stride = std::min(plan.k, map.groups);
  if (plan.k > kListKeys) {
    std::uint64_t run = kListKeys;
    while (run < plan.k) run *= 2;
    if (run > most / 2 + 1) fail(ErrorKind::kUnsupported, kPrefix, "top_k must be <= 2^31 on CUDA, got ", params.top_k);
    plan.sorted_stride = static_cast<std::uint32_t>(run);
  }
  const auto images = static_cast<std::size_t>(plan.images);
  const auto reserve = [&plan](std::size_t bytes) {
    const std::size_t at = plan.bytes;
    plan.bytes += (bytes + 255) / 256 * 256;
    return at;
  };
  plan.summaries_at = reserve(images * map.groups * sizeof(GroupSummary));
  plan.counts_at = reserve(images * map.groups * sizeof(std::uint32_t));
  plan.active_at = reserve(images * plan.active_stride * sizeof(std::uint32_t));
  plan.sorted_at = reserve(images * plan.sorted_stride * sizeof(Key));
  return plan;
}

Layout layout_of(const TensorView& heatmap) {
  const auto element = static_cast<std::uintptr_t>(dtype_size(heatmap.dtype));
  bool vector = heatmap.stride[3] == 1 && heatmap.shape[3] % kSide == 0 &&
                reinterpret_cast<std::uintptr_t>(heatmap.data) % (kSide * element) == 0;
  for (int i = 0; i < 3; ++i) vector = vector && (heatmap.shape[i] == 1 || heatmap.stride[i] % kSide == 0);
  if (vector) return Layout::kVector;
  return heatmap.stride[1] == 1 && heatmap.shape[1] > 1 ? Layout::kClassesLast : Layout::kStrided;
}

unsigned blocks_for(std::int64_t work, std::int64_t per_block) {
  return static_cast<unsigned>(std::min<std::int64_t>((work + per_block - 1) / per_block, 1 << 20));
}

template <class T, Layout layout>
void run(const Plan& plan, const Scratch& scratch, const Outputs& outputs, const CudaStream& stream) {
  if (plan.map.groups > 0) {
    const dim3 grid(ceil_div(plan.map.groups, kScanWarps),
                    static_cast<unsigned>(std::min<std::int64_t>(plan.images, 65535)));
    cuda::launch(kOp, scan_kernel<T, layout>, grid, kScanThreads, 0, stream, plan.map, plan.images, scratch);
  }
  cuda::launch(kOp, select_kernel<T, layout>, static_cast<unsigned>(plan.images), kSelectThreads, 0, stream, plan.map,
               plan.k, scratch, outputs);
  if (plan.sorted_stride == 0) return;
  const std::uint32_t run = plan.sorted_stride;
  const std::int64_t keys = plan.images * run;
  const std::int64_t chunks = keys / kListKeys;
  cuda::launch(kOp, sort_chunks_kernel, blocks_for(chunks, 1), kSelectThreads, 0, stream, scratch.sorted, chunks, run,
               2u, kListKeys);
  for (std::uint64_t size = 2 * kListKeys; size <= run; size *= 2) {
    for (std::uint64_t distance = size / 2; distance >= kListKeys; distance /= 2) {
      cuda::launch(kOp, sort_step_kernel, blocks_for(keys / 2, kSelectThreads), kSelectThreads, 0, stream,
                   scratch.sorted, keys / 2, run, static_cast<std::uint32_t>(size),
                   static_cast<std::uint32_t>(distance));
    }
    cuda::launch(kOp, sort_chunks_kernel, blocks_for(chunks, 1), kSelectThreads, 0, stream, scratch.sorted, chunks, run,
                 static_cast<std::uint32_t>(size), static_cast<std::uint32_t>(size));
  }
  const std::int64_t rows = plan.images * outputs.top_k;
  cuda::launch(kOp, emit_kernel, blocks_for(rows, kEmitThreads), kEmitThreads, 0, stream, plan.map, rows, scratch,
               outputs);
}

template <class T>
void run(const TensorView& heatmap, const Plan& plan, const Scratch& scratch, const Outputs& outputs,
         const CudaStream& stream) {
  switch (layout_of(heatmap)) {
    case Layout::kVector: return run<T, Layout::kVector>(plan, scratch, outputs, stream);
    case Layout::kClassesLast: return run<T, Layout::kClassesLast>(plan, scratch, outputs, stream);
    case Layout::kStrided: return run<T, Layout::kStrided>(plan, scratch, outputs, stream);
  }
}

}  // namespace

std::size_t decode_centers_workspace_cuda(const TensorView& heatmap, const DecodeParams& params) {
  return make_plan(heatmap, params).bytes;
}

void decode_centers_cuda(const TensorView& heatmap, const DecodeParams& params, const Workspace& workspace,
                         const TensorView& scores, const TensorView& labels, const TensorView& index,
                         const TensorView& count, const CudaStream& stream) {
  check_decode_centers(heatmap, params, scores, labels, index, count);
  check_on_stream(kPrefix, "heatmap", heatmap, stream);
  Plan plan = make_plan(heatmap, params);
  if (plan.images == 0) return;
  if (workspace.bytes < plan.bytes) {
    fail(ErrorKind::kValue, kPrefix, "workspace must have ", plan.bytes, " bytes, got ", workspace.bytes);
  }
  plan.map.bound = threshold_logit<float>(params.score_threshold);
  auto* memory = static_cast<unsigned char*>(workspace.data);
  const Scratch scratch{reinterpret_cast<GroupSummary*>(memory + plan.summaries_at),
                        reinterpret_cast<std::uint32_t*>(memory + plan.counts_at),
                        reinterpret_cast<std::uint32_t*>(memory + plan.active_at),
                        reinterpret_cast<Key*>(memory + plan.sorted_at),
                        plan.active_stride,
                        plan.sorted_stride};
  const Outputs outputs{scores.ptr<float>(), labels.ptr<std::int64_t>(), index.ptr<std::int64_t>(),
                        count.ptr<std::int64_t>(), params.top_k};
  const cuda::DeviceGuard guard(stream, kOp);
  switch (heatmap.dtype) {
    case DType::kFloat16: return run<__half>(heatmap, plan, scratch, outputs, stream);
    case DType::kBFloat16: return run<__nv_bfloat16>(heatmap, plan, scratch, outputs, stream);
    default: return run<float>(heatmap, plan, scratch, outputs, stream);
  }
}

}  // namespace centermask
