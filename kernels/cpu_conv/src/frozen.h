// Convolutions with weights that were prepared before, without TensorFlow. frozen_kernels.inc has the innermost loops.
//
// 1x1, and 3x3 with a stride: the receptive fields of some pixels of the result are copied side by side and multiplied by panels of
// weights, in registers, from which the result goes to memory with all that is added to it.
//
// 3x3 of stride 1: Winograd's algorithm, F(4x4, 3x3). A tile of 4x4 outputs is computed from 6x6 inputs: both, and
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
constexpr int kChunk = 16;    // channels of a matrix that lie together
constexpr int kPadding = 16;  // elements between rows of matrices: rows of 2^k bytes would compete for places in a cache
constexpr int kPixels = 24;   // that are multiplied together by a thread, not by Winograd's algorithm
constexpr int kTile = 4;      // outputs of a tile, in each direction
constexpr int kPatch = 6;     // inputs that they are computed from
constexpr int kPoints = 36;
constexpr int kUnitTiles = 48;     // that are transformed and multiplied together by a thread
constexpr int kSharedTiles = 256;  // and by all of them
constexpr int kGroupedTiles = 24;  // where channels are in groups; of so many channels, if a group has not more:
constexpr int kGroupedChannels = 64;
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

// In one direction: the taps of a kernel for every step-th pixel of a result, from `first` on. Pixel first + i * step reads
// pixel start + i * stride + u of the source by the u-th of `taps`.
struct Line {
  int64_t first, count;  // of the result's pixels
  int step, stride, start, taps;

  int64_t source(int64_t i, int u) const { return start + i * stride + u; }
};

// y = convolution of x + bias + addend, where mask > 0, and 0 elsewhere; all NHWC. With the ReLU of x or of
// the addend in its place, if so said. Without a bias, addend or mask, null, nothing is done in its place. Channels are
// multiples of kPanel. But for Winograd's algorithm there may be an addend, which with a stride of its own has values for
// every so-manieth row and column of y, and `rows` and `columns` tell which pixels of y are computed.
template <typename T>
struct Convolution {
  int64_t batch, height, width;  // of y
  int64_t x_height, x_width;
  int in, out;
  int x_step, y_step;  // elements from a pixel to the next: as many as it has channels, but in a group's part
  const T* x;
  // Of kPoints points, or of one: (points, out / kPanel, depth, kPanel); in bfloat (points, out / kPanel, depth / 2, kPanel, 2)
  const T* weights;
  int64_t panels;  // of a point, of all groups
  const T *bias, *addend, *mask;
  T* y;
  bool relu, relu_addend;
  int addend_stride;
  // Weights that a channel of the result has: taps x `in`, of which those from first_depth on are used here. By Winograd's
  // algorithm `in`, or what `groups` groups of channels have each.
  int depth, first_depth;
  int groups;
  Line rows, columns;

  // What some of the groups do, as a convolution of its own.
  Convolution<T> part(int first, int count) const {
    Convolution<T> c = *this;
    c.groups = count;
    c.in = in / groups * count;
    c.out = out / groups * count;
    const int64_t x_begin = in / groups * first, y_begin = out / groups * first;
    c.x += x_begin;
    c.weights += y_begin * c.depth;
    for (const T** optional : {&c.bias, &c.mask}) *optional += *optional ? y_begin : 0;
    c.y += y_begin;
    return c;
  }

  int64_t pixels() const { return batch * rows.count * columns.count; }
  int64_t tile_columns() const { return (width + kTile - 1) / kTile; }
  int64_t tiles_of_image() const { return (height + kTile - 1) / kTile * tile_columns(); }
  int64_t tiles() const { return batch * tiles_of_image(); }
  bool plain() const { return rows.taps * columns.taps == 1 && rows.stride * rows.step * columns.step == 1; }  // 1x1
};

// Where one of a convolution's pixels() is, and its receptive field.
template <typename T>
struct Pixel {
  const Convolution<T>& c;
  int64_t image, i, j;

  Pixel(const Convolution<T>& c, int64_t number)
      : c(c), image(number / (c.rows.count * c.columns.count)), i(number / c.columns.count % c.rows.count),
        j(number % c.columns.count) {}

  int64_t row() const { return c.rows.first + i * c.rows.step; }
  int64_t column() const { return c.columns.first + j * c.columns.step; }
  int64_t target() const { return (image * c.height + row()) * c.width + column(); }  // a pixel of y
  // A pixel of x; -1 outside of it.
  int64_t source(int u, int v) const {
    const int64_t r = c.rows.source(i, u), s = c.columns.source(j, v);
    return r >= 0 && r < c.x_height && s >= 0 && s < c.x_width ? (image * c.x_height + r) * c.x_width + s : -1;
  }
  // A pixel of the addend; -1: none.
  int64_t addend() const {
    const int64_t step = c.addend_stride;
    if (row() % step || column() % step) return -1;
    return (image * ((c.height + step - 1) / step) + row() / step) * ((c.width + step - 1) / step) + column() / step;
  }
};

