// The ops GroupedConv2D, GroupedConv2DInputGradient and GroupedConv2DFilterGradient: float32, NHWC, padding SAME.
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/tensor_shape.h"

#include "common.h"
#include "grouped.h"

#define ISA
#define NAME any_cpu
#define LANES 4
#define BLOCK_16 2
#define BLOCK_8 4
#include "grouped_kernels.inc"
#undef ISA
#undef NAME
#undef LANES
#undef BLOCK_16
#undef BLOCK_8

#if defined(__x86_64__)
#define ISA __attribute__((target("avx2,fma")))
#define NAME avx2
#define LANES 8
#define BLOCK_16 6
#define BLOCK_8 12
#include "grouped_kernels.inc"
#undef ISA
#undef NAME
#undef LANES
#undef BLOCK_16
#define ISA __attribute__((target("avx512f,avx512vl,avx2,fma")))
#define NAME avx512
#define LANES 16
#define BLOCK_16 12
#include "grouped_kernels.inc"
#endif

namespace tensorflow {
namespace {

REGISTER_OP("GroupedConv2D")
    .Input("x: float")
    .Input("w: float")
    .Output("y: float")
    .Attr("stride: int >= 1")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle x, w;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &w));
      int stride;
      TF_RETURN_IF_ERROR(c->GetAttr("stride", &stride));
      c->set_output(0, c->MakeShape({c->Dim(x, 0), cpu_conv::Strided(c, c->Dim(x, 1), stride),
                                     cpu_conv::Strided(c, c->Dim(x, 2), stride), c->Dim(w, 3)}));
      return Status();
    });

Status ShapeFromInput(shape_inference::InferenceContext* c, int input) {
  shape_inference::ShapeHandle shape;
  TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(input, &shape));
  c->set_output(0, shape);
  return Status();
}

REGISTER_OP("GroupedConv2DInputGradient")
    .Input("x_shape: int32")
    .Input("w: float")
    .Input("upstream: float")
    .Output("gradient: float")
    .Attr("stride: int >= 1")
    .SetShapeFn([](shape_inference::InferenceContext* c) { return ShapeFromInput(c, 0); });

REGISTER_OP("GroupedConv2DFilterGradient")
    .Input("x: float")
    .Input("w_shape: int32")
    .Input("upstream: float")
    .Output("gradient: float")
    .Attr("stride: int >= 1")
    .SetShapeFn([](shape_inference::InferenceContext* c) { return ShapeFromInput(c, 1); });

const grouped::Kernels& BestKernels() {
#if defined(__x86_64__)
  if (cpu_conv::BestIsa() >= cpu_conv::Isa::kAvx512) return grouped::avx512::kKernels;
  if (cpu_conv::BestIsa() == cpu_conv::Isa::kAvx2) return grouped::avx2::kKernels;
#endif
  return grouped::any_cpu::kKernels;
}

// The sizes of a convolution.
struct Convolution {
  grouped::Map x, y;
  int kernel_rows, kernel_columns, stride, groups, top, left;  // of the padding

  int channels_in() const { return x.channels / groups; }
  int channels_out() const { return y.channels / groups; }

  Status Init(const TensorShape& x_shape, const TensorShape& w_shape, int stride_) {
    if (x_shape.dims() != 4 || w_shape.dims() != 4) {
      return errors::InvalidArgument("x and w must have four dimensions: ", x_shape.DebugString(), ", ",
                                     w_shape.DebugString());
    }
    const int64_t per_group = w_shape.dim_size(2), out = w_shape.dim_size(3);
    if (per_group < 1 || x_shape.dim_size(3) < 1 || x_shape.dim_size(3) % per_group ||
        out % (x_shape.dim_size(3) / per_group)) {
      return errors::InvalidArgument("channels don't divide into groups: x ", x_shape.DebugString(), ", w ",
                                     w_shape.DebugString());
    }
    if (x_shape.dim_size(2) > (1 << 30) / x_shape.dim_size(3)) {
      return errors::InvalidArgument("a row of x is too large: ", x_shape.DebugString());
    }
    if (w_shape.num_elements() == 0) return errors::InvalidArgument("an empty w: ", w_shape.DebugString());
    stride = stride_;
    groups = x_shape.dim_size(3) / per_group;
    kernel_rows = w_shape.dim_size(0);
    kernel_columns = w_shape.dim_size(1);
    x = {x_shape.dim_size(0), x_shape.dim_size(1), x_shape.dim_size(2), x_shape.dim_size(3)};
    y = {x.batch, (x.height + stride - 1) / stride, (x.width + stride - 1) / stride, out};
    top = cpu_conv::Padding(x.height, kernel_rows, stride);
    left = cpu_conv::Padding(x.width, kernel_columns, stride);
    return Status();
  }

