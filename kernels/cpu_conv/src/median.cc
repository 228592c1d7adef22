// The ops MedianOfNeighbours, MedianOfNeighboursGradient and MedianOfNeighboursChosen: of each channel over 3x3, float32,
// NHWC. Beyond its edge the map is repeated. The gradient goes to the first neighbour that is the median, and to the last
// one if none is (NaN); "chosen" is what another map has at that neighbour, which is the gradient of the gradient.
#include "tensorflow/core/framework/op.h"

#include "common.h"

namespace median {

#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif
constexpr int kNeighbours = 9;  // row by row
constexpr int64_t kChannels = 64;  // that a thread takes at a time: three rows of them stay in its cache

// Of a number and NaN: NaN, so that one in a window makes its median NaN.
INLINE float Least(float a, float b) { return a < b || a != a ? a : b; }
INLINE float Greatest(float a, float b) { return b < a || a != a ? a : b; }
INLINE float MedianOfThree(float a, float b, float c) { return Greatest(Least(a, b), Least(Greatest(a, b), c)); }

INLINE void Medians(const float* const x[kNeighbours], int64_t channels, float* __restrict y) {
  for (int64_t c = 0; c < channels; ++c) {
    float low[3], middle[3], high[3];  // of each column
    for (int j = 0; j < 3; ++j) {
      const float above = x[j][c], here = x[3 + j][c], below = x[6 + j][c];
      const float least = Least(above, here), greatest = Greatest(above, here), of_lower = Least(greatest, below);
      low[j] = Least(least, below);
      middle[j] = Greatest(least, of_lower);
      high[j] = Greatest(greatest, below);
    }
    // At least five of the nine are not below the greatest of the lows, and so on: the median is that of these three.
    y[c] = MedianOfThree(Greatest(Greatest(low[0], low[1]), low[2]), MedianOfThree(middle[0], middle[1], middle[2]),
                         Least(Least(high[0], high[1]), high[2]));
  }
}

// Adds the gradient to one position's median to the neighbour that it is of.
INLINE void AddGradients(const float* const x[kNeighbours], const float* y, const float* upstream, int64_t channels,
                         float* const to[kNeighbours]) {
  float left[kChannels];  // of channels whose median is not found yet
  std::copy_n(upstream, channels, left);
  for (int k = 0; k < kNeighbours - 1; ++k) {
    const float* const neighbour = x[k];
    float* const d = to[k];
    for (int64_t c = 0; c < channels; ++c) {
      const bool found = neighbour[c] == y[c];
      d[c] += found ? left[c] : 0.f;
      left[c] = found ? 0.f : left[c];
    }
  }
  for (int64_t c = 0; c < channels; ++c) to[kNeighbours - 1][c] += left[c];
}

INLINE void Choose(const float* const x[kNeighbours], const float* y, const float* const values[kNeighbours],
                   int64_t channels, float* __restrict to) {
  std::copy_n(values[kNeighbours - 1], channels, to);
  for (int k = kNeighbours - 2; k >= 0; --k) {  // the first one last
    const float *const neighbour = x[k], *const value = values[k];
    for (int64_t c = 0; c < channels; ++c) to[c] = neighbour[c] == y[c] ? value[c] : to[c];
  }
}

void MediansAnyCpu(const float* const* x, int64_t n, float* y) { Medians(x, n, y); }
AVX2 void MediansAvx2(const float* const* x, int64_t n, float* y) { Medians(x, n, y); }
AVX512 void MediansAvx512(const float* const* x, int64_t n, float* y) { Medians(x, n, y); }
void GradientsAnyCpu(const float* const* x, const float* y, const float* upstream, int64_t n, float* const* to) {
  AddGradients(x, y, upstream, n, to);
}
AVX2 void GradientsAvx2(const float* const* x, const float* y, const float* upstream, int64_t n, float* const* to) {
  AddGradients(x, y, upstream, n, to);
}
AVX512 void GradientsAvx512(const float* const* x, const float* y, const float* upstream, int64_t n, float* const* to) {
  AddGradients(x, y, upstream, n, to);
}

// Some of the three functions above, for this CPU.
template <class Function>
Function* Best(Function* any_cpu, Function* avx2, Function* avx512) {
  const cpu_conv::Isa isa = cpu_conv::BestIsa();
  return isa >= cpu_conv::Isa::kAvx512 ? avx512 : isa == cpu_conv::Isa::kAvx2 ? avx2 : any_cpu;
}

// A batch of maps, (images, height, width, channels).
struct Maps {
  int64_t images, height, width, channels;

  int64_t size() const { return images * height * width * channels; }
  int64_t Place(int64_t image, int64_t row, int64_t column) const {
    return ((image * height + row) * width + column) * channels;
  }
  int64_t parts() const { return (channels + kChannels - 1) / kChannels; }  // of channels
  int64_t cost() const { return 8 * height * width * std::min(channels, kChannels); }

  // Of the neighbours of a position of an image, those of its channels from `first` on.
  template <class T>
  void Neighbours(T* maps, int64_t image, int64_t row, int64_t column, int64_t first, T* to[kNeighbours]) const {
    for (int i = 0; i < 3; ++i) {
      const int64_t r = std::min(std::max<int64_t>(row + i - 1, 0), height - 1);
      for (int j = 0; j < 3; ++j) {
        const int64_t c = std::min(std::max<int64_t>(column + j - 1, 0), width - 1);
        to[3 * i + j] = maps + Place(image, r, c) + first;
      }
    }
  }

