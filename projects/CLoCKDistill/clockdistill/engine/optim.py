"""Parameter groups of detection transformers."""

from detectron2.solver.build import get_default_optimizer_params
from torch import nn


def get_detr_optimizer_params(
    model: nn.Module, base_lr: float, backbone_lr_factor: float, point_lr_factor: float = 1.0
) -> list[dict]:
    """Get parameter groups with separate learning rates for the backbone and for deformable attention's points.

    Args:
        model: the detector.
        base_lr: learning rate of all other parameters.
        backbone_lr_factor: factor of `base_lr` for the backbone.
        point_lr_factor: factor for reference points and sampling offsets (Deformable DETR, arXiv:2010.04159, Sec. 5).
    """

    def factor(name: str) -> float:
        if "backbone" in name:
            return backbone_lr_factor
        return point_lr_factor if "reference_points" in name or "sampling_offsets" in name else 1.0

    return get_default_optimizer_params(model, base_lr=base_lr, lr_factor_func=factor)