// Where a tile is in its map.
template <typename T>
struct Tile {
  int64_t image, row, column;

  Tile(const Convolution<T>& c, int64_t number)
      : image(number / c.tiles_of_image()), row(number % c.tiles_of_image() / c.tile_columns() * kTile),
        column(number % c.tile_columns() * kTile) {}

  // Where a square of kSize pixels, whose first one is `before` pixels before the tile's, is in a map whose pixels are `step`
  // elements apart; -1 for pixels outside of the map.
  template <int kSize>
  void Places(const Convolution<T>& c, int before, int64_t step, int64_t* places) const {
    const int64_t first = ((image * c.height + row - before) * c.width + column - before) * step;
    for (int i = 0; i < kSize; ++i) {
      const bool inside = row + i >= before && row + i - before < c.height;
      for (int j = 0; j < kSize; ++j) {
        const int64_t place = first + (i * c.width + j) * step;
        places[i * kSize + j] = inside && column + j >= before && column + j - before < c.width ? place : -1;
      }
    }
  }
};

// Where the elements of matrices are, one matrix for each of some points, with their columns in chunks.
struct Layout {
  int64_t point, row, chunk;  // elements from one to the next

  int64_t at(int64_t r, int64_t column) const { return r * row + column / kChunk * chunk + column % kChunk; }
  int64_t panel() const { return kPanel / kChunk * chunk; }
};

inline Layout ByRows(int64_t count, int columns) { return {count * (columns + kPadding), columns + kPadding, kChunk}; }
// A chunk of all rows is together, with one row between them, for the same reason as kPadding.
inline Layout ByChunks(int64_t count, int columns) { return {(count + 1) * columns, kChunk, (count + 1) * kChunk}; }

// The weights of a convolution whose channels are in groups, of which only those of equal number are multiplied.
struct Weights {
  const float* w;  // (taps, in / groups, out), taps being 1 or 9
  int taps;
  int64_t in, out, groups;
  bool turned;  // of the gradient to the inputs, from `out` channels to `in`

  int64_t from() const { return turned ? out : in; }
  int64_t to() const { return turned ? in : out; }
  int64_t group_from() const { return from() / groups; }
  int64_t group_to() const { return to() / groups; }
  // Channels that a panel reads. Groups that are narrower than a panel are taken together, with zeros between them.
  int64_t depth() const { return group_from() * std::max<int64_t>(1, kPanel / group_to()); }
  int64_t first_from(int64_t panel) const { return panel * kPanel / group_to() * group_from(); }

  // From a channel to those of a panel.
  void Read(int tap, int64_t channel, int64_t panel, float* values) const {
    const Columns own = OfGroup(channel, panel);
    if (own.end - own.begin < kPanel) std::fill_n(values, kPanel, 0.f);
    const float* from = w + Offset(tap, channel, panel, own);
    for (int64_t column = own.begin; column < own.end; ++column, from += turned ? out : 1) values[column] = *from;
  }

 private:
  struct Columns {
    int64_t begin, end;
  };
  // Of a panel, those that are of a channel's group.
  Columns OfGroup(int64_t channel, int64_t panel) const {
    const int64_t first = channel / group_from() * group_to() - panel * kPanel;
    return {std::max<int64_t>(0, first), std::min<int64_t>(kPanel, first + group_to())};
  }
  int64_t Offset(int tap, int64_t channel, int64_t panel, Columns own) const {
    const int64_t first = panel * kPanel + own.begin;
    const int64_t row = tap * (in / groups) + (turned ? first % group_to() : channel % group_from());
    return row * out + (turned ? channel : first);
  }
};

// What frozen_kernels.inc defines for an instruction set and a type. In a matrix a row has what a pixel has, or a tile in
// one point.
template <typename T>
struct Kernels {
  // Not by Winograd's algorithm: `count` pixels from `first` on. `copy` has room for their receptive fields.
  void (*pixels)(const Convolution<T>& c, int64_t first, int64_t count, T* copy);
  // By it, of tiles from `first` on those from begin to end: to a matrix of inputs for each point,
  void (*inputs)(const Convolution<T>& c, int64_t first, int64_t begin, int64_t end, const Layout& layout, T* to);
  // of one point and panel to the products,
  void (*multiply)(const T* inputs, const Layout& of_inputs, int depth, int64_t rows, const T* panel, float* products,
                   const Layout& of_products);
  // from the products to the outputs. Adds no addend.
  void (*outputs)(const Convolution<T>& c, int64_t first, int64_t begin, int64_t end, const Layout& layout,
                  const float* products);
  // Weights in all points or, of the given tap, as they are: pairs of channels from begin to end, counted through all panels,
  // each of which has `depth` rows; these are its from the `row`-th on.
  void (*weights)(const Weights& weights, int tap, int64_t depth, int64_t row, int64_t begin, int64_t end, T* to);
};

