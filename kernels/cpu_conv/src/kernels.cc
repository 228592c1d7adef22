// The innermost loops, for each instruction set, and the choice among them.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>

#include "common.h"
#include "filter.h"
#include "median.h"

#define ISA
#define NAME any_cpu
#define LANES 4
#define ROWS 6
#define FILTER_ROWS 4
#include "frozen_kernels.inc"
#include "filter_kernels.inc"
#include "median_kernels.inc"
#undef ISA
#undef NAME
#undef LANES
#undef ROWS
#undef FILTER_ROWS

#if defined(__x86_64__)
#define ISA __attribute__((target("avx2,fma")))
#define NAME avx2
#define LANES 8
#define ROWS 6
#define FILTER_ROWS 4
#include "frozen_kernels.inc"
#include "filter_kernels.inc"
#include "median_kernels.inc"
#undef ISA
#undef NAME
#undef LANES
#undef ROWS
#undef FILTER_ROWS
#define ISA __attribute__((target("avx512f,avx512vl,avx2,fma")))
#define NAME avx512
#define LANES 16
#define ROWS 12
#define FILTER_ROWS 8
#include "frozen_kernels.inc"
#include "filter_kernels.inc"
#include "median_kernels.inc"
#endif
#ifdef CPU_CONV_BFLOAT
#undef ISA
#undef NAME
#define ISA __attribute__((target("avx512f,avx512vl,avx512bw,avx512bf16,avx2,fma")))
#define NAME avx512_bf16
#define BFLOAT
#include "frozen_kernels.inc"
#endif

namespace frozen {

const Kernels<float>* BestKernels(float) {
#if defined(__x86_64__)
  if (cpu_conv::BestIsa() >= cpu_conv::Isa::kAvx512) return &avx512::kFloat;
  if (cpu_conv::BestIsa() == cpu_conv::Isa::kAvx2) return &avx2::kFloat;
#endif
  return &any_cpu::kFloat;
}

// null where this CPU has no instructions for it.
const Kernels<bfloat>* BestKernels(bfloat) {
#ifdef CPU_CONV_BFLOAT
  if (cpu_conv::BestIsa() == cpu_conv::Isa::kAvx512Bf16) return &avx512_bf16::kBfloat;
#endif
  return nullptr;
}

const FilterKernels& BestFilterKernels() {
#if defined(__x86_64__)
  if (cpu_conv::BestIsa() >= cpu_conv::Isa::kAvx512) return avx512::kFilter;
  if (cpu_conv::BestIsa() == cpu_conv::Isa::kAvx2) return avx2::kFilter;
#endif
  return any_cpu::kFilter;
}

}  // namespace frozen

namespace median {

const Kernels& BestKernels() {
#if defined(__x86_64__)
  if (cpu_conv::BestIsa() >= cpu_conv::Isa::kAvx512) return avx512::kKernels;
  if (cpu_conv::BestIsa() == cpu_conv::Isa::kAvx2) return avx2::kKernels;
#endif
  return any_cpu::kKernels;
}

}  // namespace median

// The instruction set that the ops use here.
extern "C" const char* cpu_conv_isa() { return cpu_conv::Name(cpu_conv::BestIsa()); }
