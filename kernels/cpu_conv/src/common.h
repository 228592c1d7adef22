// What the ops share: the choice of kernels for the CPU that this runs on, and TensorFlow's threads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <string>

#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/lib/core/threadpool.h"

#include "parallel.h"

// Compilers that know the instructions for products of bfloat16.
#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#define CPU_CONV_BFLOAT
#endif

namespace cpu_conv {

enum class Isa { kAnyCpu, kAvx2, kAvx512, kAvx512Bf16 };

// The most that this CPU has, or less if the environment variable CPU_CONV_ISA names it (any_cpu, avx2, avx512): for tests.
inline Isa ChooseIsa() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("CPU_CONV_ISA");
  const std::string most = wanted ? wanted : "";
  if (most == "any_cpu" || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kAnyCpu;
  if (most == "avx2" || !__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512bw")) {
    return Isa::kAvx2;
  }
#ifdef CPU_CONV_BFLOAT
  if (most != "avx512" && __builtin_cpu_supports("avx512bf16")) return Isa::kAvx512Bf16;
#endif
  return Isa::kAvx512;
#else
  return Isa::kAnyCpu;
#endif
}

inline Isa BestIsa() {
  static const Isa best = ChooseIsa();
  return best;
}

inline const char* Name(Isa isa) {
  static const char* const names[] = {"any_cpu", "avx2", "avx512", "avx512_bf16"};
  return names[static_cast<int>(isa)];
}

// Of the result, padding SAME.
inline int64_t Strided(int64_t size, int stride) { return (size + stride - 1) / stride; }

// Before the first pixel.
inline int64_t Padding(int64_t size, int kernel, int stride) {
  return std::max<int64_t>(0, (Strided(size, stride) - 1) * stride + kernel - size) / 2;
}

// One dimension of the gradient to the inputs of one residue modulo the stride. Input i * stride + residue reaches
// the output o by the tap stride * (i - o) + residue + padding: every stride-th tap, from the last one back for ascending o.
struct Taps {
  int count, first_tap, start;  // the u-th tap, from 0 to count - 1, is tap(u), and its output i + start + u

  Taps(int kernel, int stride, int padding, int residue) {
    first_tap = (residue + padding) % stride;
    count = first_tap < kernel ? (kernel - 1 - first_tap) / stride + 1 : 0;
    start = (residue + padding) / stride - (count - 1);
  }
  int tap(int u, int stride) const { return stride * (count - 1 - u) + first_tap; }
};

inline tensorflow::shape_inference::DimensionHandle Strided(tensorflow::shape_inference::InferenceContext* c,
                                                            tensorflow::shape_inference::DimensionHandle size, int stride) {
  return c->ValueKnown(size) ? c->MakeDim(Strided(c->Value(size), stride)) : c->UnknownDim();
}

inline Parallel Threads(tensorflow::OpKernelContext* context) {
  tensorflow::thread::ThreadPool* pool = context->device()->tensorflow_cpu_worker_threads()->workers;
  return [pool](int64_t total, int64_t cost, const std::function<void(int64_t, int64_t)>& work) {
    pool->ParallelFor(total, cost, work);
  };
}

}  // namespace cpu_conv
