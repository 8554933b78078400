// Multi-scale deformable attention on CUDA (Deformable DETR, arXiv:2010.04159, Eq. 3), forward and backward.

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/ceil.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp2.h>
#include <ATen/ops/log2.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "checks.h"
#include "ms_deform_attn_cuda_kernel.cuh"

namespace clockdistill {
namespace {

// Positions up to one row of cells outside an image must fit into 32 bits.
constexpr int64_t MAX_ELEMENTS = int64_t(1) << 30;

Levels to_kernel_levels(const std::vector<Level>& levels, const Sizes& s) {
  TORCH_CHECK(
      levels.size() <= MAX_LEVELS, "spatial_shapes must have at most ", MAX_LEVELS, " levels on CUDA, got ",
      levels.size());
  TORCH_CHECK(
      s.tokens * s.heads * s.channels <= MAX_ELEMENTS, "value must have at most ", MAX_ELEMENTS,
      " elements per image on CUDA, got ", s.tokens, " x ", s.heads, " x ", s.channels);
  Levels result{};
  for (size_t l = 0; l < levels.size(); ++l) {
    result.height[l] = static_cast<int32_t>(levels[l].height);
    result.width[l] = static_cast<int32_t>(levels[l].width);
    result.start[l] = static_cast<int32_t>(levels[l].start);
  }
  return result;
}

// Packs are loaded whole, so addresses must be multiples of their size; views may start anywhere.
at::Tensor aligned(const at::Tensor& tensor) {
  const auto contiguous = tensor.contiguous();
  const bool fits = reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 == 0;
  return fits ? contiguous : contiguous.clone();
}

unsigned int grid_size(const Sizes& s, int lanes) {
  const int64_t blocks = number_of_blocks(s, lanes);
  TORCH_CHECK(
      blocks <= INT32_MAX && s.queries <= INT32_MAX,
      "sampling_locations: too many images, queries and heads for one CUDA launch");
  return static_cast<unsigned int>(blocks);
}

// Calls run(T, C, WIDTH) for the types of value and coordinates. A lane's pack has 16 bytes of values or, if ADDS, of
// their gradients' sums, so that vector atomics of adjacent lanes are contiguous. If the number of channels is not
// divisible by that, a pack has one.
template <bool ADDS, typename F>
void dispatch(at::ScalarType type, at::ScalarType coordinates, int64_t channels, F run) {
  const auto with_width = [&](auto t, auto c) {
    using T = decltype(t);
    constexpr int WIDTH = 16 / (ADDS ? sizeof(typename Accumulate<T>::type) : sizeof(T));
    if (channels % WIDTH == 0) {
      run(t, c, std::integral_constant<int, WIDTH>());
    } else {
      run(t, c, std::integral_constant<int, 1>());
    }
  };
  const auto with_coordinates = [&](auto t) {
    if (coordinates == type) {
      with_width(t, t);
    } else {
      with_width(t, float());
    }
  };
  switch (type) {
    case at::kFloat:
      return with_width(float(), float());
    case at::kDouble:
      return with_width(double(), double());
    case at::kHalf:
      return with_coordinates(at::Half());
    default:
      return with_coordinates(at::BFloat16());
  }
}

// Common type of locations and weights: float32 if they differ.
at::ScalarType coordinate_type(const at::Tensor& sampling_locations, const at::Tensor& attention_weights) {
  return sampling_locations.scalar_type() == attention_weights.scalar_type() ? sampling_locations.scalar_type()
                                                                             : at::kFloat;
}

at::Tensor ms_deform_attn(
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const auto sizes =
      check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  const c10::cuda::CUDAGuard guard(value.device());
  const auto levels = to_kernel_levels(read_levels(spatial_shapes, level_start_index, sizes.tokens), sizes);
  auto output = at::empty({sizes.batch, sizes.queries, sizes.heads * sizes.channels}, value.options());
  if (output.numel() == 0) {
    return output;
  }
  const auto coordinates = coordinate_type(sampling_locations, attention_weights);
  const auto v = aligned(value);
  const auto locations = aligned(sampling_locations.to(coordinates));
  const auto weights = aligned(attention_weights.to(coordinates));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  dispatch<false>(value.scalar_type(), coordinates, sizes.channels, [&](auto t, auto c, auto width) {
    using T = decltype(t);
    using C = decltype(c);
    constexpr int WIDTH = decltype(width)::value;
    const int lanes = group_lanes((sizes.channels + WIDTH - 1) / WIDTH);
    forward_kernel<T, C, WIDTH><<<grid_size(sizes, lanes), BLOCK, 0, stream>>>(
        sizes, levels, lanes, v.const_data_ptr<T>(), locations.const_data_ptr<C>(), weights.const_data_ptr<C>(),
        output.mutable_data_ptr<T>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return output;
}

// Fixed-point representation of 1 (a tensor (1,), a power of two), chosen such that no sum can overflow.
at::Tensor fixed_point_scale(const at::Tensor& grad_output, const at::Tensor& weights, const Sizes& s) {
  const auto largest = grad_output.abs().amax().to(at::kDouble) * weights.abs().amax().to(at::kDouble);
  const auto terms = static_cast<double>(s.queries * s.levels * s.points);
  // avoid log2(0) if all gradients are zero
  const auto bound = (largest * terms).clamp_min(1e-300);
  return at::exp2(FIXED_POINT_BITS - 1 - at::ceil(at::log2(bound)).clamp_min(-960));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_backward(
    const at::Tensor& grad_output,
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const auto sizes =
      check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  check_grad_output(grad_output, value, sizes);
  const c10::cuda::CUDAGuard guard(value.device());
  const auto levels = to_kernel_levels(read_levels(spatial_shapes, level_start_index, sizes.tokens), sizes);
  const auto coordinates = coordinate_type(sampling_locations, attention_weights);
  if (grad_output.numel() == 0 || attention_weights.numel() == 0) {
    return {at::zeros_like(value), at::zeros_like(sampling_locations), at::zeros_like(attention_weights)};
  }
  const auto v = aligned(value);
  const auto locations = aligned(sampling_locations.to(coordinates));
  const auto weights = aligned(attention_weights.to(coordinates));
  const auto grad = aligned(grad_output);
  const bool deterministic = at::globalContext().deterministicAlgorithms();
  const auto sum_type = value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  auto grad_value = at::zeros(v.sizes(), v.options().dtype(deterministic ? at::kLong : sum_type));
  auto grad_locations = at::empty(locations.sizes(), locations.options());
  auto grad_weights = at::empty(weights.sizes(), weights.options());
  const auto scale = deterministic ? fixed_point_scale(grad, weights, sizes) : at::Tensor();
  const auto stream = c10::cuda::getCurrentCUDAStream();
  dispatch<true>(value.scalar_type(), coordinates, sizes.channels, [&](auto t, auto c, auto width) {
    using T = decltype(t);
    using C = decltype(c);
    using A = typename Accumulate<T>::type;
    constexpr int WIDTH = decltype(width)::value;
    const int lanes = group_lanes((sizes.channels + WIDTH - 1) / WIDTH);
    const auto launch = [&](auto* sums, const double* scale_pointer) {
      using S = std::remove_pointer_t<decltype(sums)>;
      backward_kernel<T, C, S, WIDTH><<<grid_size(sizes, lanes), BLOCK, 0, stream>>>(
          sizes, levels, lanes, scale_pointer, grad.const_data_ptr<T>(), v.const_data_ptr<T>(),
          locations.const_data_ptr<C>(), weights.const_data_ptr<C>(), sums, grad_locations.mutable_data_ptr<C>(),
          grad_weights.mutable_data_ptr<C>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    };
    if (deterministic) {
      launch(grad_value.mutable_data_ptr<int64_t>(), scale.const_data_ptr<double>());
    } else {
      launch(grad_value.mutable_data_ptr<A>(), static_cast<const double*>(nullptr));
    }
  });
  if (deterministic) {
    grad_value = grad_value.to(at::kDouble).div_(scale);
  }
  return {
      grad_value.to(value.scalar_type()), grad_locations.to(sampling_locations.scalar_type()),
      grad_weights.to(attention_weights.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(clockdistill, CUDA, m) {
  m.impl("ms_deform_attn", ms_deform_attn);
  m.impl("ms_deform_attn_backward", ms_deform_attn_backward);
}

}  // namespace clockdistill
