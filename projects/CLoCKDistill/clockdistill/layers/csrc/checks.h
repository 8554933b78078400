// Argument checks shared by the CPU and CUDA kernels, with the messages of ms_deform_attn.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

#include "sizes.h"

namespace clockdistill {

inline bool is_half(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16;
}

// Returns the sizes of a call; an error names the argument that does not match the others.
inline Sizes check_arguments(
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  TORCH_CHECK(value.dim() == 4, "value must be (B, N, heads, D), got ", value.sizes());
  const auto type = value.scalar_type();
  TORCH_CHECK(
      type == at::kFloat || type == at::kDouble || is_half(type),
      "value must be float16, bfloat16, float32 or float64, got ", type);
  TORCH_CHECK(
      spatial_shapes.dim() == 2 && spatial_shapes.size(1) == 2,
      "spatial_shapes must be (levels, 2), got ", spatial_shapes.sizes());
  const auto levels = spatial_shapes.size(0);
  TORCH_CHECK(
      level_start_index.dim() == 1 && level_start_index.size(0) == levels,
      "level_start_index must be (levels,) with ", levels, " levels like spatial_shapes, got ",
      level_start_index.sizes());
  for (const auto& [name, indices] :
       {std::pair{"spatial_shapes", spatial_shapes}, std::pair{"level_start_index", level_start_index}}) {
    TORCH_CHECK(
        indices.scalar_type() == at::kLong || indices.scalar_type() == at::kInt,
        name, " must be int64 or int32, got ", indices.scalar_type());
    TORCH_CHECK(
        indices.device() == value.device() || indices.is_cpu(),
        name, " must be on ", value.device(), " like value, or on the CPU, got ", indices.device());
  }
  TORCH_CHECK(
      sampling_locations.dim() == 6 && sampling_locations.size(0) == value.size(0) &&
          sampling_locations.size(2) == value.size(2) && sampling_locations.size(3) == levels &&
          sampling_locations.size(5) == 2,
      "sampling_locations must be (B, Q, heads, levels, points, 2) with B = ", value.size(0), ", heads = ",
      value.size(2), " and levels = ", levels, ", got ", sampling_locations.sizes());
  TORCH_CHECK(
      attention_weights.sizes() == sampling_locations.sizes().slice(0, 5),
      "attention_weights must be (B, Q, heads, levels, points) like sampling_locations, got ",
      attention_weights.sizes());
  for (const auto& [name, floats] :
       {std::pair{"sampling_locations", sampling_locations}, std::pair{"attention_weights", attention_weights}}) {
    TORCH_CHECK(
        floats.scalar_type() == type || (is_half(type) && floats.scalar_type() == at::kFloat),
        name, " must be ", type, " like value", is_half(type) ? " or float32" : "", ", got ", floats.scalar_type());
    TORCH_CHECK(
        floats.device() == value.device(),
        name, " must be on ", value.device(), " like value, got ", floats.device());
  }
  return {
      value.size(0), value.size(1), value.size(2), value.size(3),
      sampling_locations.size(1), levels, sampling_locations.size(4)};
}

inline void check_grad_output(const at::Tensor& grad_output, const at::Tensor& value, const Sizes& sizes) {
  TORCH_CHECK(
      grad_output.dim() == 3 && grad_output.size(0) == sizes.batch && grad_output.size(1) == sizes.queries &&
          grad_output.size(2) == sizes.heads * sizes.channels,
      "grad_output must be (B, Q, heads * D), got ", grad_output.sizes());
  TORCH_CHECK(
      grad_output.scalar_type() == value.scalar_type(),
      "grad_output must be ", value.scalar_type(), " like value, got ", grad_output.scalar_type());
  TORCH_CHECK(
      grad_output.device() == value.device(),
      "grad_output must be on ", value.device(), " like value, got ", grad_output.device());
}

// Reads the levels on the host. Copying indices from a GPU synchronizes its stream.
inline std::vector<Level> read_levels(
    const at::Tensor& spatial_shapes, const at::Tensor& level_start_index, int64_t tokens) {
  const auto shapes = spatial_shapes.to(at::kCPU, at::kLong).contiguous();
  const auto starts = level_start_index.to(at::kCPU, at::kLong).contiguous();
  const auto* shape = shapes.const_data_ptr<int64_t>();
  const auto* start = starts.const_data_ptr<int64_t>();
  std::vector<Level> levels;
  int64_t end = 0;
  for (int64_t l = 0; l < shapes.size(0); ++l) {
    const Level level{shape[2 * l], shape[2 * l + 1], start[l]};
    TORCH_CHECK(
        level.height >= 0 && level.width >= 0 && level.height <= INT32_MAX && level.width <= INT32_MAX,
        "spatial_shapes: level ", l, " has an invalid size of ", level.height, " x ", level.width);
    // levels must not overlap: the backward passes accumulate their gradients independently
    TORCH_CHECK(
        level.start >= end, "level_start_index: level ", l, " must start at ", end,
        " or later, after the previous level, got ", level.start);
    TORCH_CHECK(
        level.start <= tokens && level.height * level.width <= tokens - level.start,
        "level_start_index: level ", l, " with ", level.height, " x ", level.width, " cells from ", level.start,
        " on exceeds the ", tokens, " tokens of value");
    levels.push_back(level);
    end = level.start + level.height * level.width;
  }
  return levels;
}

}  // namespace clockdistill
