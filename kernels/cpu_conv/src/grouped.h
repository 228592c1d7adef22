// Grouped convolutions as loops over groups of channels, without TensorFlow. grouped_kernels.inc has the innermost ones.
//
// A unit of work is some rows of outputs of one image. Its inputs are copied group by group, with a border of zeros, so
// that what a row of the kernel meets is contiguous: (kernel columns x channels) floats. An output is then the sum, over
// the kernel's rows, of products of such runs with the weights; several outputs are computed at a time, in registers,
// for 8 or 16 output channels.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "parallel.h"

namespace grouped {

constexpr int kMaxPixels = 12;        // that are computed at a time
constexpr int kUnitFloats = 168 << 10;  // of a unit's inputs, which should stay in the second-level cache
constexpr int kTasks = 32;              // of a gradient to the weights, about, if it has that many images and groups
constexpr int kParts = 8;               // of the images, at most
constexpr int kInputsPerSum = 3;

using cpu_conv::Parallel;
using Buffer = std::unique_ptr<float[]>;  // not initialised

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
  int64_t copy_row() const { return padded_columns() * channels_in(); }

  // Rows of outputs in a unit. Its outputs may take as much space as its inputs.
  int64_t unit_rows() const {
    const int64_t by_inputs = (kUnitFloats / (copy_row() * groups) - kernel_rows) / stride + 1;
    const int64_t by_outputs = kUnitFloats / (columns * ((channels_out() + 7) / 8 * 8) * groups);
    return std::max<int64_t>(1, std::min(rows, std::min(by_inputs, by_outputs)));
  }
  int64_t units() const { return (rows + unit_rows() - 1) / unit_rows(); }  // of an image
  // Floats from the copy of one group to that of the next: an odd number of cache lines, which spreads them in a cache.
  int64_t copy_floats() const { return (copy_row() * padded_rows(unit_rows()) + 15) / 32 * 32 + 16; }
  // Multiplications of a unit, as an estimate of its cycles: to share units out it is good enough.
  int64_t cost() const { return unit_rows() * columns * kernel_rows * run() * target.channels; }
};

// Weights, or their gradient, as the kernels read them: (groups, blocks of 8 or 16 outputs, kernel rows, run, outputs of
// the block); outputs that fill up a block are zeros.
struct Packed {
  const int groups, rows, run, outputs;  // but for the first: of a group
  Buffer values;

  Packed(int groups, int rows, int run, int outputs)
      : groups(groups), rows(rows), run(run), outputs(outputs), values(new float[groups * group_floats()]) {
    if (outputs != padded()) clear();
  }
  void clear() { std::fill_n(values.get(), groups * group_floats(), 0.f); }
  int padded() const { return (outputs + 7) / 8 * 8; }
  size_t group_floats() const { return static_cast<size_t>(rows) * run * padded(); }
  int lanes(int k) const { return padded() - k > 8 ? 16 : 8; }  // of the block that begins with output k
  float* block(int group, int row, int j, int k) const {
    return &values[group * group_floats() + static_cast<size_t>(k) * rows * run +
                   (static_cast<size_t>(row) * run + j) * lanes(k)];
  }
};

// The outputs of a unit: where each one's inputs begin within the copy of a group, and where it goes within its image.
// Filled up, with repetitions of the last, to whole blocks.
struct Pixels {
  std::vector<int32_t> from;
  std::vector<int64_t> to;
  int count;

  Pixels(const Pass& pass, int64_t first, int64_t rows) : count(rows * pass.columns) {
    from.reserve(count + kMaxPixels);
    to.reserve(count + kMaxPixels);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < pass.columns; ++j) {
        from.push_back((i * pass.padded_columns() + j) * pass.stride * pass.channels_in());
        to.push_back(((pass.row + (first + i) * pass.step) * pass.target.width + pass.column + j * pass.step) *
                     pass.target.channels);
      }
    }
    from.insert(from.end(), kMaxPixels, int32_t(from.back()));
    to.insert(to.end(), kMaxPixels, int64_t(to.back()));
  }
};

