// The op ZmqPullTensors: the tensors of the next message of a ZeroMQ PULL socket.
//
// A socket belongs to a session (it is a resource of its device) and is used by one thread of its own, so a pull that
// waits holds none of TensorFlow's threads. Nothing that arrives at the socket can end the process.
#include <zmq.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <memory>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/partial_tensor_shape.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/lib/core/threadpool.h"

#include "wire.h"

namespace tensorflow {
namespace {

constexpr int kPollMilliseconds = 50;  // how soon a pull notices that its session is closed

REGISTER_OP("ZmqPullTensors")
    .Output("tensors: types")
    .Attr("types: list(type) >= 1")
    .Attr("shapes: list(shape) = []")
    .Attr("end_point: string")
    .Attr("hwm: int >= 1 = 100")
    .Attr("bind: bool = true")
    .Attr("timeout: float = 0")
    .Attr("skip_malformed: bool = false")
    .Attr("advice: string = ''")
    .Attr("shared_name: string")
    .SetIsStateful()
    .SetShapeFn(shape_inference::UnknownShape)
    .Doc(R"doc(
Receives the next message of a ZeroMQ PULL socket as tensors; see the Python class ZMQPullSocket.
)doc");

class Message {
 public:
  Message() { zmq_msg_init(&message_); }
  ~Message() { zmq_msg_close(&message_); }
  Message(const Message&) = delete;
  Message& operator=(const Message&) = delete;
  zmq_msg_t* get() { return &message_; }
  const uint8_t* data() { return static_cast<const uint8_t*>(zmq_msg_data(&message_)); }
  size_t size() { return zmq_msg_size(&message_); }

 private:
  zmq_msg_t message_;
};

class PullSocket : public ResourceBase {
 public:
  PullSocket() : context_(zmq_ctx_new()), socket_(zmq_socket(context_, ZMQ_PULL)) {}

  ~PullSocket() override {
    thread_.reset();  // waits for a pull that is running
    if (socket_) zmq_close(socket_);
    while (zmq_ctx_term(context_) && zmq_errno() == EINTR) {
    }
  }

  string DebugString() const override { return "ZeroMQ PULL socket at " + end_point_; }

  // An empty string, or what went wrong.
  string Open(const string& end_point, int hwm, bool bind) {
    end_point_ = end_point;
    const int linger = 0, longest_pause = 1000;  // milliseconds, between attempts to connect
    const int64_t largest = wire::kMaxMessage;
    if (!socket_ || zmq_setsockopt(socket_, ZMQ_RCVHWM, &hwm, sizeof hwm) ||
        zmq_setsockopt(socket_, ZMQ_LINGER, &linger, sizeof linger) ||
        zmq_setsockopt(socket_, ZMQ_MAXMSGSIZE, &largest, sizeof largest) ||
        zmq_setsockopt(socket_, ZMQ_RECONNECT_IVL_MAX, &longest_pause, sizeof longest_pause) ||
        (bind ? zmq_bind(socket_, end_point.c_str()) : zmq_connect(socket_, end_point.c_str()))) {
      return string("cannot ") + (bind ? "bind " : "connect to ") + end_point + ": " + zmq_strerror(zmq_errno());
    }
    thread_.reset(new thread::ThreadPool(Env::Default(), "zmq_pull", 1));
    return "";
  }

  void Schedule(std::function<void()> work) { thread_->Schedule(std::move(work)); }

  // On the socket's thread. False where nothing came within the time.
  bool Wait(int milliseconds) {
    zmq_pollitem_t item = {socket_, 0, ZMQ_POLLIN, 0};
    return zmq_poll(&item, 1, milliseconds) > 0;
  }

  // The number of parts of the next message, the first of which goes to `message`; 0 where there is none.
  int Receive(Message* message) {
    if (zmq_msg_recv(message->get(), socket_, ZMQ_DONTWAIT) < 0) return 0;
    int parts = 1;
    for (bool more = zmq_msg_more(message->get()); more; ++parts) {
      Message rest;
      if (zmq_msg_recv(rest.get(), socket_, 0) < 0) break;
      more = zmq_msg_more(rest.get());
    }
    return parts;
  }

