// Multi-scale deformable attention on the CPU (Deformable DETR, arXiv:2010.04159, Eq. 3), forward and backward.
//
// The arithmetic is in ms_deform_attn_cpu_kernel.h, which is compiled here once per instruction set. The first call
// selects the best one available, so the library runs on any machine of its architecture.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>

#include "checks.h"

namespace clockdistill {

// Arguments of the kernels: contiguous arrays of one floating-point type.
template <typename T>
struct Call {
  Sizes sizes;
  const Level* levels;
  const T* value;      // (B, N, heads, D)
  const T* locations;  // (B, Q, heads, levels, points, 2)
  const T* weights;    // (B, Q, heads, levels, points)
};

template <typename T>
struct Gradients {
  const T* output;  // (B, Q, heads * D)
  T* value;
  T* locations;
  T* weights;
};

}  // namespace clockdistill

#define CLOCKDISTILL_ISA baseline
#define CLOCKDISTILL_VECTOR_BYTES 16
#include "ms_deform_attn_cpu_kernel.h"
#undef CLOCKDISTILL_ISA
#undef CLOCKDISTILL_VECTOR_BYTES

#if defined(__x86_64__) && defined(__GNUC__)
#define CLOCKDISTILL_X86

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define CLOCKDISTILL_ISA avx2
#define CLOCKDISTILL_VECTOR_BYTES 32
#include "ms_deform_attn_cpu_kernel.h"
#undef CLOCKDISTILL_ISA
#undef CLOCKDISTILL_VECTOR_BYTES
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,fma,prefer-vector-width=512")
#endif
#define CLOCKDISTILL_ISA avx512
#define CLOCKDISTILL_VECTOR_BYTES 64
#include "ms_deform_attn_cpu_kernel.h"
#undef CLOCKDISTILL_ISA
#undef CLOCKDISTILL_VECTOR_BYTES
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace clockdistill {
namespace {

enum class InstructionSet { baseline, avx2, avx512 };

InstructionSet best_instruction_set() {
#ifdef CLOCKDISTILL_X86
  // honor ATen's variable, so that one setting makes runs comparable across machines
  const char* requested = std::getenv("ATEN_CPU_CAPABILITY");
  if (requested != nullptr && std::strcmp(requested, "default") == 0) {
    return InstructionSet::baseline;
  }
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx2 && avx512 && (requested == nullptr || std::strcmp(requested, "avx2") != 0)) {
    return InstructionSet::avx512;
  }
  if (avx2) {
    return InstructionSet::avx2;
  }
#endif
  return InstructionSet::baseline;
}

InstructionSet instruction_set() {
  static const InstructionSet chosen = best_instruction_set();
  return chosen;
}

template <typename T>
void forward_queries(const Call<T>& call, T* output, int64_t begin, int64_t end) {
  switch (instruction_set()) {
#ifdef CLOCKDISTILL_X86
    case InstructionSet::avx512:
      return avx512::forward_queries(call, output, begin, end);
    case InstructionSet::avx2:
      return avx2::forward_queries(call, output, begin, end);
#endif
    default:
      return baseline::forward_queries(call, output, begin, end);
  }
}

template <typename T>
void backward_slices(const Call<T>& call, const Gradients<T>& gradients, int64_t begin, int64_t end) {
  switch (instruction_set()) {
#ifdef CLOCKDISTILL_X86
    case InstructionSet::avx512:
      return avx512::backward_slices(call, gradients, begin, end);
    case InstructionSet::avx2:
      return avx2::backward_slices(call, gradients, begin, end);
#endif
    default:
      return baseline::backward_slices(call, gradients, begin, end);
  }
}

// Half precision is computed in float32: converting each token once is cheap compared to sampling it many times.
at::ScalarType compute_type(const at::Tensor& value) {
  return is_half(value.scalar_type()) ? at::kFloat : value.scalar_type();
}

at::Tensor ms_deform_attn(
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const auto sizes =
      check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  const auto levels = read_levels(spatial_shapes, level_start_index, sizes.tokens);
  const auto type = compute_type(value);
  const auto v = value.to(type).contiguous();
  const auto locations = sampling_locations.to(type).contiguous();
  const auto weights = attention_weights.to(type).contiguous();
  auto output = at::empty({sizes.batch, sizes.queries, sizes.heads * sizes.channels}, v.options());
  AT_DISPATCH_FLOATING_TYPES(type, "ms_deform_attn", [&] {
    const Call<scalar_t> call{
        sizes, levels.data(), v.const_data_ptr<scalar_t>(), locations.const_data_ptr<scalar_t>(),
        weights.const_data_ptr<scalar_t>()};
    auto* out = output.mutable_data_ptr<scalar_t>();
    // a query takes a few microseconds: smaller chunks do not pay for a thread
    at::parallel_for(0, sizes.batch * sizes.queries, 16, [&](int64_t begin, int64_t end) {
      forward_queries(call, out, begin, end);
    });
  });
  return output.to(value.scalar_type());
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
  const auto levels = read_levels(spatial_shapes, level_start_index, sizes.tokens);
  const auto type = compute_type(value);
  const auto v = value.to(type).contiguous();
  const auto locations = sampling_locations.to(type).contiguous();
  const auto weights = attention_weights.to(type).contiguous();
  const auto grad = grad_output.to(type).contiguous();
  auto grad_value = at::zeros(v.sizes(), v.options());
  auto grad_locations = at::empty(locations.sizes(), v.options());
  auto grad_weights = at::empty(weights.sizes(), v.options());
  AT_DISPATCH_FLOATING_TYPES(type, "ms_deform_attn_backward", [&] {
    const Call<scalar_t> call{
        sizes, levels.data(), v.const_data_ptr<scalar_t>(), locations.const_data_ptr<scalar_t>(),
        weights.const_data_ptr<scalar_t>()};
    const Gradients<scalar_t> gradients{
        grad.const_data_ptr<scalar_t>(), grad_value.mutable_data_ptr<scalar_t>(),
        grad_locations.mutable_data_ptr<scalar_t>(), grad_weights.mutable_data_ptr<scalar_t>()};
    // Queries share values, so threads split the (image, head, level) slices of value instead. No two threads write to
    // the same place, and the order of summation does not depend on the number of threads.
    at::parallel_for(0, sizes.batch * sizes.heads * sizes.levels, 1, [&](int64_t begin, int64_t end) {
      backward_slices(call, gradients, begin, end);
    });
  });
  return {
      grad_value.to(value.scalar_type()), grad_locations.to(sampling_locations.scalar_type()),
      grad_weights.to(attention_weights.scalar_type())};
}

std::string instruction_set_name() {
  switch (instruction_set()) {
    case InstructionSet::avx512:
      return "AVX-512";
    case InstructionSet::avx2:
      return "AVX2";
    default:
      return "baseline";
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(clockdistill, CPU, m) {
  m.impl("ms_deform_attn", ms_deform_attn);
  m.impl("ms_deform_attn_backward", ms_deform_attn_backward);
}

TORCH_LIBRARY_FRAGMENT(clockdistill, m) {
  m.def("cpu_instruction_set() -> str", instruction_set_name);
}

}  // namespace clockdistill
