// The median of each channel over 3x3 neighbours, without TensorFlow; median_kernels.inc has the innermost loops.
#pragma once
#include <algorithm>

#include "parallel.h"

namespace median {

constexpr int kNeighbours = 9;  // row by row
constexpr int64_t kTogether = 128;  // channels of a position that the gradient is computed of neighbour by neighbour
constexpr int64_t kChannels = 128;  // that a thread takes at least: fewer are too scattered to be read fast

// Some or all channels of a row of positions: where in a map they begin, in it and in the rows above and below.
struct Row {
  int64_t rows[3], width, step, channels;  // `step`: elements from a position to the next

  int64_t here(int64_t column) const { return rows[1] + column * step; }
  // Those of a position's neighbours. Beyond its edge a map is repeated.
  void Neighbours(int64_t column, int64_t* neighbours) const {
    const int64_t columns[3] = {std::max<int64_t>(column - 1, 0), column, std::min(column + 1, width - 1)};
    for (int k = 0; k < kNeighbours; ++k) neighbours[k] = rows[k / 3] + columns[k % 3] * step;
  }
};

// What median_kernels.inc defines for an instruction set, each for one row. All maps are like x, and y has its medians.
struct Kernels {
  void (*medians)(const Row& row, const float* x, float* y);
  // Adds the gradient to the median to the neighbour that it is of: the first one, or the last one if none is (NaN). Rows from
  // the top down; what was in `gradient` before is cleared.
  void (*add_gradients)(const Row& row, const float* x, const float* y, const float* upstream, float* gradient);
  // What `values` has at that neighbour.
  void (*choose)(const Row& row, const float* x, const float* y, const float* values, float* chosen);
};

const Kernels& BestKernels();

// A batch of maps, (images, height, width, channels), for some threads.
struct Maps {
  int64_t images, height, width, channels, threads;

  // Calls of_row(Row) for all, an image's from the top down in one thread. Where there are more threads than images, an image's
  // channels are divided, so that no two threads add to the same gradient.
  template <class OfRow>
  void ForEach(const cpu_conv::Parallel& parallel, const OfRow& of_row) const {
    const int64_t most = std::max<int64_t>(1, channels / kChannels);
    const int64_t parts = std::min(most, (2 * threads + images - 1) / images);
    parallel(images * parts, 16 * height * width * channels / parts, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t image = unit / parts, part = unit % parts;
        const int64_t first = channels * part / parts, last = channels * (part + 1) / parts;
        for (int64_t row = 0; row < height; ++row) of_row(At(image, row, first, last - first));
      }
    });
  }

 private:
  Row At(int64_t image, int64_t row, int64_t first, int64_t count) const {
    Row r = {{}, width, channels, count};
    for (int i = 0; i < 3; ++i) {
      const int64_t near = std::min(std::max<int64_t>(row + i - 1, 0), height - 1);
      r.rows[i] = (image * height + near) * width * channels + first;
    }
    return r;
  }
};

}  // namespace median
