// The ops FrozenWeights and FrozenConv: convolutions of 1x1 and 3x3; NHWC, padding SAME or symmetric.
#include <vector>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/tensor_shape.h"

#include "common.h"
#include "frozen.h"

namespace tensorflow {
namespace {

// `turned`: weights of the gradient to the inputs. 3x3 of stride 1 are for Winograd's algorithm, and may be in groups.
REGISTER_OP("FrozenWeights")
    .Input("w: float")
    .Output("weights: T")
    .Attr("T: {float, bfloat16}")
    .Attr("turned: bool")
    .Attr("stride: int >= 1")
    .Attr("groups: int >= 1")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle w;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &w));
      bool turned;
      int groups;
      TF_RETURN_IF_ERROR(c->GetAttr("turned", &turned));
      TF_RETURN_IF_ERROR(c->GetAttr("groups", &groups));
      shape_inference::DimensionHandle in, panels;
      TF_RETURN_IF_ERROR(c->Multiply(c->Dim(w, 2), groups, &in));
      TF_RETURN_IF_ERROR(c->Divide(turned ? in : c->Dim(w, 3), frozen::kPanel, true, &panels));
      c->set_output(0, c->MakeShape({c->UnknownDim(), panels, c->UnknownDim(), c->MakeDim(frozen::kPanel)}));
      return Status();
    });

// bias, addend and mask may be empty: then there is none. `turned`: the gradient to the inputs of a convolution with that
// stride, which are like the mask, though it need not be one (`masked`). `symmetric`: padded alike on all sides, which with
// a stride is not SAME.
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
    .Attr("turned: bool")
    .Attr("masked: bool")
    .Attr("addend_stride: int >= 1")
    .Attr("symmetric: bool = false")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      shape_inference::ShapeHandle x, weights;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &weights));
      shape_inference::DimensionHandle out;
      TF_RETURN_IF_ERROR(c->Multiply(c->Dim(weights, 1), frozen::kPanel, &out));
      int stride;
      TF_RETURN_IF_ERROR(c->GetAttr("stride", &stride));
      bool turned;
      TF_RETURN_IF_ERROR(c->GetAttr("turned", &turned));
      if (turned) {
        shape_inference::ShapeHandle mask;
        TF_RETURN_IF_ERROR(c->WithRank(c->input(4), 4, &mask));
        c->set_output(0, mask);
        return Status();
      }
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

template <typename T>
class FrozenOp : public OpKernel {
 public:
  typedef typename ElementOf<T>::Type Element;

  explicit FrozenOp(OpKernelConstruction* context) : OpKernel(context), kernels_(frozen::BestKernels(Element())) {
    OP_REQUIRES(context, kernels_, errors::Unimplemented("this CPU has no instructions for products of bfloat16"));
  }

 protected:
  static Element* Data(const Tensor& tensor) {
    return reinterpret_cast<Element*>(const_cast<T*>(tensor.flat<T>().data()));
  }

  const frozen::Kernels<Element>* const kernels_;
};

// In the gradient to the inputs of a convolution with a stride those that leave the same residue, as to rows and to
// columns, have the same taps: of the residue whose first tap is `row` and `column`.
struct Residue {
  int row, column, first;  // `first`: of its taps, among those of all residues

  static std::vector<Residue> All(int kernel, int stride) {
    std::vector<Residue> all;
    for (int row = 0, first = 0; row < stride; ++row) {
      for (int column = 0; column < stride; ++column) {
        all.push_back({row, column, first});
        first += cpu_conv::Taps(kernel, stride, 0, row).count * cpu_conv::Taps(kernel, stride, 0, column).count;
      }
    }
    return all;
  }
};

std::vector<int> InOrder(const frozen::Weights& weights, int stride) {
  std::vector<int> taps;
  if (weights.taps == 1 || !weights.turned) {
    for (int tap = 0; tap < weights.taps; ++tap) taps.push_back(tap);
    return taps;
  }
  for (const Residue& residue : Residue::All(3, stride)) {
    const cpu_conv::Taps rows(3, stride, 0, residue.row), columns(3, stride, 0, residue.column);
    for (int u = 0; u < rows.count; ++u) {
      for (int v = 0; v < columns.count; ++v) taps.push_back(3 * rows.tap(u, stride) + columns.tap(v, stride));
    }
  }
  return taps;
}