// Of several groups: `from` is contiguous; group g's part goes to `to` + g * step.
inline void Scatter(const float* from, int groups, int channels, float* to, int64_t step) {
  if (channels % 8 == 0) {
    for (int group = 0; group < groups; ++group, from += channels, to += step) {
      for (int c = 0; c < channels; c += 8) std::memcpy(to + c, from + c, 8 * sizeof(float));
    }
  } else {
    for (int group = 0; group < groups; ++group, from += channels, to += step) {
      for (int c = 0; c < channels; ++c) to[c] = from[c];
    }
  }
}

// Copies a unit's inputs of some groups, each to its (padded rows, padded columns, channels of the group).
inline void CopyUnit(const Pass& pass, const float* image, int first_group, int groups, int64_t first, int64_t rows,
                     float* copy) {
  const int channels = pass.channels_in();
  const int64_t columns = pass.padded_columns(), floats = pass.copy_floats();
  const int64_t begin = std::min<int64_t>(columns, std::max<int64_t>(0, -pass.left));
  const int64_t end = std::max(begin, std::min(columns, pass.source.width - pass.left));
  for (int64_t r = 0; r < pass.padded_rows(rows); ++r, copy += columns * channels) {
    const int64_t row = pass.top + first * pass.stride + r;
    const bool inside = row >= 0 && row < pass.source.height;
    for (int group = 0; group < groups; ++group) {
      float* to = copy + group * floats;
      std::fill_n(to, (inside ? begin : columns) * channels, 0.f);
      if (inside) std::fill_n(to + end * channels, (columns - end) * channels, 0.f);
    }
    if (!inside) continue;
    const float* from = image + (row * pass.source.width + pass.left + begin) * pass.source.channels +
                        first_group * channels;
    for (int64_t column = begin; column < end; ++column, from += pass.source.channels) {
      Scatter(from, groups, channels, copy + column * channels, floats);
    }
  }
}

// What grouped_kernels.inc defines for each instruction set. `outputs`: how many of the lanes exist.
struct Kernels {
  // Outputs of a unit for one block: lanes (8 or 16) channels of them, to target + to[i].
  void (*correlate)(const float* copy, const Pixels& pixels, int64_t row, int rows, int run, const float* weights,
                    int lanes, int outputs, float* target);
  // Adds a unit's part to the gradient of one block of weights. `upstream`: (pixels, lanes).
  void (*weights)(const float* copy, const Pixels& pixels, int64_t row, int rows, int run, const float* upstream,
                  int lanes, float* gradient);
};

inline void Correlate(const Kernels& kernels, const Pass& pass, const Packed& weights, const float* source, float* target,
                      const Parallel& parallel) {
  const int64_t units = pass.units(), unit_rows = pass.unit_rows(), floats = pass.copy_floats();
  parallel(pass.source.batch * units, pass.cost(), [&](int64_t begin, int64_t end) {
    const Buffer copy(new float[floats * pass.groups]);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / units, first = unit % units * unit_rows, rows = std::min(unit_rows, pass.rows - first);
      const Pixels pixels(pass, first, rows);
      CopyUnit(pass, source + image * pass.source.image(), 0, pass.groups, first, rows, copy.get());
      for (int group = 0; group < pass.groups; ++group) {
        for (int k = 0; k < weights.outputs; k += 16) {
          kernels.correlate(&copy[group * floats], pixels, pass.copy_row(), weights.rows, weights.run,
                            weights.block(group, 0, 0, k), weights.lanes(k),
                            std::min(weights.lanes(k), weights.outputs - k),
                            target + image * pass.target.image() + group * pass.channels_out() + k);
        }
      }
    }
  });
}

