// Grouped convolutions as loops over groups of channels, without TensorFlow. kernels.inc has the innermost ones.
//
// A unit of work is some rows of outputs of one image. For each group its inputs are copied together, with a border of
// zeros, so that what a row of the kernel meets is contiguous: (kernel columns x channels) floats. An output is then the
// sum, over the kernel's rows, of products of such runs with the weights; several outputs are computed at a time, in
// registers, for 8 or 16 output channels.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace grouped {

constexpr int kMaxPixels = 12;      // that are computed at a time
constexpr int kUnitFloats = 6144;  // of a group's inputs, which should stay in the first-level cache

struct Map {  // NHWC
  int64_t batch, height, width, channels;
  int64_t image() const { return height * width * channels; }
};

// A convolution of `source` where output (i, j), for i < rows and j < columns, meets the source from row
// top + i * stride, column left + j * stride on, and goes to row row + i * step, column column + j * step of its map.
struct Pass {
  Map source, target;
  int groups;
  int kernel_rows, kernel_columns;
  int stride, top, left;
  int step, row, column;
  int64_t rows, columns;

  int channels_in() const { return source.channels / groups; }
  int channels_out() const { return target.channels / groups; }
  int run() const { return kernel_columns * channels_in(); }  // contiguous floats that a row of the kernel meets
  int64_t padded_columns() const { return (columns - 1) * stride + kernel_columns; }
  int64_t padded_rows(int64_t unit_rows) const { return (unit_rows - 1) * stride + kernel_rows; }

  // Rows of outputs in a unit.
  int64_t unit_rows() const {
    const int64_t row = padded_columns() * channels_in();
    return std::max<int64_t>(1, std::min(rows, (kUnitFloats / row - kernel_rows) / stride + 1));
  }
  int64_t units() const { return (rows + unit_rows() - 1) / unit_rows(); }  // of an image
  // Multiplications of a unit.
  int64_t cost() const { return unit_rows() * columns * kernel_rows * run() * target.channels; }
};

// Weights, or their gradient, as the kernels read them: (groups, blocks of 8 or 16 outputs, kernel rows, run, outputs of
// the block); outputs that fill up a block are zeros.
struct Packed {
  int rows, run, outputs;  // of a group
  std::vector<float> values;

  Packed(int groups, int rows, int run, int outputs)
      : rows(rows), run(run), outputs(outputs), values(static_cast<size_t>(groups) * group_floats(), 0.f) {}
  int padded() const { return (outputs + 7) / 8 * 8; }
  size_t group_floats() const { return static_cast<size_t>(rows) * run * padded(); }
  static int lanes(int left) { return left > 8 ? 16 : 8; }  // of the next block
  float* at(int group, int row, int j, int k) {
    const int block = k / 16 * 16, width = lanes(padded() - block);
    return &values[group * group_floats() + static_cast<size_t>(block) * rows * run +
                   (static_cast<size_t>(row) * run + j) * width + (k - block)];
  }
};

// The outputs of a unit: where each one's inputs begin within the copy of a group, and where it goes within its image.
// Filled up, with repetitions of the last, to whole blocks.
struct Pixels {
  std::vector<int32_t> from;
  std::vector<int64_t> to;
  int count;

  Pixels(const Pass& pass, int64_t first, int64_t rows) : count(rows * pass.columns) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < pass.columns; ++j) {
        from.push_back((i * pass.padded_columns() + j) * pass.stride * pass.channels_in());
        to.push_back(((pass.row + (first + i) * pass.step) * pass.target.width + pass.column + j * pass.step) *
                     pass.target.channels);
      }
    }
    from.resize(count + kMaxPixels, from.back());
    to.resize(count + kMaxPixels, to.back());
  }
};

// Copies a group's inputs of a unit to `copy`, (padded rows, padded columns, channels of the group).
inline void CopyGroup(const Pass& pass, const float* image, int group, int64_t first, int64_t rows, float* copy) {
  const int channels = pass.channels_in();
  const int64_t top = pass.top + first * pass.stride, columns = pass.padded_columns();
  for (int64_t r = 0; r < pass.padded_rows(rows); ++r, copy += columns * channels) {
    const int64_t row = top + r;
    if (row < 0 || row >= pass.source.height) {
      std::fill_n(copy, columns * channels, 0.f);
      continue;
    }
    const int64_t begin = std::min<int64_t>(columns, std::max<int64_t>(0, -pass.left));
    const int64_t end = std::max(begin, std::min(columns, pass.source.width - pass.left));
    std::fill_n(copy, begin * channels, 0.f);
    std::fill_n(copy + end * channels, (columns - end) * channels, 0.f);
    const float* from = image + (row * pass.source.width + pass.left + begin) * pass.source.channels + group * channels;
    float* to = copy + begin * channels;
    if (channels % 8 == 0) {
      for (int64_t column = begin; column < end; ++column, from += pass.source.channels, to += channels) {
        for (int c = 0; c < channels; c += 8) std::memcpy(to + c, from + c, 8 * sizeof(float));
      }
    } else {
      for (int64_t column = begin; column < end; ++column, from += pass.source.channels, to += channels) {
        for (int c = 0; c < channels; ++c) to[c] = from[c];
      }
    }
  }
}