// For this CPU; null where it has no instructions for products of bfloat16.
const Kernels<float>* BestKernels(float);
const Kernels<bfloat>* BestKernels(bfloat);

// For Winograd's algorithm.
template <typename T>
void TransformWeights(const Kernels<T>& kernels, const Weights& weights, T* to, const Parallel& threads) {
  const int64_t depth = weights.depth();
  threads(weights.to() / kPanel * depth / 2, 2000, [&](int64_t begin, int64_t end) {
    kernels.weights(weights, -1, depth, 0, begin, end, to);
  });
}

// In an order of taps.
template <typename T>
void PackWeights(const Kernels<T>& kernels, const Weights& weights, const int* taps, T* to, const Parallel& threads) {
  const int64_t from = weights.from();
  threads(weights.to() / kPanel * from / 2, 200 * weights.taps, [&](int64_t begin, int64_t end) {
    for (int i = 0; i < weights.taps; ++i) kernels.weights(weights, taps[i], weights.taps * from, i * from, begin, end, to);
  });
}

// In all of these every output is computed by the same operations in the same order, whatever the number of threads or
// images.

template <typename T>
void ConvolvePixels(const Kernels<T>& kernels, const Convolution<T>& c, const Parallel& threads) {
  const int64_t units = (c.pixels() + kPixels - 1) / kPixels, depth = int64_t(c.rows.taps) * c.columns.taps * c.in;
  threads(units, kPixels * depth * c.out / 32, [&](int64_t begin, int64_t end) {
    const auto copy = Aligned<T>(kPixels * (depth + kPadding));
    for (int64_t first = begin * kPixels; first < std::min(end * kPixels, c.pixels()); first += kPixels) {
      kernels.pixels(c, first, std::min<int64_t>(kPixels, c.pixels() - first), copy.get());
    }
  });
}

// `count` tiles from `first` on.
template <typename T>
void ConvolveTiles(const Kernels<T>& kernels, const Convolution<T>& c, int64_t first, int64_t count, T* inputs,
                   float* products, const Parallel& threads) {
  const Layout in = ByRows(count, c.in), out = ByRows(count, c.out / c.groups);
  threads(count, 20 * c.in, [&](int64_t begin, int64_t end) { kernels.inputs(c, first, begin, end, in, inputs); });
  for (int group = 0; group < c.groups; ++group) {
    const Convolution<T> part = c.part(group, 1);
    const int64_t panels = part.out / kPanel;
    threads(kPoints * panels, count * part.in, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t point = i / panels, panel = i % panels;
        kernels.multiply(inputs + point * in.point + in.at(0, group * part.in), in, part.in, count,
                         part.weights + (point * c.panels + panel) * part.in * kPanel,
                         products + point * out.point + panel * out.panel(), out);
      }
    });
    threads(count, 20 * part.out, [&](int64_t begin, int64_t end) {
      kernels.outputs(part, first, begin, end, out, products);
    });
  }
}

// The units of `count` tiles from begin to end.
template <typename T>
void ConvolveUnits(const Kernels<T>& kernels, const Convolution<T>& c, int64_t begin, int64_t end, int64_t count,
                   const Parallel& threads) {
  const int64_t tiles = c.tiles();
  const auto inputs = Aligned<T>(kPoints * ByRows(std::min(count, tiles), c.in).point);
  const auto products = Aligned<float>(kPoints * ByRows(std::min(count, tiles), c.out / c.groups).point);
  for (int64_t first = begin * count; first < std::min(end * count, tiles); first += count) {
    ConvolveTiles(kernels, c, first, std::min(count, tiles - first), inputs.get(), products.get(), threads);
  }
}

// 3x3 of stride 1, by Winograd's algorithm.
template <typename T>
void ConvolveAllTiles(const Kernels<T>& kernels, const Convolution<T>& c, int num_threads, const Parallel& threads) {
  const int64_t tiles = c.tiles(), bytes = int64_t(sizeof(T)) * kPoints * c.depth * c.out;
  const bool shared = c.groups == 1 && (tiles < kUnitTiles * num_threads || bytes > kSharedBytes);
  const int64_t count = shared ? kSharedTiles : c.groups == 1 ? kUnitTiles : kGroupedTiles, units = (tiles + count - 1) / count;
  if (shared) return ConvolveUnits(kernels, c, 0, units, count, threads);
  // with a part of the groups all tiles, as long as their weights are in a cache, and then the next
  const int together = std::max(1, kGroupedChannels / c.depth), parts = (c.groups + together - 1) / together;
  threads(parts * units, count * (int64_t(c.depth) * c.out + 40 * c.in) / parts, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin / units; p * units < end; ++p) {
      const int first = p * together;
      ConvolveUnits(kernels, c.part(first, std::min(together, c.groups - first)), std::max(begin - p * units, int64_t(0)),
                    std::min(end - p * units, units), count, InThisThread);
    }
  });
}

}  // namespace frozen
