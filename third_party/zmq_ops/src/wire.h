// Reads the bytes of a message of tensors (the format is in zmq_ops/wire.py) without copying them.
//
// It knows neither TensorFlow nor ZeroMQ, so that it can be tested and fuzzed by itself. Every length is checked
// against the message before it is used. wire.py refuses the same messages in the same words: change both.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace wire {

constexpr int kMaxRank = 32;                        // numpy's limit
constexpr int kMaxTensors = 1024;                   // empty tensors take more memory than their bytes in the message
constexpr uint64_t kMaxMessage = (1ull << 31) - 1;  // bytes
constexpr uint64_t kShortestTensor = 16;            // bytes: dtype, rank and number of bytes

struct Dtype {
  int number;  // of tensorflow/core/framework/types.proto
  int size;    // bytes
  const char* name;
};

constexpr Dtype kDtypes[] = {
    {1, 4, "float32"}, {2, 8, "float64"},   {3, 4, "int32"},  {4, 1, "uint8"},       {5, 2, "int16"},
    {6, 1, "int8"},    {8, 8, "complex64"}, {9, 8, "int64"},  {10, 1, "bool"},       {17, 2, "uint16"},
    {18, 16, "complex128"}, {19, 2, "float16"}, {22, 4, "uint32"}, {23, 8, "uint64"}};

// nullptr for a number that does not travel.
inline const Dtype* FindDtype(int number) {
  for (const Dtype& dtype : kDtypes) {
    if (dtype.number == number) return &dtype;
  }
  return nullptr;
}

// One tensor of a message; `bytes` points into it.
struct TensorView {
  const Dtype* dtype;
  std::vector<int32_t> shape;
  const uint8_t* bytes;
  uint64_t num_bytes;
};

inline std::string Str(int64_t value) { return std::to_string(static_cast<long long>(value)); }

// As Python prints a tuple.
inline std::string Tuple(const std::vector<int32_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + Str(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

class Reader {
 public:
  Reader(const uint8_t* data, uint64_t size) : data_(data), size_(size) {}

  // False, with the reason in `error`, for a message that is not what the format says.
  bool Read(std::vector<TensorView>* tensors, std::string* error) {
    error_ = error;
    tensors->clear();
    int32_t count = 0;
    if (!Need(4, "the number of tensors")) return false;
    Next(&count);
    if (count < 0 || static_cast<uint64_t>(count) > (size_ - 4) / kShortestTensor) {
      return Fail(Str(count) + " tensors in a message of " + Str(size_) + " bytes");
    }
    if (count > kMaxTensors) return Fail(Str(count) + " tensors, at most " + Str(kMaxTensors) + " are expected");
    for (int32_t i = 0; i < count; ++i) {
      tensors->emplace_back();
      if (!ReadTensor("tensor " + Str(i), &tensors->back())) return false;
    }
    if (at_ != size_) return Fail(Str(size_ - at_) + " bytes follow the last tensor");
    return true;
  }

 private:
  bool ReadTensor(const std::string& name, TensorView* tensor) {
    int32_t number = 0, rank = 0;
    if (!Need(8, "the dtype and rank of " + name)) return false;
    Next(&number);
    Next(&rank);
    tensor->dtype = FindDtype(number);
    if (!tensor->dtype) return Fail(name + " has the unknown dtype number " + Str(number));
    if (rank < 0 || rank > kMaxRank) {
      return Fail(name + " has rank " + Str(rank) + ", not one of 0 to " + Str(kMaxRank));
    }
    if (!Need(4 * static_cast<uint64_t>(rank) + 8, "the shape of " + name)) return false;
    tensor->shape.resize(rank);
    for (int32_t& dimension : tensor->shape) Next(&dimension);
    int64_t num_bytes = 0;
    Next(&num_bytes);
    return CheckSize(name, num_bytes, tensor);
  }

  bool CheckSize(const std::string& name, int64_t num_bytes, TensorView* tensor) {
    for (int32_t dimension : tensor->shape) {
      if (dimension < 0) return Fail(name + " has a negative dimension: " + Tuple(tensor->shape));
    }
    // `extent` takes a dimension of 0 as 1: TensorFlow multiplies from the left and must not overflow on the way.
    uint64_t expected = tensor->dtype->size, extent = expected;
    for (int32_t dimension : tensor->shape) {
      expected *= dimension;
      extent *= dimension ? dimension : 1;
      // Both factors are below 2^31 here, so the product was not cut.
      if (extent > kMaxMessage) {
        return Fail(name + " is too large: " + Tuple(tensor->shape) + " of " + tensor->dtype->name);
      }
    }
    if (num_bytes < 0 || static_cast<uint64_t>(num_bytes) != expected) {
      return Fail(name + " has " + Str(num_bytes) + " bytes, but " + Tuple(tensor->shape) + " of " +
                  tensor->dtype->name + " has " + Str(expected));
    }
    if (expected > size_ - at_) {
      return Fail(name + " has " + Str(num_bytes) + " bytes, but only " + Str(size_ - at_) +
                  " follow in the message");
    }
    tensor->bytes = data_ + at_;
    tensor->num_bytes = expected;
    at_ += expected;
    return true;
  }

  bool Need(uint64_t bytes, const std::string& what) {
    if (bytes <= size_ - at_) return true;
    return Fail("the message ends after " + Str(size_) + " bytes, within " + what);
  }

  template <typename T>
  void Next(T* value) {  // little endian, as every machine that TensorFlow runs on
    std::memcpy(value, data_ + at_, sizeof(T));
    at_ += sizeof(T);
  }

  bool Fail(const std::string& reason) {
    *error_ = reason;
    return false;
  }

  const uint8_t* data_;
  uint64_t size_;
  uint64_t at_ = 0;
  std::string* error_ = nullptr;
};

}  // namespace wire
