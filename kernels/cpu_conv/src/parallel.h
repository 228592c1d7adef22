// How the loops are given threads, without TensorFlow.
#pragma once
#include <cstdint>
#include <functional>

namespace cpu_conv {

// Calls its last argument with ranges that make up [0, total), from several threads. `cost`: cycles of one of them.
using Parallel = std::function<void(int64_t total, int64_t cost, const std::function<void(int64_t, int64_t)>&)>;

inline void InThisThread(int64_t total, int64_t, const std::function<void(int64_t, int64_t)>& work) { work(0, total); }

}  // namespace cpu_conv
