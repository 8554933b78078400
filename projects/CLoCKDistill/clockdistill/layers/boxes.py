"""What torchvision.ops lacks for boxes as detection transformers write them: (cx, cy, w, h) in [0, 1]."""

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Logit of x, with x and 1 - x held above eps. The DETR family's checkpoints were trained with eps = 1e-3."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU (arXiv:1902.09630) of pairs of boxes: (..., 4) and (..., 4) as (cx, cy, w, h) in [0, 1] to (...)."""
    # torchvision adds 1e-7 to areas against division by zero; in these units that would move the IoU of small boxes
    boxes, targets = (box_convert(b, "cxcywh", "xyxy") * 1000 for b in (boxes, targets))
    return generalized_box_iou_loss(boxes, targets)
