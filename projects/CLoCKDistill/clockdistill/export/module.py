"""A detector as a function of tensors alone, in operators that can be exported."""

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..layers import MultiScaleDeformableAttention
from ..modeling import Detector, Queries
from .sampling import OPERATORS, ExportableAttention


class ExportableDetector(nn.Module):
    """Inference from images to boxes without control flow that depends on data.

    Args:
        detector: is copied to the CPU, in eval mode.
        grid_sample: "native", or "gather" to write bilinear sampling with gather and arithmetic.
        dynamic: keep the sizes of a traced graph free.
    """

    def __init__(self, detector: Detector, grid_sample: str = "native", dynamic: bool = False):
        super().__init__()
        self.detector = copy.deepcopy(detector).cpu().float().eval().requires_grad_(False)
        for parent in list(self.detector.modules()):
            for name, module in parent.named_children():
                if isinstance(module, MultiScaleDeformableAttention):
                    setattr(parent, name, ExportableAttention(module, OPERATORS[grid_sample], dynamic))

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: (B, 3, H, W), uint8 RGB, with any padding at the right and bottom.
            sizes: (B, 2), int64, height and width of each image without padding.

        Returns:
            boxes: (B, N, 4), (x1, y1, x2, y2) in pixels, clipped to the image.
            scores: (B, N), in [0, 1], in descending order.
            labels: (B, N), int64.
        """
        detector = self.detector
        height, width = images.shape[-2:]
        valid = (torch.arange(height) < sizes[:, :1])[:, :, None] & (torch.arange(width) < sizes[:, 1:])[:, None]
        pixels = (images.float() - detector.pixel_mean) / detector.pixel_std * valid[:, None]
        # as `Detector.pad` does
        constraints = detector.backbone.padding_constraints or {}
        divisor = constraints.get("size_divisibility", getattr(detector.backbone, "size_divisibility", 0))
        if side := constraints.get("square_size", 0):
            side += -side % max(divisor, 1)
            pixels = F.pad(pixels, (0, side - width, 0, side - height))
        elif divisor > 1:
            pixels = F.pad(pixels, (0, -width % divisor, 0, -height % divisor))
        memory = detector.encode(ImageList(pixels, sizes))
        predictions = detector.decode(memory, contiguous(detector.propose(memory)))
        boxes, scores, labels = detector.top_detections(predictions)
        limits = sizes.flip(-1).repeat(1, 2)[:, None].float()
        return (boxes * limits).clamp(min=0).minimum(limits), scores, labels


def contiguous(queries: Queries) -> Queries:
    """Return the queries in memory of their own: with a view's strides, a graph would be specific to a batch size."""
    position = None if queries.position is None else queries.position.contiguous()
    return replace(queries, content=queries.content.contiguous(), position=position)
