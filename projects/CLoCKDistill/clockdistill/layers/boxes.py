"""Operations on normalized boxes (cx, cy, w, h) that torchvision.ops lacks."""

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Logit of x, with x and 1 - x clamped to at least eps. DETR-style checkpoints are trained with eps = 1e-3."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Compute 1 - GIoU (arXiv:1902.09630) between pairs of boxes (..., 4), (cx, cy, w, h) in [0, 1], as (...)."""
    # scale up: the 1e-7 that torchvision adds to areas would distort the IoU of small normalized boxes
    boxes, targets = (box_convert(b, "cxcywh", "xyxy") * 1000 for b in (boxes, targets))
    return generalized_box_iou_loss(boxes, targets)
