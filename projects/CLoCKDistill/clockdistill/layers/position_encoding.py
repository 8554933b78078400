"""Sinusoidal encodings of pixels (DETR, arXiv:2005.12872) and anchor boxes (DAB-DETR, arXiv:2201.12329)."""

import math

import torch
from torch import Tensor, nn

from ..checks import above, checked, finite, multiple_of


def _sine(position: Tensor, num_feats: int, temperature: float) -> Tensor:
    """Encode (...) in radians as (..., num_feats), with sine and cosine interleaved."""
    index = torch.arange(num_feats, dtype=torch.float32, device=position.device)
    frequency = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / num_feats)
    phase = position[..., None] / frequency
    return torch.stack((phase[..., 0::2].sin(), phase[..., 1::2].cos()), dim=-1).flatten(-2)


class PositionEmbeddingSine(nn.Module):
    """Encode the position of every cell of a feature map, normalized by the size of the unpadded part.

    Args:
        embed_dim: channels of the encoding, half of them for y and half for x.
        temperature: base of the wavelengths: 20 in DINO, 10000 in DETR and Deformable DETR.
        offset: added to the one-based cell index before normalization: -0.5 encodes centers, 0 far edges.
    """

    @checked(embed_dim=multiple_of(4), temperature=above(0), offset=finite)
    def __init__(self, embed_dim: int, temperature: float, offset: float):
        super().__init__()
        self.num_feats = embed_dim // 2
        self.temperature = temperature
        self.offset = offset

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Encode a padding mask (B, H, W), True on padding, as (B, embed_dim, H, W), y before x."""
        valid = ~padding_mask
        y, x = valid.cumsum(1, dtype=torch.float32), valid.cumsum(2, dtype=torch.float32)
        y = (y + self.offset) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = (x + self.offset) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        encoded = [_sine(p, self.num_feats, self.temperature) for p in (y, x)]
        return torch.cat(encoded, dim=-1).permute(0, 3, 1, 2)


def sine_embed_boxes(boxes: Tensor, num_feats: int, temperature: float = 10000) -> Tensor:
    """Encode normalized boxes (..., 4), (cx, cy, w, h), as (..., 4 * num_feats) in the order y, x, w, h (Eq. 8)."""
    cx, cy, w, h = (boxes.float() * (2 * math.pi)).unbind(-1)
    return torch.cat([_sine(p, num_feats, temperature) for p in (cy, cx, w, h)], dim=-1)
