// CUDA kernels of multi-scale deformable attention. They depend on no library, so that tests can
// compile them for the CPU (tests/layers/cuda_emulation).
//
// A group of lanes processes one head of one query. Each lane handles WIDTH adjacent channels (16 bytes if possible),
// so that cells are read in full sectors. Each lane also loads one sampling point and broadcasts it to the group, so
// that locations and weights are read once, in coalesced accesses. A block processes adjacent queries of one head: in
// the encoder, these sample mostly the same cells, which then hit the L1 cache.
#pragma once

#include <type_traits>

#include "sizes.h"

namespace clockdistill {
namespace {

constexpr int WARP = 32;
constexpr int BLOCK = 256;
constexpr int MAX_LEVELS = 16;
// Deterministic sums are in fixed point, in which 2^62 represents an upper bound of any sum.
constexpr int FIXED_POINT_BITS = 62;

struct Levels {
  int32_t height[MAX_LEVELS];
  int32_t width[MAX_LEVELS];
  int64_t start[MAX_LEVELS];
};

template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

template <typename T, int WIDTH>
struct alignas(sizeof(T) * WIDTH) Pack {
  T at[WIDTH];
};

// Number of lanes per head: a power of two, at most a warp.
inline int group_lanes(int64_t packs) {
  int lanes = 1;
  while (lanes < WARP && lanes < packs) {
    lanes *= 2;
  }
  return lanes;
}

inline int64_t number_of_blocks(const Sizes& s, int lanes) {
  const int64_t per_block = BLOCK / lanes;
  return s.batch * s.heads * ((s.queries + per_block - 1) / per_block);
}

// The work item of a lane: one head of one query, of which it handles every `lanes`-th pack of channels.
struct Place {
  bool exists;
  int lane;  // in the group
  int64_t head;
  int64_t query;  // index in B * Q
  int64_t image;
};

__device__ inline Place place(const Sizes& s, int lanes) {
  const int per_block = BLOCK / lanes;
  const int64_t tiles = (s.queries + per_block - 1) / per_block;
  const int64_t block = blockIdx.x;
  const int64_t head = block % s.heads;
  const int64_t tile = block / s.heads % tiles;
  const int64_t image = block / s.heads / tiles;
  const int64_t query = tile * per_block + threadIdx.x / lanes;
  return {query < s.queries, static_cast<int>(threadIdx.x % lanes), head, image * s.queries + query, image};
}

// Position of a sampling point: the cell to its upper left, and the offset from that cell's center, in cells.
template <typename A>
struct Point {
  bool inside;  // whether it touches a cell of the map; false for NaN
  int32_t x, y;
  A right, below;
};

template <typename A>
__device__ inline Point<A> locate(A x, A y, int32_t width, int32_t height) {
  x = x * static_cast<A>(width) - A(0.5);
  y = y * static_cast<A>(height) - A(0.5);
  if (!(x > A(-1) && y > A(-1) && x < static_cast<A>(width) && y < static_cast<A>(height))) {
    return {false, 0, 0, A(0), A(0)};
  }
  const A left = floor(x), top = floor(y);
  return {true, static_cast<int32_t>(left), static_cast<int32_t>(top), x - left, y - top};
}

template <typename T, typename C, int WIDTH>
__global__ void __launch_bounds__(BLOCK) forward_kernel(
    const Sizes s, const __grid_constant__ Levels levels, const int lanes,
    const T* __restrict__ value, const C* __restrict__ locations, const C* __restrict__ weights,
    T* __restrict__ output) {
  using A = typename Accumulate<T>::type;
  using Values = Pack<T, WIDTH>;
  const Place at = place(s, lanes);
  const int64_t row = s.heads * s.channels;
  const int samples = static_cast<int>(s.levels * s.points);
  const int64_t first = (at.query * s.heads + at.head) * samples;
  const T* head_values = value + at.image * s.tokens * row + at.head * s.channels;
  // All lanes of a warp must take part in the shuffles, even those without a query or channel.
  for (int64_t begin = 0; begin < s.channels; begin += lanes * WIDTH) {
    const int64_t c = begin + at.lane * WIDTH;
    const bool works = at.exists && c < s.channels;
    A sum[WIDTH] = {};
    for (int chunk = 0; chunk < samples; chunk += lanes) {
      const int own = chunk + at.lane;
      A own_x = 0, own_y = 0, own_weight = 0;
      if (at.exists && own < samples) {
        own_x = static_cast<A>(locations[2 * (first + own)]);
        own_y = static_cast<A>(locations[2 * (first + own) + 1]);
        own_weight = static_cast<A>(weights[first + own]);
      }
      const int count = min(lanes, samples - chunk);
      for (int i = 0; i < count; ++i) {
        const A x = __shfl_sync(0xffffffffu, own_x, i, lanes);
        const A y = __shfl_sync(0xffffffffu, own_y, i, lanes);
        const A weight = __shfl_sync(0xffffffffu, own_weight, i, lanes);
        const int l = (chunk + i) / static_cast<int>(s.points);
        const int32_t width = levels.width[l], height = levels.height[l];
        const Point<A> point = locate(x, y, width, height);
        if (!works || !point.inside) {
          continue;
        }
        const A lower = weight * point.below, upper = weight - lower;
        const A left = A(1) - point.right;
        const T* cell = head_values + (levels.start[l] + static_cast<int64_t>(point.y) * width + point.x) * row + c;
        const bool has_left = point.x >= 0, has_right = point.x + 1 < width;
        const bool has_upper = point.y >= 0, has_lower = point.y + 1 < height;
        auto add = [&](const T* from, A share) {
          const Values values = *reinterpret_cast<const Values*>(from);
#pragma unroll
          for (int k = 0; k < WIDTH; ++k) {
            sum[k] += share * static_cast<A>(values.at[k]);
          }
        };
        if (has_upper && has_left) add(cell, upper * left);
        if (has_upper && has_right) add(cell + row, upper * point.right);
        if (has_lower && has_left) add(cell + width * row, lower * left);
        if (has_lower && has_right) add(cell + width * row + row, lower * point.right);
      }
    }
    if (works) {
      Values result;
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) {
        result.at[k] = static_cast<T>(sum[k]);
      }
      *reinterpret_cast<Values*>(output + at.query * row + at.head * s.channels + c) = result;
    }
  }
}

#if __CUDA_ARCH__ >= 900
constexpr bool HAS_VECTOR_ATOMICS = true;
#else
constexpr bool HAS_VECTOR_ATOMICS = false;
#endif

// Adds a lane's share of the gradient to a cell.
template <int WIDTH, typename A>
__device__ inline void accumulate(A* cell, const A (&share)[WIDTH], const double*) {
  if constexpr (HAS_VECTOR_ATOMICS && std::is_same_v<A, float> && WIDTH % 4 == 0) {
#pragma unroll
    for (int k = 0; k < WIDTH; k += 4) {
      atomicAdd(reinterpret_cast<float4*>(cell + k), make_float4(share[k], share[k + 1], share[k + 2], share[k + 3]));
    }
  } else {
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
      atomicAdd(cell + k, share[k]);
    }
  }
}

