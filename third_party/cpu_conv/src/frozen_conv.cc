// The ops FrozenWeights and FrozenConv: convolutions of 1x1 and, of stride 1, 3x3; NHWC, padding SAME.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/tensor_shape.h"

#include "common.h"
#include "frozen.h"

#define ISA
#define NAME any_cpu
#define LANES 8
#define ROWS 2
#include "frozen_kernels.inc"
#undef ISA
#undef NAME
#undef ROWS

#if defined(__x86_64__)
#define ISA __attribute__((target("avx2,fma")))
#define NAME avx2
#define ROWS 6
#include "frozen_kernels.inc"
#undef ISA
#undef NAME
#undef LANES
#undef ROWS
#define ISA __attribute__((target("avx512f,avx512vl,avx2,fma")))
#define NAME avx512
#define LANES 16
#define ROWS 12
#include "frozen_kernels.inc"
#endif
#ifdef CPU_CONV_BFLOAT
#undef ISA
#undef NAME
#define ISA __attribute__((target("avx512f,avx512vl,avx512bw,avx512bf16,avx2,fma")))
#define NAME avx512_bf16
#define BFLOAT
#include "frozen_kernels.inc"
#endif

namespace tensorflow {
namespace {

// `turned`: weights of the gradient to the inputs.
REGISTER_OP("FrozenWeights")
    .Input("w: float")
    .Output("weights: T")
    .Attr("T: {float, bfloat16}")
    .Attr("turned: bool")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle w;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &w));
      bool turned;
      TF_RETURN_IF_ERROR(c->GetAttr("turned", &turned));
      const auto in = c->Dim(w, turned ? 3 : 2), out = c->Dim(w, turned ? 2 : 3);
      shape_inference::DimensionHandle panels, points = c->UnknownDim();
      TF_RETURN_IF_ERROR(c->Divide(out, frozen::kPanel, true, &panels));
      if (c->ValueKnown(c->Dim(w, 0))) points = c->MakeDim(c->Value(c->Dim(w, 0)) == 1 ? 1 : frozen::kPoints);
      c->set_output(0, c->MakeShape({points, panels, in, c->MakeDim(frozen::kPanel)}));
      return Status();
    });

// bias, addend and mask may be empty: then there is none.
REGISTER_OP("FrozenConv")
    .Input("x: T")
    .Input("weights: T")
    .Input("bias: T")
    .Input("addend: T")
    .Input("mask: T")
    .Output("y: T")
    .Attr("T: {float, bfloat16}")
    .Attr("relu: bool")
    .Attr("relu_addend: bool")
    .Attr("stride: int >= 1")
    .Attr("addend_stride: int >= 1")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle x, weights;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &weights));
      shape_inference::DimensionHandle out;
      TF_RETURN_IF_ERROR(c->Multiply(c->Dim(weights, 1), frozen::kPanel, &out));
      int stride;
      TF_RETURN_IF_ERROR(c->GetAttr("stride", &stride));
      c->set_output(0, c->MakeShape({c->Dim(x, 0), cpu_conv::Strided(c, c->Dim(x, 1), stride),
                                     cpu_conv::Strided(c, c->Dim(x, 2), stride), out}));
      return Status();
    });

template <typename T>
struct ElementOf {
  typedef T Type;
};
template <>
struct ElementOf<bfloat16> {
  typedef frozen::bfloat Type;
};

const frozen::Kernels<float>* BestKernels(float) {
#if defined(__x86_64__)
  if (cpu_conv::BestIsa() >= cpu_conv::Isa::kAvx512) return &frozen::avx512::kFloat;
  if (cpu_conv::BestIsa() == cpu_conv::Isa::kAvx2) return &frozen::avx2::kFloat;
#endif
  return &frozen::any_cpu::kFloat;
}

// null where this CPU has no instructions for it.
const frozen::Kernels<frozen::bfloat>* BestKernels(frozen::bfloat) {
#ifdef CPU_CONV_BFLOAT
  if (cpu_conv::BestIsa() == cpu_conv::Isa::kAvx512Bf16) return &frozen::avx512_bf16::kBfloat;
#endif
  return nullptr;
}

template <typename T>
class FrozenOp : public OpKernel {
 public:
  typedef typename ElementOf<T>::Type Element;

  explicit FrozenOp(OpKernelConstruction* context) : OpKernel(context), kernels_(BestKernels(Element())) {
    OP_REQUIRES(context, kernels_, errors::Unimplemented("this CPU has no instructions for products of bfloat16"));
  }

 protected:
  static Element* Data(const Tensor& tensor) {
    return reinterpret_cast<Element*>(const_cast<T*>(tensor.flat<T>().data()));
  }

  const frozen::Kernels<Element>* const kernels_;
};