template <typename T>
class FrozenWeightsOp : public FrozenOp<T> {
 public:
  explicit FrozenWeightsOp(OpKernelConstruction* context) : FrozenOp<T>(context) {
    OP_REQUIRES_OK(context, context->GetAttr("turned", &turned_));
    OP_REQUIRES_OK(context, context->GetAttr("stride", &stride_));
    OP_REQUIRES_OK(context, context->GetAttr("groups", &groups_));
    OP_REQUIRES(context, stride_ <= 3, errors::InvalidArgument("the stride is at most 3, not ", stride_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& w = context->input(0);
    OP_REQUIRES(context, w.dims() == 4 && w.dim_size(0) == w.dim_size(1) && (w.dim_size(0) == 1 || w.dim_size(0) == 3) &&
                w.NumElements() > 0,
                errors::InvalidArgument("w must be (1, 1, in, out) or (3, 3, in / groups, out): ", w.shape().DebugString()));
    const frozen::Weights weights = {w.flat<float>().data(), static_cast<int>(w.dim_size(0) * w.dim_size(1)),
                                     w.dim_size(2) * groups_, w.dim_size(3), groups_, turned_};
    const bool in_tiles = weights.taps == 9 && stride_ == 1;
    const int64_t in = weights.in / groups_, out = weights.out / groups_, panel = frozen::kPanel;
    const auto fits = [panel](int64_t channels) { return channels % panel == 0 || (channels > 1 && panel % channels == 0); };
    OP_REQUIRES(context, weights.in % panel == 0 && weights.out % panel == 0 && weights.out % groups_ == 0 &&
                (groups_ == 1 || (in_tiles && in > 0 && fits(in) && fits(out) && weights.depth() % frozen::kChunk == 0)),
                errors::InvalidArgument("w must have multiples of ", panel, " channels, a group's, 3x3 of stride 1, those or "
                                        "2, 4, 8 or 16: ", w.shape().DebugString(), " in ", groups_, " groups"));
    const int64_t depth = in_tiles ? weights.depth() : weights.taps * weights.from();
    Tensor* prepared;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({
        in_tiles ? frozen::kPoints : 1, weights.to() / panel, depth, panel}), &prepared));
    if (in_tiles) {
      frozen::TransformWeights(*this->kernels_, weights, this->Data(*prepared), cpu_conv::Threads(context));
    } else {
      frozen::PackWeights(*this->kernels_, weights, InOrder(weights, stride_).data(), this->Data(*prepared),
                          cpu_conv::Threads(context));
    }
  }

 private:
  bool turned_;
  int stride_, groups_;
};

template <typename T>
class FrozenConvOp : public FrozenOp<T> {
 public:
  typedef typename FrozenOp<T>::Element Element;