  // Calls of_position(image, row, column, first channel, number of channels). Up to kChannels of an image's channels are one
  // thread's, so that no two threads add to the same gradient.
  template <class OfPosition>
  void ForEach(const cpu_conv::Parallel& threads, const OfPosition& of_position) const {
    threads(images * parts(), cost(), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t first = unit % parts() * kChannels, count = std::min(kChannels, channels - first);
        for (int64_t row = 0; row < height; ++row) {
          for (int64_t column = 0; column < width; ++column) of_position(unit / parts(), row, column, first, count);
        }
      }
    });
  }
};

}  // namespace median

namespace tensorflow {
namespace {

Status LikeX(shape_inference::InferenceContext* c) {
  shape_inference::ShapeHandle maps;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &maps));
  c->set_output(0, maps);
  return Status();
}

REGISTER_OP("MedianOfNeighbours").Input("x: float").Output("y: float").SetShapeFn(LikeX);

REGISTER_OP("MedianOfNeighboursGradient")
    .Input("x: float")
    .Input("y: float")
    .Input("upstream: float")
    .Output("gradient: float")
    .SetShapeFn(LikeX);

REGISTER_OP("MedianOfNeighboursChosen")
    .Input("x: float")
    .Input("y: float")
    .Input("values: float")
    .Output("chosen: float")
    .SetShapeFn(LikeX);

median::Maps MapsOf(const Tensor& x) { return {x.dim_size(0), x.dim_size(1), x.dim_size(2), x.dim_size(3)}; }

class MedianOfNeighboursOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    OP_REQUIRES(context, x.dims() == 4, errors::InvalidArgument("no feature map: ", x.shape().DebugString()));
    Tensor* y;
    OP_REQUIRES_OK(context, context->allocate_output(0, x.shape(), &y));
    const median::Maps maps = MapsOf(x);
    const float* const from = x.flat<float>().data();
    float* const to = y->flat<float>().data();
    const auto medians = median::Best(median::MediansAnyCpu, median::MediansAvx2, median::MediansAvx512);
    maps.ForEach(cpu_conv::Threads(context), [&](int64_t image, int64_t row, int64_t column, int64_t first, int64_t n) {
      const float* neighbours[median::kNeighbours];
      maps.Neighbours(from, image, row, column, first, neighbours);
      medians(neighbours, n, to + maps.Place(image, row, column) + first);
    });
  }
};

// An op of a map, its medians and a third map like them.
class OfMediansOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &y = context->input(1), &third = context->input(2);
    OP_REQUIRES(context, x.dims() == 4 && y.shape() == x.shape() && third.shape() == x.shape(),
                errors::InvalidArgument("no feature map, its medians and a map like them: ", x.shape().DebugString(), ", ",
                                        y.shape().DebugString(), ", ", third.shape().DebugString()));
    Tensor* result;
    OP_REQUIRES_OK(context, context->allocate_output(0, x.shape(), &result));
    Run(MapsOf(x), cpu_conv::Threads(context), x.flat<float>().data(), y.flat<float>().data(),
        third.flat<float>().data(), result->flat<float>().data());
  }

 protected:
  virtual void Run(const median::Maps& maps, const cpu_conv::Parallel& threads, const float* x, const float* y,
                   const float* third, float* to) = 0;
};

class MedianOfNeighboursGradientOp : public OfMediansOp {
 public:
  using OfMediansOp::OfMediansOp;

 protected:
  void Run(const median::Maps& maps, const cpu_conv::Parallel& threads, const float* x, const float* y,
           const float* upstream, float* to) override {
    std::fill_n(to, maps.size(), 0.f);
    const auto add = median::Best(median::GradientsAnyCpu, median::GradientsAvx2, median::GradientsAvx512);
    maps.ForEach(threads, [&](int64_t image, int64_t row, int64_t column, int64_t first, int64_t n) {
      const float* neighbours[median::kNeighbours];
      float* their_gradients[median::kNeighbours];
      maps.Neighbours(x, image, row, column, first, neighbours);
      maps.Neighbours(to, image, row, column, first, their_gradients);
      const int64_t here = maps.Place(image, row, column) + first;
      add(neighbours, y + here, upstream + here, n, their_gradients);
    });
  }
};

class MedianOfNeighboursChosenOp : public OfMediansOp {
 public:
  using OfMediansOp::OfMediansOp;

 protected:
  void Run(const median::Maps& maps, const cpu_conv::Parallel& threads, const float* x, const float* y,
           const float* values, float* to) override {
    maps.ForEach(threads, [&](int64_t image, int64_t row, int64_t column, int64_t first, int64_t n) {
      const float *neighbours[median::kNeighbours], *their_values[median::kNeighbours];
      maps.Neighbours(x, image, row, column, first, neighbours);
      maps.Neighbours(values, image, row, column, first, their_values);
      const int64_t here = maps.Place(image, row, column) + first;
      median::Choose(neighbours, y + here, their_values, n, to + here);
    });
  }
};

REGISTER_KERNEL_BUILDER(Name("MedianOfNeighbours").Device(DEVICE_CPU), MedianOfNeighboursOp);
REGISTER_KERNEL_BUILDER(Name("MedianOfNeighboursGradient").Device(DEVICE_CPU), MedianOfNeighboursGradientOp);
REGISTER_KERNEL_BUILDER(Name("MedianOfNeighboursChosen").Device(DEVICE_CPU), MedianOfNeighboursChosenOp);

}  // namespace
}  // namespace tensorflow