  TensorShape y_shape() const { return TensorShape({y.batch, y.height, y.width, y.channels}); }
  bool empty() const { return x.batch == 0 || x.height == 0 || x.width == 0; }

  grouped::Pass Forward() const {
    return {x, y, groups, kernel_rows, kernel_columns, stride, -top, -left, 1, 0, 0, y.height, y.width};
  }
};

// Weights of one group and tap: (channels in, all channels out) floats from `tap` on.
const float* Tap(const Convolution& c, const float* w, int group, int row, int column) {
  return w + (row * c.kernel_columns + column) * c.channels_in() * c.y.channels + group * c.channels_out();
}

void Pack(const Convolution& c, const float* w, const grouped::Packed& packed, const cpu_conv::Parallel& threads) {
  const int64_t in = c.channels_in(), out = c.channels_out();
  threads(c.groups, packed.group_floats(), [&](int64_t begin, int64_t end) {
    for (int group = begin; group < end; ++group) {
      for (int tap = 0; tap < c.kernel_rows * c.kernel_columns; ++tap) {
        const int row = tap / c.kernel_columns, column = tap % c.kernel_columns;
        const float* from = Tap(c, w, group, row, column);
        for (int k = 0; k < out; k += 16) {
          const int lanes = packed.lanes(k), outputs = std::min<int>(lanes, out - k);
          float* to = packed.block(group, row, column * in, k);
          for (int i = 0; i < in; ++i) std::copy_n(from + i * c.y.channels + k, outputs, to + i * lanes);
        }
      }
    }
  });
}

void Unpack(const Convolution& c, const grouped::Packed& packed, float* w, const cpu_conv::Parallel& threads) {
  const int64_t in = c.channels_in(), out = c.channels_out();
  threads(c.groups, packed.group_floats(), [&](int64_t begin, int64_t end) {
    for (int group = begin; group < end; ++group) {
      for (int tap = 0; tap < c.kernel_rows * c.kernel_columns; ++tap) {
        const int row = tap / c.kernel_columns, column = tap % c.kernel_columns;
        float* to = const_cast<float*>(Tap(c, w, group, row, column));
        for (int k = 0; k < out; k += 16) {
          const int lanes = packed.lanes(k), outputs = std::min<int>(lanes, out - k);
          const float* from = packed.block(group, row, column * in, k);
          for (int i = 0; i < in; ++i) std::copy_n(from + i * lanes, outputs, to + i * c.y.channels + k);
        }
      }
    }
  });
}

// For the gradient to the inputs: outputs and inputs change places, and taps their order.
void PackTurned(const Convolution& c, const cpu_conv::Taps& rows, const cpu_conv::Taps& columns, const float* w,
                const grouped::Packed& packed, const cpu_conv::Parallel& threads) {
  const int64_t in = c.channels_in(), out = c.channels_out();
  threads(c.groups, packed.group_floats(), [&](int64_t begin, int64_t end) {
    for (int group = begin; group < end; ++group) {
      for (int u = 0; u < rows.count; ++u) {
        for (int v = 0; v < columns.count; ++v) {
          const float* from = Tap(c, w, group, rows.tap(u, c.stride), columns.tap(v, c.stride));
          for (int k = 0; k < in; k += 16) {
            const int lanes = packed.lanes(k), outputs = std::min<int>(lanes, in - k);
            float* to = packed.block(group, u, v * out, k);
            for (int i = 0; i < outputs; ++i) {
              for (int j = 0; j < out; ++j) to[j * lanes + i] = from[(k + i) * c.y.channels + j];
            }
          }
        }
      }
    }
  });
}

class GroupedOp : public OpKernel {
 public:
  explicit GroupedOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("stride", &stride_));
  }

 protected:
  static Status ShapeOf(const Tensor& sizes, TensorShape* shape) {
    if (sizes.dims() != 1) return errors::InvalidArgument("a shape must be a vector");
    return TensorShapeUtils::MakeShape(sizes.flat<int32>().data(), sizes.NumElements(), shape);
  }

  static Status CheckUpstream(const Convolution& c, const Tensor& upstream) {
    if (upstream.shape() == c.y_shape()) return Status();
    return errors::InvalidArgument("the gradient has the shape ", upstream.shape().DebugString(), ", not ",
                                   c.y_shape().DebugString());
  }

  int stride_;
};

