"""Parameter groups of detection transformers."""

from detectron2.solver.build import get_default_optimizer_params
from torch import nn


def get_detr_optimizer_params(model: nn.Module, base_lr: float, backbone_lr_factor: float) -> list[dict]:
    """Parameter groups in which the backbone learns at its own rate.

    Args:
        base_lr: learning rate of everything but the backbone.
        backbone_lr_factor: the backbone's learning rate over `base_lr`.
    """
    return get_default_optimizer_params(
        model, base_lr=base_lr, lr_factor_func=lambda name: backbone_lr_factor if "backbone" in name else 1.0
    )
