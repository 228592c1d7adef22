// The median of each channel over 3x3 neighbours, without TensorFlow; median_kernels.inc has the innermost loops.
#pragma once
#include <algorithm>

#include "parallel.h"

namespace median {

constexpr int kNeighbours = 9;  // row by row
constexpr int64_t kChannels = 128;  // that a thread takes at a time: three rows of them stay in its cache

// Some channels, up to kChannels, of a position: where in a map those of itself and of its neighbours begin.
struct Position {
  int64_t here, neighbours[kNeighbours], channels;
};

// What median_kernels.inc defines for an instruction set, each for one position. All maps are like x, and y has its medians.
struct Kernels {
  void (*medians)(const Position& p, const float* x, float* y);
  // Adds the gradient to the median to the neighbour that it is of: the first one, or the last one if none is (NaN).
  void (*add_gradients)(const Position& p, const float* x, const float* y, const float* upstream, float* gradient);
  // What `values` has at that neighbour.
  void (*choose)(const Position& p, const float* x, const float* y, const float* values, float* chosen);
};

const Kernels& BestKernels();

// A batch of maps, (images, height, width, channels). Beyond its edge a map is repeated.
struct Maps {
  int64_t images, height, width, channels;

  int64_t size() const { return images * height * width * channels; }
  int64_t parts() const { return (channels + kChannels - 1) / kChannels; }  // of channels
  int64_t cost() const { return 8 * height * width * std::min(channels, kChannels); }

  // Calls of_position(Position) for all. Up to kChannels of an image's channels are one thread's, so that no two threads
  // add to the same gradient.
  template <class OfPosition>
  void ForEach(const cpu_conv::Parallel& threads, const OfPosition& of_position) const {
    threads(images * parts(), cost(), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t image = unit / parts(), first = unit % parts() * kChannels;
        for (int64_t row = 0; row < height; ++row) {
          for (int64_t column = 0; column < width; ++column) of_position(At(image, row, column, first));
        }
      }
    });
  }

 private:
  Position At(int64_t image, int64_t row, int64_t column, int64_t first) const {
    Position p;
    p.channels = std::min(kChannels, channels - first);
    for (int k = 0; k < kNeighbours; ++k) {
      const int64_t r = std::min(std::max<int64_t>(row + k / 3 - 1, 0), height - 1);
      const int64_t c = std::min(std::max<int64_t>(column + k % 3 - 1, 0), width - 1);
      p.neighbours[k] = ((image * height + r) * width + c) * channels + first;
    }
    p.here = p.neighbours[kNeighbours / 2];
    return p;
  }
};

}  // namespace median
