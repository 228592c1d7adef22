// The ops MedianOfNeighbours, MedianOfNeighboursGradient and MedianOfNeighboursChosen: float32, NHWC (median.h). Another map's
// values at the neighbours that are the medians are the gradient of the gradient.
#include "tensorflow/core/framework/op.h"

#include "common.h"
#include "median.h"

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

// An op of maps of the same shape, whose result is like them.
class OfMapsOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const TensorShape& shape = context->input(0).shape();
    std::vector<const float*> inputs;
    for (int i = 0; i < context->num_inputs(); ++i) {
      const Tensor& input = context->input(i);
      OP_REQUIRES(context, input.dims() == 4 && input.shape() == shape,
                  errors::InvalidArgument("no feature map, or one that is not like the first, ", shape.DebugString(), ": ",
                                          input.shape().DebugString()));
      inputs.push_back(input.flat<float>().data());
    }
    Tensor* result;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &result));
    if (shape.num_elements() == 0) return;
    Run({shape.dim_size(0), shape.dim_size(1), shape.dim_size(2), shape.dim_size(3),
         context->device()->tensorflow_cpu_worker_threads()->num_threads}, cpu_conv::Threads(context), inputs,
        result->flat<float>().data());
  }

 protected:
  const median::Kernels& kernels_ = median::BestKernels();

 private:
  virtual void Run(const median::Maps& maps, const cpu_conv::Parallel& threads, const std::vector<const float*>& inputs,
                   float* to) = 0;
};

class MedianOfNeighboursOp : public OfMapsOp {
  using OfMapsOp::OfMapsOp;

  void Run(const median::Maps& maps, const cpu_conv::Parallel& threads, const std::vector<const float*>& inputs,
           float* to) override {
    maps.ForEach(threads, [&](const median::Row& row) { kernels_.medians(row, inputs[0], to); });
  }
};

class MedianOfNeighboursGradientOp : public OfMapsOp {
  using OfMapsOp::OfMapsOp;

  void Run(const median::Maps& maps, const cpu_conv::Parallel& threads, const std::vector<const float*>& inputs,
           float* to) override {
    maps.ForEach(threads, [&](const median::Row& row) {
      kernels_.add_gradients(row, inputs[0], inputs[1], inputs[2], to);
    });
  }
};

class MedianOfNeighboursChosenOp : public OfMapsOp {
  using OfMapsOp::OfMapsOp;

  void Run(const median::Maps& maps, const cpu_conv::Parallel& threads, const std::vector<const float*>& inputs,
           float* to) override {
    maps.ForEach(threads, [&](const median::Row& row) {
      kernels_.choose(row, inputs[0], inputs[1], inputs[2], to);
    });
  }
};

REGISTER_KERNEL_BUILDER(Name("MedianOfNeighbours").Device(DEVICE_CPU), MedianOfNeighboursOp);
REGISTER_KERNEL_BUILDER(Name("MedianOfNeighboursGradient").Device(DEVICE_CPU), MedianOfNeighboursGradientOp);
REGISTER_KERNEL_BUILDER(Name("MedianOfNeighboursChosen").Device(DEVICE_CPU), MedianOfNeighboursChosenOp);

}  // namespace
}  // namespace tensorflow
