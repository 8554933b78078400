// Runs the float32 kernels alone, without torch: kernels ORDER < arguments > results
//
// ORDER seeds the order of warps. The arguments are written by test_cuda_emulation.py, in the order of `main`.
#include <iostream>

#include "cuda_emulation.h"
#include "ms_deform_attn_cuda_kernel.cuh"

using namespace clockdistill;

template <typename T>
std::vector<T> read(int64_t number) {
  std::vector<T> data(number);
  std::cin.read(reinterpret_cast<char*>(data.data()), number * sizeof(T));
  return data;
}

template <typename T>
void write(const std::vector<T>& data) {
  std::cout.write(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(T));
}

template <typename S, int WIDTH>
void run(const Sizes& s, const Levels& levels, double scale) {
  const auto value = read<float>(s.batch * s.tokens * s.heads * s.channels);
  const int64_t samples = s.batch * s.queries * s.heads * s.levels * s.points;
  const auto locations = read<float>(2 * samples);
  const auto weights = read<float>(samples);
  std::vector<float> output(s.batch * s.queries * s.heads * s.channels);
  const auto grad = read<float>(output.size());
  std::vector<S> grad_value(value.size());
  std::vector<float> grad_locations(2 * samples), grad_weights(samples);
  const int lanes = group_lanes((s.channels + WIDTH - 1) / WIDTH);
  const auto blocks = number_of_blocks(s, lanes);
  cuda_emulation::launch(
      forward_kernel<float, float, WIDTH>, blocks, BLOCK, s, levels, lanes, value.data(), locations.data(),
      weights.data(), output.data());
  cuda_emulation::launch(
      backward_kernel<float, float, S, WIDTH>, blocks, BLOCK, s, levels, lanes, &scale, grad.data(), value.data(),
      locations.data(), weights.data(), grad_value.data(), grad_locations.data(), grad_weights.data());
  write(output);
  write(grad_value);
  write(grad_locations);
  write(grad_weights);
}

int main(int, char** arguments) {
  cuda_emulation::seed = std::atoi(arguments[1]);
  const auto s = read<Sizes>(1)[0];
  const auto levels = read<Levels>(1)[0];
  const double scale = read<double>(1)[0];  // 0: gradients of value are not in fixed point
  const bool packs = s.channels % 4 == 0;
  if (scale == 0) {
    packs ? run<float, 4>(s, levels, scale) : run<float, 1>(s, levels, scale);
  } else {
    packs ? run<int64_t, 4>(s, levels, scale) : run<int64_t, 1>(s, levels, scale);
  }
}
