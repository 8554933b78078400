import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Cast half precision, which overflows and rounds too soon in sums and squares, to float32; keep wider types."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