class ForwardOp : public GroupedOp {
 public:
  using GroupedOp::GroupedOp;

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &w = context->input(1);
    Convolution c;
    OP_REQUIRES_OK(context, c.Init(x.shape(), w.shape(), stride_));
    Tensor* y;
    OP_REQUIRES_OK(context, context->allocate_output(0, c.y_shape(), &y));
    if (c.empty()) return;
    grouped::Packed weights(c.groups, c.kernel_rows, c.kernel_columns * c.channels_in(), c.channels_out());
    Pack(c, w.flat<float>().data(), weights, cpu_conv::Threads(context));
    grouped::Correlate(BestKernels(), c.Forward(), weights, x.flat<float>().data(), y->flat<float>().data(),
                       cpu_conv::Threads(context));
  }
};

class InputGradientOp : public GroupedOp {
 public:
  using GroupedOp::GroupedOp;

  void Compute(OpKernelContext* context) override {
    const Tensor &w = context->input(1), &upstream = context->input(2);
    TensorShape x_shape;
    OP_REQUIRES_OK(context, ShapeOf(context->input(0), &x_shape));
    Convolution c;
    OP_REQUIRES_OK(context, c.Init(x_shape, w.shape(), stride_));
    OP_REQUIRES_OK(context, CheckUpstream(c, upstream));
    Tensor* gradient;
    OP_REQUIRES_OK(context, context->allocate_output(0, x_shape, &gradient));
    if (c.empty()) return;
    for (int row = 0; row < std::min<int64_t>(stride_, c.x.height); ++row) {
      for (int column = 0; column < std::min<int64_t>(stride_, c.x.width); ++column) {
        Residue(c, row, column, w.flat<float>().data(), upstream.flat<float>().data(), gradient->flat<float>().data(),
                cpu_conv::Threads(context));
      }
    }
  }

 private:
  // The inputs of rows and columns that leave these residues.
  void Residue(const Convolution& c, int row, int column, const float* w, const float* upstream, float* gradient,
               const cpu_conv::Parallel& threads) {
    const cpu_conv::Taps rows(c.kernel_rows, stride_, c.top, row), columns(c.kernel_columns, stride_, c.left, column);
    const grouped::Pass pass = {c.y, c.x, c.groups, rows.count, columns.count, 1, rows.start, columns.start, stride_, row,
                                column, (c.x.height - row + stride_ - 1) / stride_,
                                (c.x.width - column + stride_ - 1) / stride_};
    if (rows.count == 0 || columns.count == 0) {  // a kernel that is smaller than the stride leaves some inputs out
      for (int64_t n = 0; n < c.x.batch; ++n) {
        for (int64_t i = row; i < c.x.height; i += stride_) {
          for (int64_t j = column; j < c.x.width; j += stride_) {
            std::fill_n(gradient + ((n * c.x.height + i) * c.x.width + j) * c.x.channels, c.x.channels, 0.f);
          }
        }
      }
      return;
    }
    grouped::Packed weights(c.groups, rows.count, columns.count * c.channels_out(), c.channels_in());
    PackTurned(c, rows, columns, w, weights, threads);
    grouped::Correlate(BestKernels(), pass, weights, upstream, gradient, threads);
  }
};

class FilterGradientOp : public GroupedOp {
 public:
  using GroupedOp::GroupedOp;

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &upstream = context->input(2);
    TensorShape w_shape;
    OP_REQUIRES_OK(context, ShapeOf(context->input(1), &w_shape));
    Convolution c;
    OP_REQUIRES_OK(context, c.Init(x.shape(), w_shape, stride_));
    OP_REQUIRES_OK(context, CheckUpstream(c, upstream));
    Tensor* gradient;
    OP_REQUIRES_OK(context, context->allocate_output(0, w_shape, &gradient));
    if (c.empty()) {
      std::fill_n(gradient->flat<float>().data(), w_shape.num_elements(), 0.f);
      return;
    }
    const grouped::Packed sums = grouped::WeightGradient(
        BestKernels(), c.Forward(), x.flat<float>().data(), upstream.flat<float>().data(), cpu_conv::Threads(context));
    Unpack(c, sums, gradient->flat<float>().data(), cpu_conv::Threads(context));
  }
};

REGISTER_KERNEL_BUILDER(Name("GroupedConv2D").Device(DEVICE_CPU), ForwardOp);
REGISTER_KERNEL_BUILDER(Name("GroupedConv2DInputGradient").Device(DEVICE_CPU), InputGradientOp);
REGISTER_KERNEL_BUILDER(Name("GroupedConv2DFilterGradient").Device(DEVICE_CPU), FilterGradientOp);

}  // namespace
}  // namespace tensorflow

// The instruction set that the ops use here.
extern "C" const char* cpu_conv_isa() { return cpu_conv::Name(cpu_conv::BestIsa()); }
