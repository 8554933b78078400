"""Gradients of single losses."""

import torch
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn


def gradient(loss: Tensor, student: nn.Module, scale: float | Tensor) -> Tensor:
    """Return the gradient of a loss with respect to all trained parameters, as one vector in float32.

    The graph is kept.

    Args:
        scale: factor of the loss in the backward pass, so that its gradient neither vanishes nor overflows in float16.
            The returned gradient is not scaled.
    """
    parameters = [p for p in student.parameters() if p.requires_grad]
    if not loss.requires_grad:
        return torch.zeros(sum(p.numel() for p in parameters), device=loss.device)
    gradients = torch.autograd.grad(loss * scale, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten().float() for g in gradients]).div_(scale)


def log_gradient_shares(terms: dict[str, Tensor], student: nn.Module, loss_scale: float) -> None:
    """Log the norm of each term's gradient with respect to the student's parameters, divided by their sum."""
    norms = {name: gradient(term, student, loss_scale).norm() for name, term in terms.items() if term.requires_grad}
    total = sum(norms.values())
    if total.isfinite():
        shares = {f"gradient_share/{name.removeprefix('loss_')}": float(n / total) for name, n in norms.items()}
        get_event_storage().put_scalars(smoothing_hint=False, **shares)
