// Feeds the message reader with generated messages; run under AddressSanitizer by `make fuzz`.
//
// With clang, `make libfuzzer` links the same entry point with libFuzzer, which finds its way by coverage. Without,
// main() below changes good messages at random: as many as its first argument says, from the seed in its second.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "../src/wire.h"

// Whether the reader takes the message; aborts where what it gives does not lie within.
static bool Reads(const uint8_t* data, size_t size) {
  // A copy of exactly this size, so that reading a byte too far is seen.
  std::unique_ptr<uint8_t[]> exact(new uint8_t[size]);
  if (size) std::memcpy(exact.get(), data, size);
  std::vector<wire::TensorView> tensors;
  std::string error;
  if (!wire::Reader(exact.get(), size).Read(&tensors, &error)) {
    if (error.empty()) std::abort();
    return false;
  }
  uint64_t sum = 0;
  for (const wire::TensorView& tensor : tensors) {
    uint64_t count = tensor.dtype->size;
    for (int32_t dimension : tensor.shape) count *= dimension;
    if (count != tensor.num_bytes) std::abort();
    for (uint64_t i = 0; i < tensor.num_bytes; ++i) sum += tensor.bytes[i];
  }
  volatile uint64_t used = sum;
  (void)used;
  return true;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Reads(data, size);
  return 0;
}

#ifndef LIBFUZZER
namespace {

using Bytes = std::vector<uint8_t>;
std::mt19937_64 rng;
uint64_t Below(uint64_t n) { return rng() % n; }

template <typename T>
void Append(Bytes* bytes, T value) {
  const uint8_t* begin = reinterpret_cast<const uint8_t*>(&value);
  bytes->insert(bytes->end(), begin, begin + sizeof(T));
}

Bytes GoodMessage() {
  Bytes message;
  const int tensors = Below(4);
  Append<int32_t>(&message, tensors);
  for (int t = 0; t < tensors; ++t) {
    const wire::Dtype& dtype = wire::kDtypes[Below(sizeof(wire::kDtypes) / sizeof(wire::kDtypes[0]))];
    const int rank = Below(5);
    int64_t bytes = dtype.size;
    Append<int32_t>(&message, dtype.number);
    Append<int32_t>(&message, rank);
    for (int d = 0; d < rank; ++d) {
      const int dimension = Below(4);
      bytes *= dimension;
      Append<int32_t>(&message, dimension);
    }
    Append<int64_t>(&message, bytes);
    for (int64_t i = 0; i < bytes; ++i) message.push_back(rng());
  }
  return message;
}

void Damage(Bytes* message) {
  static const int32_t kValues[] = {0, 1, -1, 2, 4, 32, 33, 65536, 2147483647, -2147483647 - 1};
  switch (Below(5)) {
    case 0: message->resize(Below(message->size() + 1)); break;
    case 1: message->resize(message->size() + 1 + Below(40)); break;
    case 2:
      if (!message->empty()) (*message)[Below(message->size())] = rng();
      break;
    case 3:
      for (uint64_t i = Below(12); i > 0; --i) Append<int32_t>(message, kValues[Below(10)]);
      break;
    default:
      if (message->size() >= 4) {
        // At the fields, which lie at multiples of 4 until the first bytes of data.
        const uint64_t at = Below(message->size() / 4) * 4;
        std::memcpy(message->data() + at, &kValues[Below(10)], 4);
      }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const long runs = argc > 1 ? std::atol(argv[1]) : 1000000;
  rng.seed(argc > 2 ? std::atol(argv[2]) : 0);
  long refused = 0, good = 0;
  for (long i = 0; i < runs; ++i) {
    Bytes message = GoodMessage();
    good += Reads(message.data(), message.size());
    for (uint64_t n = 1 + Below(4); n > 0; --n) Damage(&message);
    refused += !Reads(message.data(), message.size());
  }
  std::printf("%ld good messages, %ld read; %ld damaged ones, %ld refused\n", runs, good, runs, refused);
  return good == runs && refused > runs / 2 ? 0 : 1;
}
#endif
