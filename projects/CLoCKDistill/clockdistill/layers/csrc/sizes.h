// Sizes of a call, without torch's headers.
#pragma once

#include <cstdint>

namespace clockdistill {

struct Level {
  int64_t height;
  int64_t width;
  int64_t start;
};

struct Sizes {
  int64_t batch;
  int64_t tokens;
  int64_t heads;
  int64_t channels;
  int64_t queries;
  int64_t levels;
  int64_t points;
};

}  // namespace clockdistill