  // A message was skipped: whether to report it; ever fewer are.
  bool CountSkipped() {
    ++skipped_;
    return (skipped_ & (skipped_ - 1)) == 0;
  }
  int64_t skipped() const { return skipped_; }

 private:
  void* const context_;
  void* const socket_;
  string end_point_;
  int64_t skipped_ = 0;
  std::unique_ptr<thread::ThreadPool> thread_;
};

class ZmqPullTensorsOp : public AsyncOpKernel {
  using Clock = std::chrono::steady_clock;

 public:
  explicit ZmqPullTensorsOp(OpKernelConstruction* context) : AsyncOpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("types", &types_));
    OP_REQUIRES_OK(context, context->GetAttr("shapes", &shapes_));
    OP_REQUIRES_OK(context, context->GetAttr("end_point", &end_point_));
    OP_REQUIRES_OK(context, context->GetAttr("hwm", &hwm_));
    OP_REQUIRES_OK(context, context->GetAttr("bind", &bind_));
    OP_REQUIRES_OK(context, context->GetAttr("timeout", &timeout_));
    OP_REQUIRES_OK(context, context->GetAttr("skip_malformed", &skip_malformed_));
    OP_REQUIRES_OK(context, context->GetAttr("advice", &advice_));
    OP_REQUIRES_OK(context, context->GetAttr("shared_name", &shared_name_));
    OP_REQUIRES(context, shapes_.empty() || shapes_.size() == types_.size(),
                errors::InvalidArgument(shapes_.size(), " shapes for ", types_.size(), " types"));
    for (DataType type : types_) {
      OP_REQUIRES(context, wire::FindDtype(type),
                  errors::InvalidArgument(DataTypeString(type), " tensors cannot be received"));
    }
  }

  void ComputeAsync(OpKernelContext* context, DoneCallback done) override {
    PullSocket* socket = nullptr;
    OP_REQUIRES_OK_ASYNC(context,
                         context->resource_manager()->LookupOrCreate<PullSocket>(
                             "zmq_ops", shared_name_, &socket,
                             [this](PullSocket** created) {
                               PullSocket* opened = new PullSocket();
                               const string problem = opened->Open(end_point_, hwm_, bind_);
                               if (problem.empty()) {
                                 *created = opened;
                                 return Status();
                               }
                               opened->Unref();
                               return Status(errors::FailedPrecondition(problem));
                             }),
                         done);
    const Clock::time_point start = Clock::now();
    socket->Schedule([this, context, done, socket, start]() {
      const Status status = Pull(context, socket, start);
      socket->Unref();  // before `done`, after which the session may be gone
      OP_REQUIRES_OK_ASYNC(context, status, done);
      done();
    });
  }

 private:
  Status Pull(OpKernelContext* context, PullSocket* socket, Clock::time_point start) {
    string problem;  // of the last message that was skipped
    while (true) {
      const bool ready = socket->Wait(kPollMilliseconds);
      CancellationManager* cancellation = context->cancellation_manager();
      if (cancellation && cancellation->IsCancelled()) {
        return errors::Cancelled("a pull from ", end_point_, " was cancelled, as when its session is closed");
      }
      Message message;
      const int parts = ready ? socket->Receive(&message) : 0;
      if (parts) {
        std::vector<wire::TensorView> tensors;
        if (Check(parts, &message, &tensors, &problem)) return Copy(context, tensors);
        if (!skip_malformed_) {
          return errors::InvalidArgument("malformed message from ", end_point_, ": ", problem);
        }
        if (socket->CountSkipped()) {
          // Not TensorFlow's log, which a program may have silenced.
          std::fprintf(stderr, "zmq_ops: skipped %lld messages from %s; the last: %s\n",
                       static_cast<long long>(socket->skipped()), end_point_.c_str(), problem.c_str());
        }
      }
      const double waited = std::chrono::duration<double>(Clock::now() - start).count();
      if (timeout_ > 0 && waited >= timeout_) return errors::DeadlineExceeded(TimeoutMessage(problem));
    }
  }