// A task is a part of the images and a block of groups. A thread takes all groups of an image together where it can: they are
// a long piece of a pixel, which the memory is fast with. But each part of the images has sums of its own, which are not to
// be large beside the inputs. Sizes alone decide about both, so that sums are made in the same order with any number of
// threads.
inline Packed WeightGradient(const Kernels& kernels, const Pass& pass, const float* source, const float* upstream,
                             const Parallel& parallel) {
  const int outputs = pass.channels_out(), padded = (outputs + 7) / 8 * 8;
  const int64_t group_floats = int64_t{pass.kernel_rows} * pass.run() * padded;
  const int64_t units = pass.units(), unit_rows = pass.unit_rows(), floats = pass.copy_floats();
  const int64_t pixel_floats = unit_rows * pass.columns;  // of a lane
  const int64_t most = pass.source.batch * pass.source.image() / (kInputsPerSum * pass.groups * group_floats);
  const int64_t wanted = std::max<int64_t>(1, std::min<int64_t>(kParts, most));
  const int64_t images = (pass.source.batch + wanted - 1) / wanted, parts = (pass.source.batch + images - 1) / images;
  const int block = std::max<int64_t>(1, pass.groups * parts / kTasks), blocks = (pass.groups + block - 1) / block;
  std::vector<Packed> sums;
  for (int64_t part = 0; part < parts; ++part) sums.emplace_back(pass.groups, pass.kernel_rows, pass.run(), outputs);
  parallel(blocks * parts, pass.cost() * units * images / blocks, [&](int64_t begin, int64_t end) {
    const int most_groups = std::min<int64_t>(pass.groups, (end - begin) * block);
    const Buffer copy(new float[floats * most_groups]);
    const Buffer upstreams(new float[pixel_floats * padded * most_groups]);
    std::fill_n(upstreams.get(), pixel_floats * padded * most_groups, 0.f);
    for (int64_t task = begin, next; task < end; task = next) {  // those of a part together
      next = std::min(end, (task / blocks + 1) * blocks);
      Packed& sum = sums[task / blocks];
      const int first_group = task % blocks * block;
      const int groups = std::min<int64_t>(pass.groups - first_group, (next - task) * block);
      std::fill_n(sum.block(first_group, 0, 0, 0), groups * sum.group_floats(), 0.f);
      const int64_t first_image = task / blocks * images, last = std::min(pass.source.batch, first_image + images);
      for (int64_t unit = first_image * units; unit < last * units; ++unit) {
        const int64_t image = unit / units, first = unit % units * unit_rows, rows = std::min(unit_rows, pass.rows - first);
        const Pixels pixels(pass, first, rows);
        CopyUnit(pass, source + image * pass.source.image(), first_group, groups, first, rows, copy.get());
        for (int i = 0; i < pixels.count; ++i) {
          const float* from = upstream + image * pass.target.image() + pixels.to[i] + first_group * outputs;
          for (int group = 0; group < groups; ++group, from += outputs) {
            for (int k = 0; k < outputs; k += 16) {
              const int lanes = sum.lanes(k);
              Scatter(from + k, 1, std::min(lanes, outputs - k),
                      &upstreams[(group * padded + k) * pixel_floats + i * lanes], 0);
            }
          }
        }
        for (int group = 0; group < groups; ++group) {
          for (int k = 0; k < outputs; k += 16) {
            kernels.weights(&copy[group * floats], pixels, pass.copy_row(), sum.rows, sum.run,
                            &upstreams[(group * padded + k) * pixel_floats], sum.lanes(k),
                            sum.block(first_group + group, 0, 0, k));
          }
        }
      }
    }
  });
  if (parts > 1) {
    parallel(pass.groups, group_floats * parts, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * group_floats, last = end * group_floats;
      for (int64_t part = 1; part < parts; ++part) {
        for (int64_t i = first; i < last; ++i) sums[0].values[i] += sums[part].values[i];
      }
    });
  }
  return std::move(sums[0]);
}

}  // namespace grouped
