// Compiled once per instruction set (CLOCKDISTILL_ISA, with vectors of CLOCKDISTILL_VECTOR_BYTES), hence no include
// guard. It must not include headers either: the linker might share their inline functions across instruction sets.

namespace clockdistill {
namespace CLOCKDISTILL_ISA {
namespace {

// A vector that is only aligned to its elements.
template <typename T, int BYTES>
struct VectorOf {
  typedef T type __attribute__((vector_size(BYTES), aligned(alignof(T)), may_alias));
};

// Position of a sampling point: the cell to its upper left, and the offset from that cell's center, in cells.
template <typename T>
struct Point {
  bool inside;  // whether it touches a cell of the map; false for NaN
  int64_t x, y;
  T right, below;
};

template <typename T>
inline Point<T> locate(const T* location, const Level& level) {
  const T x = location[0] * static_cast<T>(level.width) - T(0.5);
  const T y = location[1] * static_cast<T>(level.height) - T(0.5);
  const bool inside = x > T(-1) && y > T(-1) && x < static_cast<T>(level.width) && y < static_cast<T>(level.height);
  if (!inside) {
    return {false, 0, 0, T(0), T(0)};
  }
  // the conversion truncates toward zero, which rounds negative numbers up
  const int64_t left = static_cast<int64_t>(x) - (x < T(0));
  const int64_t top = static_cast<int64_t>(y) - (y < T(0));
  return {true, left, top, x - static_cast<T>(left), y - static_cast<T>(top)};
}

// One of the four cells around a point.
template <typename T>
struct Corner {
  int64_t offset;  // of the cell's channels, in elements
  T weight;
};

template <typename T, int BYTES, int COUNT>
inline void sum_rows(const T* rows, const Corner<T>* corners, int64_t number, T* output) {
  typedef typename VectorOf<T, BYTES>::type Vector;
  // two accumulators, to break the dependency between consecutive rows
  Vector even[COUNT] = {};
  Vector odd[COUNT] = {};
  int64_t i = 0;
  for (; i + 1 < number; i += 2) {
    const Vector* a = reinterpret_cast<const Vector*>(rows + corners[i].offset);
    const Vector* b = reinterpret_cast<const Vector*>(rows + corners[i + 1].offset);
    for (int k = 0; k < COUNT; ++k) {
      even[k] += a[k] * corners[i].weight;
      odd[k] += b[k] * corners[i + 1].weight;
    }
  }
  if (i < number) {
    const Vector* a = reinterpret_cast<const Vector*>(rows + corners[i].offset);
    for (int k = 0; k < COUNT; ++k) {
      even[k] += a[k] * corners[i].weight;
    }
  }
  for (int k = 0; k < COUNT; ++k) {
    reinterpret_cast<Vector*>(output)[k] = even[k] + odd[k];
  }
}

// output (channels) = weighted sum of the corners' rows
template <typename T>
inline void sum_channels(const T* rows, const Corner<T>* corners, int64_t number, int64_t channels, T* output) {
  constexpr int WIDEST = CLOCKDISTILL_VECTOR_BYTES;
  constexpr int64_t LANES = WIDEST / sizeof(T);
  constexpr int64_t NARROW = 16 / sizeof(T);
  int64_t c = 0;
  for (; c + 4 * LANES <= channels; c += 4 * LANES) {
    sum_rows<T, WIDEST, 4>(rows + c, corners, number, output + c);
  }
  for (; c + 2 * LANES <= channels; c += 2 * LANES) {
    sum_rows<T, WIDEST, 2>(rows + c, corners, number, output + c);
  }
  for (; c + LANES <= channels; c += LANES) {
    sum_rows<T, WIDEST, 1>(rows + c, corners, number, output + c);
  }
  for (; c + NARROW <= channels; c += NARROW) {
    sum_rows<T, 16, 1>(rows + c, corners, number, output + c);
  }
  for (; c < channels; ++c) {
    sum_rows<T, sizeof(T), 1>(rows + c, corners, number, output + c);
  }
}

// Computes queries [begin, end) of B * Q.
template <typename T>
void forward_queries(const Call<T>& call, T* output, int64_t begin, int64_t end) {
  const Sizes s = call.sizes;
  const int64_t row = s.heads * s.channels;
  Corner<T>* corners = new Corner<T>[4 * s.levels * s.points];
  for (int64_t q = begin; q < end; ++q) {
    const T* image = call.value + q / s.queries * s.tokens * row;
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t first = (q * s.heads + h) * s.levels * s.points;
      const T* location = call.locations + 2 * first;
      const T* weight = call.weights + first;
      int64_t number = 0;
      for (int64_t l = 0; l < s.levels; ++l) {
        const Level& level = call.levels[l];
        for (int64_t p = 0; p < s.points; ++p, location += 2, ++weight) {
          const Point<T> point = locate(location, level);
          if (!point.inside) {
            continue;
          }
          const int64_t offset = (level.start + point.y * level.width + point.x) * row;
          const T lower = *weight * point.below;
          const T upper = *weight - lower;
          const bool has_left = point.x >= 0, has_right = point.x + 1 < level.width;
          if (point.y >= 0) {
            if (has_left) corners[number++] = {offset, upper * (T(1) - point.right)};
            if (has_right) corners[number++] = {offset + row, upper * point.right};
          }
          if (point.y + 1 < level.height) {
            const int64_t next = offset + level.width * row;
            if (has_left) corners[number++] = {next, lower * (T(1) - point.right)};
            if (has_right) corners[number++] = {next + row, lower * point.right};
          }
        }
      }
      sum_channels(image + h * s.channels, corners, number, s.channels, output + q * row + h * s.channels);
    }
  }
  delete[] corners;
}

// Adds halves recursively, which compiles to shuffles; a loop over lanes would go through memory.
template <typename T, int BYTES>
inline T sum_lanes(const typename VectorOf<T, BYTES>::type& vector) {
  if constexpr (BYTES == sizeof(T)) {
    return vector[0];
  } else {
    typename VectorOf<T, BYTES / 2>::type halves[2];
    __builtin_memcpy(halves, &vector, BYTES);
    return sum_lanes<T, BYTES / 2>(halves[0] + halves[1]);
  }
}

template <typename T, int BYTES>
inline T spread_vectors(
    const T* grad, const T* value, T* grad_value, T weight, int64_t& c, int64_t channels) {
  typedef typename VectorOf<T, BYTES>::type Vector;
  constexpr int64_t LANES = BYTES / sizeof(T);
  Vector sum = {};
  for (; c + LANES <= channels; c += LANES) {
    const Vector g = *reinterpret_cast<const Vector*>(grad + c);
    sum += g * *reinterpret_cast<const Vector*>(value + c);
    *reinterpret_cast<Vector*>(grad_value + c) += g * weight;
  }
  return sum_lanes<T, BYTES>(sum);
}

// Accumulates a cell's gradient; returns the dot product of the output gradient and the cell's value.
template <typename T>
inline T spread(const T* grad, const T* value, T* grad_value, T weight, int64_t channels) {
  int64_t c = 0;
  T product = spread_vectors<T, CLOCKDISTILL_VECTOR_BYTES>(grad, value, grad_value, weight, c, channels);
  product += spread_vectors<T, 16>(grad, value, grad_value, weight, c, channels);
  return product + spread_vectors<T, sizeof(T)>(grad, value, grad_value, weight, c, channels);
}

// Computes slices [begin, end) of B * heads * levels: the values of one head and level of an image.
template <typename T>
void backward_slices(const Call<T>& call, const Gradients<T>& gradients, int64_t begin, int64_t end) {
  const Sizes s = call.sizes;
  const int64_t row = s.heads * s.channels;
  for (int64_t slice = begin; slice < end; ++slice) {
    const int64_t l = slice % s.levels;
    const int64_t h = slice / s.levels % s.heads;
    const int64_t b = slice / s.levels / s.heads;
    const Level level = call.levels[l];
    const int64_t origin = (b * s.tokens + level.start) * row + h * s.channels;
    const T* value = call.value + origin;
    T* grad_value = gradients.value + origin;
    for (int64_t q = b * s.queries; q < (b + 1) * s.queries; ++q) {
      const T* grad = gradients.output + q * row + h * s.channels;
      const int64_t first = ((q * s.heads + h) * s.levels + l) * s.points;
      for (int64_t p = first; p < first + s.points; ++p) {
        const Point<T> point = locate(call.locations + 2 * p, level);
        T upper_left = 0, upper_right = 0, lower_left = 0, lower_right = 0;
        if (point.inside) {
          const int64_t offset = (point.y * level.width + point.x) * row;
          const int64_t next = offset + level.width * row;
          const T weight = call.weights[p];
          const T lower = weight * point.below;
          const T upper = weight - lower;
          const T left = T(1) - point.right;
          const bool has_left = point.x >= 0, has_right = point.x + 1 < level.width;
          if (point.y >= 0) {
            if (has_left)
              upper_left = spread(grad, value + offset, grad_value + offset, upper * left, s.channels);
            if (has_right)
              upper_right = spread(grad, value + offset + row, grad_value + offset + row, upper * point.right, s.channels);
          }
          if (point.y + 1 < level.height) {
            if (has_left)
              lower_left = spread(grad, value + next, grad_value + next, lower * left, s.channels);
            if (has_right)
              lower_right = spread(grad, value + next + row, grad_value + next + row, lower * point.right, s.channels);
          }
        }
        const T above = upper_left + (upper_right - upper_left) * point.right;
        const T below = lower_left + (lower_right - lower_left) * point.right;
        gradients.weights[p] = above + (below - above) * point.below;
        const T across = (upper_right - upper_left) * (T(1) - point.below) + (lower_right - lower_left) * point.below;
        gradients.locations[2 * p] = call.weights[p] * static_cast<T>(level.width) * across;
        gradients.locations[2 * p + 1] = call.weights[p] * static_cast<T>(level.height) * (below - above);
      }
    }
  }
}

}  // namespace
}  // namespace CLOCKDISTILL_ISA
}  // namespace clockdistill