  string TimeoutMessage(const string& problem) const {
    const string start = strings::StrCat("no data from ", end_point_, " in ", timeout_, " seconds");
    if (!problem.empty()) return start + ", only messages that do not fit; the last was " + problem;
    return advice_.empty() ? start : start + ": " + advice_;
  }

  bool Check(int parts, Message* message, std::vector<wire::TensorView>* tensors, string* problem) const {
    if (parts != 1) {
      *problem = strings::StrCat("a message of ", parts, " parts, instead of one");
      return false;
    }
    if (!wire::Reader(message->data(), message->size()).Read(tensors, problem)) return false;
    bool fits = tensors->size() == types_.size();
    for (size_t i = 0; fits && i < types_.size(); ++i) {
      fits = (*tensors)[i].dtype->number == types_[i] && (shapes_.empty() || FitsShape((*tensors)[i], shapes_[i]));
    }
    if (!fits) {
      *problem = "tensors of " + DescribeReceived(*tensors) + ", instead of " + DescribeExpected();
      if (!advice_.empty()) *problem += ": " + advice_;
    }
    return fits;
  }

  static bool FitsShape(const wire::TensorView& tensor, const PartialTensorShape& expected) {
    if (expected.unknown_rank()) return true;
    if (expected.dims() != static_cast<int>(tensor.shape.size())) return false;
    for (int d = 0; d < expected.dims(); ++d) {
      if (expected.dim_size(d) >= 0 && expected.dim_size(d) != tensor.shape[d]) return false;
    }
    return true;
  }

  static string DescribeReceived(const std::vector<wire::TensorView>& tensors) {
    string text;
    for (const wire::TensorView& tensor : tensors) {
      text += (text.empty() ? "" : " and ") + string(tensor.dtype->name) + " " + wire::Tuple(tensor.shape);
    }
    return text.empty() ? "nothing" : text;
  }

  string DescribeExpected() const {
    string text;
    for (size_t i = 0; i < types_.size(); ++i) {
      text += (i ? " and " : "") + string(wire::FindDtype(types_[i])->name);
      if (shapes_.empty() || shapes_[i].unknown_rank()) continue;
      std::vector<int32_t> shape;
      for (int d = 0; d < shapes_[i].dims(); ++d) shape.push_back(shapes_[i].dim_size(d));
      text += " " + wire::Tuple(shape);
    }
    return text;
  }

  // The one copy. The message's bytes lie at odd addresses, which TensorFlow's kernels don't take.
  Status Copy(OpKernelContext* context, const std::vector<wire::TensorView>& tensors) const {
    for (size_t i = 0; i < tensors.size(); ++i) {
      TensorShape shape;
      for (int32_t dimension : tensors[i].shape) shape.AddDim(dimension);
      Tensor* output = nullptr;
      TF_RETURN_IF_ERROR(context->allocate_output(i, shape, &output));
      uint8_t* to = reinterpret_cast<uint8_t*>(const_cast<char*>(output->tensor_data().data()));
      if (types_[i] == DT_BOOL) {  // a C++ bool that is neither 0 nor 1 is undefined behaviour
        std::transform(tensors[i].bytes, tensors[i].bytes + tensors[i].num_bytes, to, [](uint8_t b) { return b != 0; });
      } else if (tensors[i].num_bytes) {
        std::memcpy(to, tensors[i].bytes, tensors[i].num_bytes);
      }
    }
    return Status();
  }

  DataTypeVector types_;
  std::vector<PartialTensorShape> shapes_;
  string end_point_, advice_, shared_name_;
  int hwm_;
  bool bind_, skip_malformed_;
  float timeout_;
};

REGISTER_KERNEL_BUILDER(Name("ZmqPullTensors").Device(DEVICE_CPU), ZmqPullTensorsOp);

}  // namespace
}  // namespace tensorflow
