// The operator with its host code, on the emulation. The test adapts ms_deform_attn_cuda.cu.

// before the emulation, which defines CUDA's keywords as macros
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "cuda_emulation.h"

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(at::Device) {}
};

}  // namespace c10::cuda

// Tells the test that the emulation ran, not the fallback to PyTorch.
inline struct Report {
  ~Report() {
    std::fprintf(stderr, "%ld emulated launches\n", cuda_emulation::launches);
  }
} report;

#include "ms_deform_attn_cuda.cu"
