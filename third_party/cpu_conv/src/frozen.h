// Convolutions with constant weights, 1x1 and, of stride 1, 3x3, without TensorFlow. frozen_kernels.inc has the innermost
// loops.
//
// 1x1: some pixels' channels at a time are multiplied by panels of weights, in registers, from which the result goes to
// memory with all that is added to it.
//
// 3x3: Winograd's algorithm, F(4x4, 3x3). A tile of 4x4 outputs is computed from the 6x6 inputs that it meets: both, and
// the weights, as polynomials in two variables, by their values in 36 points. In each point a convolution is a product of
// matrices, (tiles x channels in) by (channels in x channels out): 36 multiplications for 16 outputs instead of 144. See
// Lavin and Gray, "Fast algorithms for convolutional neural networks", 2015. The points of a variable are 0, +-3/4, +-3/2
// and infinity instead of the usual 0, +-1, +-2 and infinity, which halves the rounding errors.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "parallel.h"

namespace frozen {

using cpu_conv::InThisThread;
using cpu_conv::Parallel;

constexpr int kPanel = 32;    // channels out whose weights lie together
constexpr int kPadding = 16;  // elements between rows of matrices: rows of 2^k bytes would compete for places in a cache
constexpr int kPixels = 24;   // that are multiplied together by a thread, 1x1
constexpr int kTile = 4;      // outputs of a tile, in each direction
constexpr int kPatch = 6;     // inputs that they meet
constexpr int kPoints = 36;
constexpr int kUnitTiles = 48;     // that are transformed and multiplied together by a thread
constexpr int kSharedTiles = 256;  // and by all of them
constexpr int64_t kSharedBytes = 16 << 20;  // of weights, from which on they are too large to be read by each thread

constexpr float kP = 0.75f, kQ = 1.5f;  // the points
constexpr float kP2 = kP * kP, kQ2 = kQ * kQ, kP3 = kP2 * kP, kQ3 = kQ2 * kQ;

typedef uint16_t bfloat;  // its bits

struct FreeAligned {
  void operator()(void* p) const { std::free(p); }
};

// Memory that is not initialised, from a cache line's beginning on.
template <typename T>
std::unique_ptr<T[], FreeAligned> Aligned(size_t count) {
  void* p;
  if (posix_memalign(&p, 64, count * sizeof(T))) throw std::bad_alloc();
  return std::unique_ptr<T[], FreeAligned>(static_cast<T*>(p));
}

// y = convolution of x + bias + addend, where mask > 0, and 0 elsewhere; all NHWC, padding SAME. With the ReLU of x or of
// the addend in its place, if so said. Without a bias, addend or mask, null, nothing is done in its place. Channels are
// multiples of kPanel. For 1x1 alone: a stride; and an addend, which with a stride of its own has values for every
// so-manieth row and column of y.
template <typename T>
struct Convolution {
  int64_t batch, height, width;  // of y; with a stride x has as many rows and columns as x_height and x_width say
  int in, out;
  const T* x;
  const T* weights;  // (points, out / kPanel, in, kPanel); in bfloat (points, out / kPanel, in / 2, kPanel, 2)
  const T *bias, *addend, *mask;
  T* y;
  bool relu, relu_addend;
  int stride, addend_stride;
  int64_t x_height, x_width;

  int64_t pixels() const { return batch * height * width; }
  int64_t tile_columns() const { return (width + kTile - 1) / kTile; }
  int64_t tiles_of_image() const { return (height + kTile - 1) / kTile * tile_columns(); }
  int64_t tiles() const { return batch * tiles_of_image(); }

  // Where pixel `p` of y finds its inputs, as a pixel of x,
  int64_t source(int64_t p) const {
    if (stride == 1) return p;
    return (p / (height * width) * x_height + p / width % height * stride) * x_width + p % width * stride;
  }
  // and where its addend is, as a pixel of that; -1: nowhere.
  int64_t addend_of(int64_t p) const {
    if (addend_stride == 1) return p;
    const int64_t row = p / width % height, column = p % width, step = addend_stride;
    if (row % step || column % step) return -1;
    return (p / (height * width) * ((height + step - 1) / step) + row / step) * ((width + step - 1) / step) + column / step;
  }
};

// Where a tile is in its map.
template <typename T>
struct Tile {
  int64_t image, row, column;

  Tile(const Convolution<T>& c, int64_t number)
      : image(number / c.tiles_of_image()), row(number % c.tiles_of_image() / c.tile_columns() * kTile),
        column(number % c.tile_columns() * kTile) {}

