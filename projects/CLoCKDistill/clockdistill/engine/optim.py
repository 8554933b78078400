"""Parameter groups of detection transformers."""

from detectron2.solver.build import get_default_optimizer_params
from torch import nn


def get_detr_optimizer_params(
    model: nn.Module, base_lr: float, backbone_lr_factor: float, point_lr_factor: float = 1.0
) -> list[dict]:
    """Parameter groups in which the backbone learns at its own rate, and what says where deformable attention looks.

    Args:
        base_lr: learning rate of everything else.
        backbone_lr_factor: the backbone's learning rate over `base_lr`.
        point_lr_factor: that of reference points and sampling offsets (Deformable DETR, arXiv:2010.04159, Sec. 5).
    """

    def factor(name: str) -> float:
        if "backbone" in name:
            return backbone_lr_factor
        return point_lr_factor if "reference_points" in name or "sampling_offsets" in name else 1.0

    return get_default_optimizer_params(model, base_lr=base_lr, lr_factor_func=factor)
