// The gradient to a convolution's weights, without TensorFlow; filter_kernels.inc has the innermost loops.
//
// It is a product of matrices with as many rows as the result has pixels: of each pixel's receptive field, and of its gradient.
// Some rows at a time are copied to chunks of channels and multiplied. 3x3 of stride 1: by Winograd's algorithm (frozen.h),
// in each of whose points the rows are tiles.
#pragma once
#include "frozen.h"

namespace frozen {

constexpr int kFilterRows = 128;  // that are multiplied together: of two panels they fill a first-level cache
constexpr int64_t kFilterFloats = 1 << 20;  // that are copied together, if not just as many rows

struct FilterGradient {
  Convolution<float> of_x, of_y;  // what is read: x, and the gradient of the result, whose place is that of an x
  bool in_tiles;

  int taps() const { return in_tiles ? 1 : of_x.rows.taps * of_x.columns.taps; }
  int points() const { return in_tiles ? kPoints : 1; }
  int64_t rows() const { return in_tiles ? of_x.tiles() : of_x.pixels(); }
  int groups() const { return of_x.groups; }  // of channels, in whole panels
  int64_t depth() const { return int64_t(taps()) * of_x.in / groups(); }  // rows of w that an output channel has, in a point
  int64_t panels_in() const { return depth() / kPanel; }
  int64_t panels_out() const { return of_y.in / kPanel; }
  int64_t point_sums() const { return depth() * of_y.in; }
  int64_t sums() const { return points() * point_sums(); }
  FilterGradient part(int group) const { return {of_x.part(group, 1), of_y.part(group, 1), in_tiles}; }
};

// What filter_kernels.inc defines for an instruction set. Matrices lie ByChunks.
struct FilterKernels {
  // Of rows from `first` on those from begin to end: their receptive fields, and their gradient.
  void (*copy)(const FilterGradient& g, int64_t first, int64_t begin, int64_t end, int64_t count, float* x, float* y);
  // The product of a panel of x, turned, and a panel of y, with `chunk` elements to the next chunk of both: (kPanel, kPanel)
  // sums, or what is added to them.
  void (*multiply)(const float* x, const float* y, int64_t chunk, int64_t rows, bool add, float* sums);
  // From the sums of all points, `stride` floats apart, of one row of a panel to those of 3x3 weights.
  void (*weights)(const float* sums, int64_t stride, float w[9][kPanel]);
};

const FilterKernels& BestFilterKernels();

// Of one group. `sums`: (points, panels of the result, depth, kPanel), those of a point being `point_step` floats after
// those of the one before. Each is summed up in the same order, whatever the number of threads.
inline void SumUp(const FilterKernels& kernels, const FilterGradient& g, int64_t point_step, float* sums,
                  const Parallel& threads) {
  const int64_t in = g.panels_in(), out = g.panels_out(), block = kPanel * kPanel;
  const int64_t of_x = g.points() * in * kPanel, of_y = g.points() * out * kPanel;  // floats of a row
  const int64_t most = std::min(g.rows(), std::max<int64_t>(1, kFilterFloats / (of_x + of_y) / kFilterRows) * kFilterRows);
  const auto x = Aligned<float>((most + 1) * of_x), y = Aligned<float>((most + 1) * of_y);
  for (int64_t first = 0; first < g.rows(); first += most) {
    const int64_t count = std::min(most, g.rows() - first), panel_step = ByChunks(count, 0).panel();
    threads(count, of_x + of_y, [&](int64_t begin, int64_t end) {
      kernels.copy(g, first, begin, end, count, x.get(), y.get());
    });
    threads(g.points() * out * in, count * kPanel, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t point = i / (out * in), panel = i / in % out, k = i % in;
        const float *x_panel = &x[(point * in + k) * panel_step], *y_panel = &y[i / in * panel_step];
        for (int64_t r = 0; r < count; r += kFilterRows) {
          kernels.multiply(x_panel + r * kChunk, y_panel + r * kChunk, ByChunks(count, 0).chunk,
                           std::min<int64_t>(kFilterRows, count - r), first + r > 0,
                           sums + point * point_step + (panel * in + k) * block);
        }
      }
    });
  }
}

inline void SumUpGroups(const FilterKernels& kernels, const FilterGradient& g, float* sums, const Parallel& threads) {
  if (g.rows() == 0) std::fill_n(sums, g.sums(), 0.f);
  if (g.groups() == 1) return SumUp(kernels, g, g.point_sums(), sums, threads);
  const int64_t of_group = g.point_sums() / g.groups();
  threads(g.groups(), g.rows() * g.sums() / g.groups() / 32, [&](int64_t begin, int64_t end) {
    for (int group = begin; group < end; ++group) {
      SumUp(kernels, g.part(group), g.point_sums(), sums + group * of_group, InThisThread);
    }
  });
}

}  // namespace frozen
