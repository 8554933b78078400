// CUDA kernels of multi-scale deformable attention. They depend on no library, so that tests can
// compile them for the CPU (tests/layers/cuda_emulation).
//
// A group of lanes processes one head of one query. Each lane handles WIDTH adjacent channels, so that cells are read,
// and added to, in full sectors. Each lane also loads one sampling point and broadcasts it to the group, so that
// locations and weights are read once, in coalesced accesses. A block processes adjacent queries of one head: in the
// encoder, these sample mostly the same cells, which then hit the L1 cache.
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
  int32_t start[MAX_LEVELS];
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

// Division of 64-bit integers is slow, and the number of blocks fits into 32 bits.
__device__ inline Place place(const Sizes& s, int lanes) {
  const unsigned int per_block = BLOCK / lanes;
  const unsigned int heads = s.heads, queries = s.queries;
  const unsigned int tiles = (queries + per_block - 1) / per_block;
  const unsigned int tile = blockIdx.x / heads % tiles;
  const int64_t image = blockIdx.x / heads / tiles;
  const unsigned int query = tile * per_block + threadIdx.x / lanes;
  const int lane = threadIdx.x % lanes;
  return {query < queries, lane, blockIdx.x % heads, image * s.queries + query, image};
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

// The cells around a point: upper left, upper right, lower left, lower right.
template <typename A>
struct Corners {
  bool exists[4];
  A share[4];  // of its value in the sum
  uint32_t offset[4];  // in elements from the image's first cell
};

template <typename A>
__device__ inline Corners<A> corners(
    const Point<A>& point, A weight, int32_t width, int32_t height, int32_t start, uint32_t row) {
  const bool has_left = point.x >= 0, has_right = point.x + 1 < width;
  const bool has_upper = point.y >= 0, has_lower = point.y + 1 < height;
  const A lower = weight * point.below, upper = weight - lower;
  const A left = A(1) - point.right;
  // unsigned, since an address is base + offset in one instruction then; only meaningful for corners that exist
  const uint32_t cell = static_cast<uint32_t>(start + point.y * width + point.x) * row;
  const uint32_t below = cell + static_cast<uint32_t>(width) * row;
  return {
      {has_upper && has_left, has_upper && has_right, has_lower && has_left, has_lower && has_right},
      {upper * left, upper * point.right, lower * left, lower * point.right},
      {cell, cell + row, below, below + row}};
}

// Loads the corners that exist, all before the first is used, so that the GPU waits for memory once.
template <typename Values, typename A, typename T>
__device__ inline void load(Values (&values)[4], const Corners<A>& cells, const T* from) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (cells.exists[i]) {
      values[i] = *reinterpret_cast<const Values*>(from + cells.offset[i]);
    }
  }
}

template <typename T, typename C, int WIDTH>
__global__ void __launch_bounds__(BLOCK) forward_kernel(
    const Sizes s, const __grid_constant__ Levels levels, const int lanes,
    const T* __restrict__ value, const C* __restrict__ locations, const C* __restrict__ weights,
    T* __restrict__ output) {
  using A = typename Accumulate<T>::type;
  using Values = Pack<T, WIDTH>;
  const Place at = place(s, lanes);
  const int channels = s.channels, points = s.points;
  const int row = s.heads * s.channels;
  const int samples = s.levels * s.points;
  const int64_t first = (at.query * s.heads + at.head) * samples;
  const T* head_values = value + at.image * s.tokens * row + at.head * channels;
  // All lanes of a warp must take part in the shuffles, even those without a query or channel.
  for (int begin = 0; begin < channels; begin += lanes * WIDTH) {
    const int c = begin + at.lane * WIDTH;
    const bool works = at.exists && c < channels;
    A sum[WIDTH] = {};
    int level = 0, level_end = points;
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
        if (chunk + i == level_end) {
          ++level;
          level_end += points;
        }
        const int32_t width = levels.width[level], height = levels.height[level];
        const Point<A> point = locate(x, y, width, height);
        if (!works || !point.inside) {
          continue;
        }
        const auto cells = corners(point, weight, width, height, levels.start[level], row);
        Values values[4];
        load(values, cells, head_values + c);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (cells.exists[j]) {
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
              sum[k] += cells.share[j] * static_cast<A>(values[j].at[k]);
            }
          }
        }
      }
    }
    if (works) {
      Values result;
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) {
        result.at[k] = static_cast<T>(sum[k]);
      }
      *reinterpret_cast<Values*>(output + at.query * row + at.head * channels + c) = result;
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
  const int channels = s.channels, points = s.points;
  const int row = s.heads * s.channels;
  const int samples = s.levels * s.points;
  const int64_t first = (at.query * s.heads + at.head) * samples;
  const int64_t head = at.image * s.tokens * row + at.head * channels;
  const T* grad = grad_output + at.query * row + at.head * channels;
  int level = 0, level_end = points;
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
      if (chunk + i == level_end) {
        ++level;
        level_end += points;
      }
      const int32_t width = levels.width[level], height = levels.height[level];
      const Point<A> point = locate(x, y, width, height);
      A dot[4] = {};  // products of the output gradient and each corner's values
      if (at.exists && point.inside) {
        const auto cells = corners(point, weight, width, height, levels.start[level], row);
        for (int c = at.lane * WIDTH; c < channels; c += lanes * WIDTH) {
          const Values grads = *reinterpret_cast<const Values*>(grad + c);
          Values values[4];
          load(values, cells, value + head + c);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (cells.exists[j]) {
              A shares[WIDTH];
#pragma unroll
              for (int k = 0; k < WIDTH; ++k) {
                dot[j] += static_cast<A>(grads.at[k]) * static_cast<A>(values[j].at[k]);
                shares[k] = cells.share[j] * static_cast<A>(grads.at[k]);
              }
              accumulate<WIDTH>(grad_value + head + c + cells.offset[j], shares, scale);
            }
          }
        }
      }
      const auto [upper_left, upper_right, lower_left, lower_right] = dot;
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