// The same in fixed point, where the sum does not depend on the order of addition.
template <int WIDTH, typename A>
__device__ inline void accumulate(int64_t* cell, const A (&share)[WIDTH], const double* scale) {
#pragma unroll
  for (int k = 0; k < WIDTH; ++k) {
    const long long fixed = __double2ll_rn(static_cast<double>(share[k]) * *scale);
    atomicAdd(reinterpret_cast<unsigned long long*>(cell + k), static_cast<unsigned long long>(fixed));
  }
}

// S: the type in which gradients of value are accumulated, A or int64_t for fixed point.
template <typename T, typename C, typename S, int WIDTH>
__global__ void __launch_bounds__(BLOCK) backward_kernel(
    const Sizes s, const __grid_constant__ Levels levels, const int lanes, const double* __restrict__ scale,
    const T* __restrict__ grad_output, const T* __restrict__ value, const C* __restrict__ locations,
    const C* __restrict__ weights, S* __restrict__ grad_value, C* __restrict__ grad_locations,
    C* __restrict__ grad_weights) {
  using A = typename Accumulate<T>::type;
  using Values = Pack<T, WIDTH>;
  const Place at = place(s, lanes);
  const int64_t row = s.heads * s.channels;
  const int samples = static_cast<int>(s.levels * s.points);
  const int64_t first = (at.query * s.heads + at.head) * samples;
  const int64_t head = at.image * s.tokens * row + at.head * s.channels;
  const T* grad = grad_output + at.query * row + at.head * s.channels;
  for (int chunk = 0; chunk < samples; chunk += lanes) {
    const int own = chunk + at.lane;
    const bool owns = at.exists && own < samples;
    A own_x = 0, own_y = 0, own_weight = 0;
    if (owns) {
      own_x = static_cast<A>(locations[2 * (first + own)]);
      own_y = static_cast<A>(locations[2 * (first + own) + 1]);
      own_weight = static_cast<A>(weights[first + own]);
    }
    A own_grad_x = 0, own_grad_y = 0, own_grad_weight = 0;
    const int count = min(lanes, samples - chunk);
    for (int i = 0; i < count; ++i) {
      const A x = __shfl_sync(0xffffffffu, own_x, i, lanes);
      const A y = __shfl_sync(0xffffffffu, own_y, i, lanes);
      const A weight = __shfl_sync(0xffffffffu, own_weight, i, lanes);
      const int l = (chunk + i) / static_cast<int>(s.points);
      const int32_t width = levels.width[l], height = levels.height[l];
      const Point<A> point = locate(x, y, width, height);
      const bool has_left = point.x >= 0, has_right = point.x + 1 < width;
      const bool has_upper = point.y >= 0, has_lower = point.y + 1 < height;
      const A lower = weight * point.below, upper = weight - lower;
      const A left = A(1) - point.right;
      // dot products of the output gradient and each corner's values
      A upper_left = 0, upper_right = 0, lower_left = 0, lower_right = 0;
      for (int64_t c = at.lane * WIDTH; at.exists && point.inside && c < s.channels; c += lanes * WIDTH) {
        const Values grads = *reinterpret_cast<const Values*>(grad + c);
        const int64_t cell = head + (levels.start[l] + static_cast<int64_t>(point.y) * width + point.x) * row + c;
        auto visit = [&](int64_t from, A share) {
          const Values values = *reinterpret_cast<const Values*>(value + from);
          A product = 0;
          A shares[WIDTH];
#pragma unroll
          for (int k = 0; k < WIDTH; ++k) {
            product += static_cast<A>(grads.at[k]) * static_cast<A>(values.at[k]);
            shares[k] = share * static_cast<A>(grads.at[k]);
          }
          accumulate<WIDTH>(grad_value + from, shares, scale);
          return product;
        };
        if (has_upper && has_left) upper_left += visit(cell, upper * left);
        if (has_upper && has_right) upper_right += visit(cell + row, upper * point.right);
        if (has_lower && has_left) lower_left += visit(cell + width * row, lower * left);
        if (has_lower && has_right) lower_right += visit(cell + width * row + row, lower * point.right);
      }
      const A above = upper_left + (upper_right - upper_left) * point.right;
      const A below = lower_left + (lower_right - lower_left) * point.right;
      A grad_weight = above + (below - above) * point.below;
      A grad_x = (upper_right - upper_left) * (A(1) - point.below) + (lower_right - lower_left) * point.below;
      A grad_y = below - above;
      for (int offset = lanes / 2; offset > 0; offset /= 2) {
        grad_weight += __shfl_xor_sync(0xffffffffu, grad_weight, offset, lanes);
        grad_x += __shfl_xor_sync(0xffffffffu, grad_x, offset, lanes);
        grad_y += __shfl_xor_sync(0xffffffffu, grad_y, offset, lanes);
      }
      if (i == at.lane) {
        own_grad_weight = grad_weight;
        own_grad_x = weight * static_cast<A>(width) * grad_x;
        own_grad_y = weight * static_cast<A>(height) * grad_y;
      }
    }
    if (owns) {
      grad_weights[first + own] = static_cast<C>(own_grad_weight);
      grad_locations[2 * (first + own)] = static_cast<C>(own_grad_x);
      grad_locations[2 * (first + own) + 1] = static_cast<C>(own_grad_y);
    }
  }
}

}  // namespace
}  // namespace clockdistill