template <typename T>
class FrozenWeightsOp : public FrozenOp<T> {
 public:
  explicit FrozenWeightsOp(OpKernelConstruction* context) : FrozenOp<T>(context) {
    OP_REQUIRES_OK(context, context->GetAttr("turned", &turned_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& w = context->input(0);
    OP_REQUIRES(context, w.dims() == 4 && w.dim_size(0) == w.dim_size(1) && (w.dim_size(0) == 1 || w.dim_size(0) == 3) &&
                w.dim_size(2) % frozen::kPanel == 0 && w.dim_size(3) % frozen::kPanel == 0,
                errors::InvalidArgument("w must be (1, 1, in, out) or (3, 3, in, out), with multiples of ",
                                        int{frozen::kPanel}, " channels: ", w.shape().DebugString()));
    const int64_t taps = w.dim_size(0) * w.dim_size(1), in = w.dim_size(2), out = w.dim_size(3);
    Tensor* weights;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({
        taps == 1 ? 1 : frozen::kPoints, (turned_ ? in : out) / frozen::kPanel, turned_ ? out : in, frozen::kPanel}),
        &weights));
    frozen::TransformWeights(*this->kernels_, w.flat<float>().data(), taps, in, out, turned_, this->Data(*weights),
                             cpu_conv::Threads(context));
  }

 private:
  bool turned_;
};

template <typename T>
class FrozenConvOp : public FrozenOp<T> {
 public:
  typedef typename FrozenOp<T>::Element Element;

  explicit FrozenConvOp(OpKernelConstruction* context) : FrozenOp<T>(context) {
    OP_REQUIRES_OK(context, context->GetAttr("relu", &relu_));
    OP_REQUIRES_OK(context, context->GetAttr("relu_addend", &relu_addend_));
    OP_REQUIRES_OK(context, context->GetAttr("stride", &stride_));
    OP_REQUIRES_OK(context, context->GetAttr("addend_stride", &addend_stride_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &weights = context->input(1);
    OP_REQUIRES(context, x.dims() == 4 && weights.dims() == 4 && weights.dim_size(2) == x.dim_size(3) &&
                (weights.dim_size(0) == 1 || weights.dim_size(0) == frozen::kPoints) &&
                weights.dim_size(3) == frozen::kPanel && x.dim_size(3) % frozen::kPanel == 0 &&
                x.dim_size(3) < 1 << 20 && weights.dim_size(1) < 1 << 15,
                errors::InvalidArgument("weights are not of a convolution of x: ", weights.shape().DebugString(), ", ",
                                        x.shape().DebugString()));
    const int64_t out = weights.dim_size(1) * frozen::kPanel;
    const int64_t height = cpu_conv::Strided(x.dim_size(1), stride_), width = cpu_conv::Strided(x.dim_size(2), stride_);
    const TensorShape y_shape({x.dim_size(0), height, width, out});
    frozen::Convolution<Element> c = {x.dim_size(0), height, width, static_cast<int>(x.dim_size(3)), static_cast<int>(out)};
    c.stride = stride_;
    c.addend_stride = addend_stride_;
    c.x_height = x.dim_size(1);
    c.x_width = x.dim_size(2);
    c.x = this->Data(x);
    c.weights = this->Data(weights);
    c.relu = relu_;
    c.relu_addend = relu_addend_;
    OP_REQUIRES_OK(context, Optional(context, 2, TensorShape({out}), &c.bias));
    const TensorShape addend_shape({x.dim_size(0), cpu_conv::Strided(height, addend_stride_),
                                    cpu_conv::Strided(width, addend_stride_), out});
    OP_REQUIRES_OK(context, Optional(context, 3, addend_shape, &c.addend));
    OP_REQUIRES_OK(context, Optional(context, 4, y_shape, &c.mask));
    const bool is_1x1 = weights.dim_size(0) == 1;
    OP_REQUIRES(context, is_1x1 || (!c.addend && stride_ == 1), errors::Unimplemented("3x3 with an addend or a stride"));
    Tensor* y;
    // an addend that nobody else needs may be replaced: it is read where the sum is written
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({3}, 0, y_shape, &y));
    if (y_shape.num_elements() == 0) return;
    c.y = this->Data(*y);
    if (is_1x1) {
      frozen::Convolve1x1(*this->kernels_, c, cpu_conv::Threads(context));
    } else {
      frozen::Convolve3x3(*this->kernels_, c, context->device()->tensorflow_cpu_worker_threads()->num_threads,
                          cpu_conv::Threads(context));
    }
  }

 private:
  Status Optional(OpKernelContext* context, int input, const TensorShape& shape, const Element** data) {
    const Tensor& tensor = context->input(input);
    *data = nullptr;
    if (tensor.dims() == 1 && tensor.NumElements() == 0) return Status();
    if (!(tensor.shape() == shape)) {
      return errors::InvalidArgument("an input has the shape ", tensor.shape().DebugString(), ", not ",
                                     shape.DebugString());
    }
    *data = this->Data(tensor);
    return Status();
  }

  bool relu_, relu_addend_;
  int stride_, addend_stride_;
};

#define REGISTER(T)                                                                                               \
  REGISTER_KERNEL_BUILDER(Name("FrozenWeights").Device(DEVICE_CPU).TypeConstraint<T>("T"), FrozenWeightsOp<T>); \
  REGISTER_KERNEL_BUILDER(Name("FrozenConv").Device(DEVICE_CPU).TypeConstraint<T>("T"), FrozenConvOp<T>)
REGISTER(float);
REGISTER(bfloat16);

}  // namespace
}  // namespace tensorflow