  explicit FrozenConvOp(OpKernelConstruction* context) : FrozenOp<T>(context) {
    OP_REQUIRES_OK(context, context->GetAttr("relu", &relu_));
    OP_REQUIRES_OK(context, context->GetAttr("relu_addend", &relu_addend_));
    OP_REQUIRES_OK(context, context->GetAttr("stride", &stride_));
    OP_REQUIRES_OK(context, context->GetAttr("turned", &turned_));
    OP_REQUIRES_OK(context, context->GetAttr("masked", &masked_));
    OP_REQUIRES_OK(context, context->GetAttr("addend_stride", &addend_stride_));
    OP_REQUIRES_OK(context, context->GetAttr("symmetric", &symmetric_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &weights = context->input(1);
    const int64_t depth = weights.dims() == 4 ? weights.dim_size(2) : 0, in = x.dims() == 4 ? x.dim_size(3) : 0;
    const bool in_tiles = depth > 0 && weights.dim_size(0) == frozen::kPoints;
    const int kernel = in_tiles || depth == 9 * in ? 3 : 1;
    OP_REQUIRES(context, depth > 0 && in > 0 && in % frozen::kPanel == 0 && weights.dim_size(3) == frozen::kPanel &&
                (in_tiles ? in % depth == 0 && weights.dim_size(1) % (in / depth) == 0 && stride_ == 1
                          : weights.dim_size(0) == 1 && depth == kernel * kernel * in) &&
                in < 1 << 20 && weights.dim_size(1) < 1 << 15,
                errors::InvalidArgument("weights are not of a convolution of x: ", weights.shape().DebugString(), ", ",
                                        x.shape().DebugString()));
    const int64_t out = weights.dim_size(1) * frozen::kPanel;
    const Tensor& like = context->input(4);
    OP_REQUIRES(context, !turned_ || (like.dims() == 4 && stride_ <= 3 &&
                                      cpu_conv::Strided(like.dim_size(1), stride_) == x.dim_size(1) &&
                                      cpu_conv::Strided(like.dim_size(2), stride_) == x.dim_size(2)),
                errors::InvalidArgument("turned, there must be a mask of the size that gives x with this stride: ",
                                        like.shape().DebugString(), ", ", x.shape().DebugString()));
    frozen::Convolution<Element> c = {};
    c.batch = x.dim_size(0);
    c.height = turned_ ? like.dim_size(1) : cpu_conv::Strided(x.dim_size(1), stride_);
    c.width = turned_ ? like.dim_size(2) : cpu_conv::Strided(x.dim_size(2), stride_);
    c.x_height = x.dim_size(1);
    c.x_width = x.dim_size(2);
    c.in = c.x_step = in;
    c.out = c.y_step = out;
    c.panels = weights.dim_size(1);
    c.depth = depth;
    c.groups = in_tiles ? in / depth : 1;
    c.addend_stride = addend_stride_;
    c.x = this->Data(x);
    c.weights = this->Data(weights);
    c.relu = relu_;
    c.relu_addend = relu_addend_;
    const TensorShape y_shape({c.batch, c.height, c.width, out});
    OP_REQUIRES_OK(context, Optional(context, 2, TensorShape({out}), &c.bias));
    const TensorShape addend_shape({c.batch, cpu_conv::Strided(c.height, addend_stride_),
                                    cpu_conv::Strided(c.width, addend_stride_), out});
    OP_REQUIRES_OK(context, Optional(context, 3, addend_shape, &c.addend));
    OP_REQUIRES_OK(context, Optional(context, 4, y_shape, &c.mask));
    if (!masked_) c.mask = nullptr;
    OP_REQUIRES(context, !in_tiles || !c.addend, errors::Unimplemented("3x3 of stride 1 with an addend"));
    Tensor* y;
    // an addend that nobody else needs may be replaced: it is read where the sum is written
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({3}, 0, y_shape, &y));
    if (y_shape.num_elements() == 0) return;
    c.y = this->Data(*y);
    const cpu_conv::Parallel threads = cpu_conv::Threads(context);
    if (in_tiles) {
      frozen::ConvolveAllTiles(*this->kernels_, c, context->device()->tensorflow_cpu_worker_threads()->num_threads, threads);
    } else if (turned_) {
      Gradient(c, kernel, threads);
    } else {
      c.rows = Forward(c.x_height, c.height, kernel);
      c.columns = Forward(c.x_width, c.width, kernel);
      frozen::ConvolvePixels(*this->kernels_, c, threads);
    }
  }

 private:
  int Padding(int64_t size, int kernel) const {  // before the first pixel
    return symmetric_ ? kernel / 2 : static_cast<int>(cpu_conv::Padding(size, kernel, stride_));
  }

  frozen::Line Forward(int64_t x_size, int64_t size, int kernel) const {
    return {0, size, 1, stride_, -Padding(x_size, kernel), kernel};
  }

  // Residue by residue, those whose taps `c` has weights for.
  void Gradient(frozen::Convolution<Element> c, int kernel, const cpu_conv::Parallel& threads) const {
    for (const Residue& residue : Residue::All(kernel, stride_)) {
      c.rows = Backward(c.height, residue.row, kernel);
      c.columns = Backward(c.width, residue.column, kernel);
      c.first_depth = residue.first * c.in;
      if (c.pixels() > 0) frozen::ConvolvePixels(*this->kernels_, c, threads);
    }
  }

  frozen::Line Backward(int64_t size, int first_tap, int kernel) const {
    const int padding = Padding(size, kernel);
    const int residue = (first_tap - padding + 3 * stride_) % stride_;
    const cpu_conv::Taps taps(kernel, stride_, padding, residue);
    return {residue, (size - residue + stride_ - 1) / stride_, stride_, 1, taps.start, taps.count};
  }

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

  bool relu_, relu_addend_, turned_, masked_, symmetric_;
  int stride_, addend_stride_;
};

#define REGISTER(T)                                                                                               \
  REGISTER_KERNEL_BUILDER(Name("FrozenWeights").Device(DEVICE_CPU).TypeConstraint<T>("T"), FrozenWeightsOp<T>); \
  REGISTER_KERNEL_BUILDER(Name("FrozenConv").Device(DEVICE_CPU).TypeConstraint<T>("T"), FrozenConvOp<T>)
REGISTER(float);
REGISTER(bfloat16);

}  // namespace
}  // namespace tensorflow