  // Of a pixel, which may lie outside of the map, as an index among all pixels; -1 where it does.
  int64_t pixel(const Convolution<T>& c, int i, int j) const {
    const int64_t r = row + i, s = column + j;
    return r >= 0 && r < c.height && s >= 0 && s < c.width ? (image * c.height + r) * c.width + s : -1;
  }
};

// What frozen_kernels.inc defines for an instruction set and a type. In a matrix a row has what a pixel has, or a tile in
// one point.
template <typename T>
struct Kernels {
  // 1x1: `count` pixels from `first` on. `copy` has room for their inputs.
  void (*pixels)(const Convolution<T>& c, int64_t first, int64_t count, T* copy);
  // 3x3, of `count` tiles from `first` on those from begin to end: to a matrix of inputs for each point,
  void (*inputs)(const Convolution<T>& c, int64_t first, int64_t begin, int64_t end, int64_t count, T* to);
  // of one point and panel to the products,
  void (*multiply)(const T* inputs, int in, int64_t rows, const T* panel, float* products, int64_t step);
  // from the products to the outputs. Adds no addend.
  void (*outputs)(const Convolution<T>& c, int64_t first, int64_t begin, int64_t end, int64_t count,
                  const float* products);
  // Weights, those of pairs of channels in from begin to end, counted through all panels. `w`: (1, 1, in, out) or (3, 3, in,
  // out). Turned: of the gradient to the inputs, from `out` channels to `in`.
  void (*weights)(const float* w, int taps, int64_t in, int64_t out, bool turned, int64_t begin, int64_t end, T* to);
};

template <typename T>
void TransformWeights(const Kernels<T>& kernels, const float* w, int taps, int64_t in, int64_t out, bool turned, T* to,
                      const Parallel& threads) {
  threads(in * out / kPanel / 2, taps == 1 ? 200 : 2000, [&](int64_t begin, int64_t end) {
    kernels.weights(w, taps, in, out, turned, begin, end, to);
  });
}

// In both, every output is computed by the same operations in the same order, whatever the number of threads or images.

template <typename T>
void Convolve1x1(const Kernels<T>& kernels, const Convolution<T>& c, const Parallel& threads) {
  const int64_t units = (c.pixels() + kPixels - 1) / kPixels;
  threads(units, int64_t(kPixels) * c.in * c.out / 32, [&](int64_t begin, int64_t end) {
    const auto copy = Aligned<T>(kPixels * (c.in + kPadding));
    for (int64_t first = begin * kPixels; first < std::min(end * kPixels, c.pixels()); first += kPixels) {
      kernels.pixels(c, first, std::min<int64_t>(kPixels, c.pixels() - first), copy.get());
    }
  });
}

// `count` tiles from `first` on.
template <typename T>
void ConvolveTiles(const Kernels<T>& kernels, const Convolution<T>& c, int64_t first, int64_t count, T* inputs,
                   float* products, const Parallel& threads) {
  const int64_t in = c.in + kPadding, out = c.out + kPadding, panels = c.out / kPanel;
  threads(count, 20 * c.in, [&](int64_t begin, int64_t end) { kernels.inputs(c, first, begin, end, count, inputs); });
  threads(kPoints * panels, count * c.in, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t point = i / panels, panel = i % panels;
      kernels.multiply(inputs + point * count * in, c.in, count, c.weights + i * c.in * kPanel,
                       products + point * count * out + panel * kPanel, out);
    }
  });
  threads(count, 20 * c.out, [&](int64_t begin, int64_t end) { kernels.outputs(c, first, begin, end, count, products); });
}

template <typename T>
void Convolve3x3(const Kernels<T>& kernels, const Convolution<T>& c, int num_threads, const Parallel& threads) {
  const int64_t in = c.in + kPadding, out = c.out + kPadding, tiles = c.tiles();
  const bool shared = tiles < kUnitTiles * num_threads || int64_t(sizeof(T)) * kPoints * c.in * c.out > kSharedBytes;
  const int64_t count = shared ? kSharedTiles : kUnitTiles, units = (tiles + count - 1) / count;
  const auto work = [&](int64_t begin, int64_t end, const Parallel& workers) {
    const auto inputs = Aligned<T>(kPoints * std::min(count, tiles) * in);
    const auto products = Aligned<float>(kPoints * std::min(count, tiles) * out);
    for (int64_t first = begin * count; first < std::min(end * count, tiles); first += count) {
      ConvolveTiles(kernels, c, first, std::min(count, tiles - first), inputs.get(), products.get(), workers);
    }
  };
  if (shared) return work(0, units, threads);
  threads(units, count * c.in * (c.out + 40), [&](int64_t begin, int64_t end) { work(begin, end, InThisThread); });
}

}  // namespace frozen
