// From a picture to the network's input, as docs/data_flow.md defines it and the Python package does it.
#pragma once

#include <centermask/parallel.h>

#include <vector>

#include "image_io.h"
#include "network.h"

namespace example {

// The input, whose data is `storage`.
NetworkInput prepare(const Image& image, const ModelInfo& info, const centermask::ParallelFor& parallel,
                     std::vector<float>& storage);

}  // namespace example
