// Runs CUDA kernels on the CPU, for tests. Include it before the kernels.
//
// The 32 lanes of a warp are fibers. A fiber runs until it needs a value of another lane or ends; then the next one runs.
// Warps run one after another, in random order. There is no shared memory and no __syncthreads: no kernel uses them.
//
// The thread sanitizer takes the lanes for threads, which nothing orders: if two of them access an address, and one
// writes other than by an atomic operation, it reports a race. It does not tell apart lanes of the same number in
// different warps.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define SANITIZE_THREADS(...) __VA_ARGS__
#else
#define SANITIZE_THREADS(...)
#endif

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
// with vector atomics
#define __CUDA_ARCH__ 900
// The scheduler's own variables are accessed by all fibers.
#define SCHEDULER __attribute__((no_sanitize("thread"), noinline))

struct Index {
  unsigned x;
};
inline Index blockIdx, threadIdx;

struct alignas(16) float4 {
  float x, y, z, w;
};

namespace cuda_emulation {

constexpr int LANES = 32;
constexpr size_t STACK_BYTES = 1 << 16;

inline unsigned seed = 0;  // of the order of warps
inline long launches = 0;

struct Lane {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(STACK_BYTES);
  bool ended;
  int64_t exchanges;  // in which this lane has taken part
  uint64_t values[2];  // given to the current and the previous exchange
  void* thread = nullptr;  // for the sanitizer, like launcher_thread
};

struct Warp {
  Lane lanes[LANES];
  int current;
  int64_t arrivals;  // at exchanges, of all lanes
  unsigned block, first_thread;
  std::function<void()> kernel;
  ucontext_t launcher;
  void* launcher_thread = nullptr;
};
inline Warp warp;

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "CUDA emulation: %s (block %u, thread %u)\n", message, blockIdx.x, threadIdx.x);
  std::_Exit(1);
}

SCHEDULER inline void switch_context(ucontext_t* from, ucontext_t* to, [[maybe_unused]] void* thread) {
  SANITIZE_THREADS(__tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync);)
  swapcontext(from, to);
}

SCHEDULER inline void enter(int lane, ucontext_t* from) {
  warp.current = lane;
  blockIdx = {warp.block};
  threadIdx = {warp.first_thread + lane};
  switch_context(from, &warp.lanes[lane].context, warp.lanes[lane].thread);
}

// Continues with the next lane that has not ended, or returns if there is no other.
SCHEDULER inline void run_others() {
  const int self = warp.current;
  for (int i = 1; i < LANES; ++i) {
    const int next = (self + i) % LANES;
    if (!warp.lanes[next].ended) {
      return enter(next, &warp.lanes[self].context);
    }
  }
}

SCHEDULER inline void run_lane() {
  SANITIZE_THREADS(__tsan_acquire(&warp.current);)
  warp.kernel();
  SANITIZE_THREADS(__tsan_release(&warp.launcher);)
  Lane& self = warp.lanes[warp.current];
  self.ended = true;
  run_others();
  switch_context(&self.context, &warp.launcher, warp.launcher_thread);
}

SCHEDULER inline void run_warp() {
  warp.arrivals = 0;
  for (Lane& lane : warp.lanes) {
    lane.ended = false;
    lane.exchanges = 0;
    getcontext(&lane.context);
    lane.context.uc_stack = {lane.stack.data(), 0, STACK_BYTES};
    makecontext(&lane.context, run_lane, 0);
  }
  enter(0, &warp.launcher);
}

// Gives a value to the other lanes of the warp, and returns that of lane `source`.
SCHEDULER inline uint64_t exchange(unsigned mask, uint64_t value, int source) {
  if (mask != 0xffffffffu) {
    fail("shuffles of a part of a warp are not emulated");
  }
  Lane& self = warp.lanes[warp.current];
  // No lane is more than one exchange ahead of another, so two values per lane are enough.
  const int64_t number = ++self.exchanges;
  self.values[number % 2] = value;
  ++warp.arrivals;
  if (warp.arrivals < LANES * number) {
    run_others();  // until they take part as well
  }
  if (warp.arrivals < LANES * number) {
    fail("a lane of this warp did not take part in a shuffle");
  }
  return warp.lanes[source].values[number % 2];
}

template <typename T>
T shuffle(unsigned mask, T value, int source) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  return std::bit_cast<T>(static_cast<Bits>(exchange(mask, std::bit_cast<Bits>(value), source)));
}

#ifdef __SANITIZE_THREAD__
// Lanes see what the launcher did before. Nothing orders them among each other.
inline void prepare_threads() {
  warp.launcher_thread = __tsan_get_current_fiber();
  for (Lane& lane : warp.lanes) {
    lane.thread = lane.thread ? lane.thread : __tsan_create_fiber(0);
  }
  __tsan_release(&warp.current);
}
#endif

// Stands for kernel<<<blocks, threads>>>(arguments...).
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, const Arguments&... arguments) {
  ++launches;
  std::vector<unsigned> warps(blocks * (threads / LANES));
  std::iota(warps.begin(), warps.end(), 0);
  std::shuffle(warps.begin(), warps.end(), std::mt19937(seed));
  warp.kernel = [&] { kernel(arguments...); };
  SANITIZE_THREADS(prepare_threads();)
  for (const unsigned number : warps) {
    warp.block = number / (threads / LANES);
    warp.first_thread = number % (threads / LANES) * LANES;
    run_warp();
  }
  SANITIZE_THREADS(__tsan_acquire(&warp.launcher);)
}

}  // namespace cuda_emulation

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width) {
  const int lane = threadIdx.x % cuda_emulation::LANES;
  return cuda_emulation::shuffle(mask, value, lane / width * width + source % width);
}

// for lane_mask < width, where a lane and its partner are in the same group
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width) {
  if (lane_mask >= width) {
    cuda_emulation::fail("__shfl_xor_sync across groups is not emulated");
  }
  return cuda_emulation::shuffle(mask, value, threadIdx.x % cuda_emulation::LANES ^ lane_mask);
}

template <typename T>
void atomicAdd(T* address, T value) {
  std::atomic_ref<T>(*address).fetch_add(value, std::memory_order_relaxed);
}

// atomic for each element, as on the GPU
inline void atomicAdd(float4* address, float4 value) {
  atomicAdd(&address->x, value.x);
  atomicAdd(&address->y, value.y);
  atomicAdd(&address->z, value.z);
  atomicAdd(&address->w, value.w);
}

inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

inline long long __double2ll_rn(double x) {
  return std::llrint(x);
}

using std::floor;
using std::min;
