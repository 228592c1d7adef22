// The op ConvFilterGradient: the gradient to the weights of a convolution of 1x1 or 3x3, float32, NHWC, padding SAME.
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/tensor_shape.h"

#include "common.h"
#include "filter.h"

namespace tensorflow {
namespace {

REGISTER_OP("ConvFilterGradient")
    .Input("x: float")
    .Input("w_shape: int32")
    .Input("upstream: float")
    .Output("gradient: float")
    .Attr("stride: int >= 1")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle shape;
      TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(1, &shape));
      c->set_output(0, shape);
      return Status();
    });

class ConvFilterGradientOp : public OpKernel {
 public:
  explicit ConvFilterGradientOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("stride", &stride_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &upstream = context->input(2);
    TensorShape w_shape;
    OP_REQUIRES(context, context->input(1).dims() == 1, errors::InvalidArgument("a shape must be a vector"));
    OP_REQUIRES_OK(context, TensorShapeUtils::MakeShape(context->input(1).flat<int32>().data(),
                                                        context->input(1).NumElements(), &w_shape));
    const bool fits = x.dims() == 4 && w_shape.dims() == 4 && w_shape.num_elements() > 0 && x.dim_size(3) > 0 &&
                      x.dim_size(3) % w_shape.dim_size(2) == 0;
    const int64_t groups = fits ? x.dim_size(3) / w_shape.dim_size(2) : 1;
    const int taps = fits ? w_shape.dim_size(0) * w_shape.dim_size(1) : 0;
    const frozen::Weights weights = {nullptr, taps, fits ? x.dim_size(3) : 0, fits ? w_shape.dim_size(3) : 0, groups,
                                     false};
    OP_REQUIRES(context, fits && weights.in % frozen::kPanel == 0 && weights.out % frozen::kPanel == 0 &&
                w_shape.dim_size(0) == w_shape.dim_size(1) && (taps == 1 || taps == 9) && InPanels(weights) &&
                (groups == 1 || (taps == 9 && stride_ == 1)),
                errors::InvalidArgument("no gradient for weights ", w_shape.DebugString(), " of ", x.shape().DebugString()));
    const int kernel = w_shape.dim_size(0);
    frozen::FilterGradient g = {};
    g.in_tiles = kernel == 3 && stride_ == 1;
    frozen::Convolution<float>&c = g.of_x, &d = g.of_y;
    c.batch = d.batch = x.dim_size(0);
    c.x_height = x.dim_size(1);
    c.x_width = x.dim_size(2);
    c.height = d.height = cpu_conv::Strided(c.x_height, stride_);
    c.width = d.width = cpu_conv::Strided(c.x_width, stride_);
    c.in = c.x_step = weights.in;
    d.in = d.x_step = weights.out;
    c.groups = d.groups = g.in_tiles ? weights.in / weights.depth() : 1;
    c.rows = Line(c.x_height, c.height, kernel);
    c.columns = Line(c.x_width, c.width, kernel);
    c.x = x.flat<float>().data();
    d.x = upstream.flat<float>().data();
    const TensorShape y_shape({c.batch, c.height, c.width, weights.out});
    OP_REQUIRES(context, upstream.shape() == y_shape,
                errors::InvalidArgument("the gradient has the shape ", upstream.shape().DebugString(), ", not ",
                                        y_shape.DebugString()));
    Tensor* gradient;
    OP_REQUIRES_OK(context, context->allocate_output(0, w_shape, &gradient));
    Tensor sums;
    OP_REQUIRES_OK(context, context->allocate_temp(DT_FLOAT, TensorShape({g.sums()}), &sums));
    frozen::SumUpGroups(frozen::BestFilterKernels(), g, sums.flat<float>().data(), cpu_conv::Threads(context));
    Write(g, weights, sums.flat<float>().data(), gradient->flat<float>().data(), cpu_conv::Threads(context));
  }

 private:
  // Whether each group's channels are whole panels.
  static bool InPanels(const frozen::Weights& weights) {
    return weights.out % weights.groups == 0 && weights.group_to() % frozen::kPanel == 0 &&
           weights.group_from() % frozen::kPanel == 0;
  }

  frozen::Line Line(int64_t x_size, int64_t size, int kernel) const {
    return {0, size, 1, stride_, static_cast<int>(-cpu_conv::Padding(x_size, kernel, stride_)), kernel};
  }

  static void Write(const frozen::FilterGradient& g, const frozen::Weights& weights, const float* sums, float* w,
                    const cpu_conv::Parallel& threads) {
    const int64_t depth = g.depth(), panels = g.panels_out();
    threads(panels * depth, g.in_tiles ? 500 : 20, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t panel = i / depth, k = i % depth;
        const float* from = sums + i * frozen::kPanel;
        if (g.in_tiles) {
          float taps[9][frozen::kPanel];
          frozen::BestFilterKernels().weights(from, depth * panels * frozen::kPanel, taps);
          for (int tap = 0; tap < 9; ++tap) {
            std::copy_n(taps[tap], frozen::kPanel, w + (tap * depth + k) * weights.out + panel * frozen::kPanel);
          }
        } else {
          std::copy_n(from, frozen::kPanel, w + k * weights.out + panel * frozen::kPanel);
        }
      }
    });
  }

  int stride_;
};

REGISTER_KERNEL_BUILDER(Name("ConvFilterGradient").Device(DEVICE_CPU), ConvFilterGradientOp);

}  // namespace
}  // namespace tensorflow