// What kernels.inc defines for each instruction set. `outputs`: how many of the lanes exist.
struct Kernels {
  // Outputs of a unit for one block: lanes (8 or 16) channels of them, to target + to[i].
  void (*correlate)(const float* copy, const Pixels& pixels, int64_t row, int rows, int run, const float* weights,
                    int lanes, int outputs, float* target);
  // Adds a unit's part to the gradient of one block of weights. `upstream`: (pixels, lanes).
  void (*weights)(const float* copy, const Pixels& pixels, int64_t row, int rows, int run, const float* upstream,
                  int lanes, float* gradient);
};

// Calls its argument with ranges that make up [0, total), from several threads.
using Parallel = std::function<void(int64_t total, int64_t cost, const std::function<void(int64_t, int64_t)>&)>;

inline void Correlate(const Kernels& kernels, const Pass& pass, Packed& weights, const float* source, float* target,
                      const Parallel& parallel) {
  const int64_t units = pass.units(), unit_rows = pass.unit_rows();
  parallel(pass.source.batch * units, pass.cost(), [&](int64_t begin, int64_t end) {
    const int64_t row = pass.padded_columns() * pass.channels_in();
    std::vector<float> copy(row * pass.padded_rows(unit_rows));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / units, first = unit % units * unit_rows, rows = std::min(unit_rows, pass.rows - first);
      const Pixels pixels(pass, first, rows);
      for (int group = 0; group < pass.groups; ++group) {
        CopyGroup(pass, source + image * pass.source.image(), group, first, rows, copy.data());
        for (int k = 0; k < weights.outputs; k += 16) {
          const int lanes = Packed::lanes(weights.padded() - k);
          kernels.correlate(copy.data(), pixels, row, weights.rows, weights.run, weights.at(group, 0, 0, k), lanes,
                            std::min(lanes, weights.outputs - k),
                            target + image * pass.target.image() + group * pass.channels_out() + k);
        }
      }
    }
  });
}

// Each group is summed up by one thread, always in the same order.
inline void WeightGradient(const Kernels& kernels, const Pass& pass, const float* source, const float* upstream,
                           Packed& gradient, const Parallel& parallel) {
  const int64_t units = pass.units(), unit_rows = pass.unit_rows();
  parallel(pass.groups, pass.cost() * units * pass.source.batch / pass.groups, [&](int64_t begin, int64_t end) {
    const int64_t row = pass.padded_columns() * pass.channels_in();
    std::vector<float> copy(row * pass.padded_rows(unit_rows)), block(unit_rows * pass.columns * 16);
    for (int64_t unit = 0; unit < pass.source.batch * units; ++unit) {
      const int64_t image = unit / units, first = unit % units * unit_rows, rows = std::min(unit_rows, pass.rows - first);
      const Pixels pixels(pass, first, rows);
      for (int group = begin; group < end; ++group) {
        CopyGroup(pass, source + image * pass.source.image(), group, first, rows, copy.data());
        for (int k = 0; k < gradient.outputs; k += 16) {
          const int lanes = Packed::lanes(gradient.padded() - k), outputs = std::min(lanes, gradient.outputs - k);
          const float* from = upstream + image * pass.target.image() + group * pass.channels_out() + k;
          for (int i = 0; i < pixels.count; ++i) {
            float* to = &block[i * lanes];
            if (outputs == lanes) {
              for (int l = 0; l < lanes; l += 8) std::memcpy(to + l, from + pixels.to[i] + l, 8 * sizeof(float));
            } else {
              std::fill_n(std::copy_n(from + pixels.to[i], outputs, to), lanes - outputs, 0.f);
            }
          }
          kernels.weights(copy.data(), pixels, row, gradient.rows, gradient.run, block.data(), lanes,
                          gradient.at(group, 0, 0, k));
        }
      }
    }
  });
}

}  // namespace grouped
