"""Weights of the distillation losses that follow the norms of their gradients."""

import math
from collections.abc import Mapping

import torch
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..checks import Rule, above, some_of
from ..modeling.criterion import average_over_ranks
from .gradients import gradient

# weight of a new measurement in the moving average of logarithms: the gradients of single batches are noisy
RATE = 0.3
# largest factor by which a measurement changes a weight
MAX_CHANGE = 2.0
# a loss whose gradient vanishes must not get a weight that overflows
MAX_WEIGHT = 1e10


def ratios_of(*losses: str) -> Rule:
    """Return the rule for the ratios of `GradientBalance`, given the names of all losses."""
    positive, named = above(0), some_of(*losses)
    return Rule(
        lambda value: isinstance(value, Mapping) and named.holds(value) and all(map(positive.holds, value.values())),
        f"numbers greater than 0 for some of {', '.join(losses)}, as in {{{losses[0]}: 1.0}}",
    )


class GradientBalance(nn.Module):
    """Sets the weight of each loss so that its gradient has a wanted norm relative to the detection loss's gradient.

    The gradients are those of the joint batch (all processes, all batches of a step) with respect to all trained
    parameters of the student. They are measured every `period` iterations. Each measurement moves the logarithm of a
    weight part of the way to that of the weight that would have given the wanted norm, from the next step on. The first
    measurement sets the weight; until then it is zero. A norm that is zero, NaN or infinite is ignored.

    The weights are part of the state dict.

    Args:
        ratios: for each loss to weight, the wanted norm of its gradient, divided by that of the detection loss.
        period: number of iterations between measurements, each of which costs one backward pass per loss and batch.
    """

    def __init__(self, ratios: Mapping[str, float], period: int):
        super().__init__()
        self.ratios = dict(ratios)
        self.period = period
        # a loss of unknown scale would fill Adam's second moments with its first gradient
        self.weights = dict.fromkeys(ratios, 0.0)
        # None is the detection loss, since a distillation loss may have any name
        self._gradients: dict[str | None, Tensor] = {}

    def forward(
        self,
        detection: Tensor,
        losses: Mapping[str, Mapping[str, Tensor]],
        student: nn.Module,
        loss_scale: float,
        is_last: bool,
    ) -> dict[str, Mapping[str, Tensor]]:
        """Return the losses of a batch with their weights, which are the same for all batches of a step.

        Args:
            detection: the detection loss.
            losses: terms of each distillation loss, with their graphs.
            student: the model, not wrapped in DistributedDataParallel.
            loss_scale: factor of the losses in the backward pass, in float16.
            is_last: whether this is the last batch of the step.
        """
        weights = self.weights
        if get_event_storage().iter % self.period == 0 or 0 in weights.values():
            self._measure(detection, losses, student, loss_scale)
            if is_last:
                self._update()
        return {
            name: {term: weights[name] * value for term, value in terms.items()} if name in weights else terms
            for name, terms in losses.items()
        }

    def _measure(
        self, detection: Tensor, losses: Mapping[str, Mapping[str, Tensor]], student: nn.Module, loss_scale: float
    ) -> None:
        """Add the gradients of a batch to those of the step's earlier batches."""
        # of all parameters, as for the gradient shares, and not only of the memory: losses on the backbone's features
        # do not reach it, and the logit loss also trains the decoder
        totals = {name: sum(losses[name].values(), start=torch.zeros_like(detection)) for name in self.weights}
        for name, loss in {None: detection, **totals}.items():
            # in float16 a gradient neither overflows nor vanishes if the loss is as large as the detection loss
            factor = (detection / loss).detach().abs()
            scale = loss_scale * torch.where((factor > 0) & factor.isfinite(), factor, 1.0)
            self._gradients[name] = self._gradients.get(name, 0) + gradient(loss, student, scale)

    def _update(self) -> None:
        """Move the weights toward the wanted ones, which the gradients of the joint batch determine."""
        norms = torch.stack([average_over_ranks(total).norm() for total in self._gradients.values()])
        norms = dict(zip(self._gradients, norms.tolist(), strict=True))
        self._gradients = {}
        # a new dictionary, since the step's batches have the old weights
        self.weights = {
            name: next_weight(weight, self.ratios[name] * norms[None], norms[name])
            for name, weight in self.weights.items()
        }
        logged = {f"distillation_weight/{name}": weight for name, weight in self.weights.items()}
        get_event_storage().put_scalars(smoothing_hint=False, **logged)

    def get_extra_state(self) -> dict[str, float]:
        return self.weights

    def set_extra_state(self, state: dict[str, float]) -> None:
        if state.keys() != self.weights.keys():
            raise ValueError(f"the state has weights of {', '.join(state)}, not of {', '.join(self.weights)}")
        self.weights = dict(state)


def next_weight(weight: float, wanted_norm: float, norm: float) -> float:
    """Return the next weight of a loss.

    It stays the same if a norm is zero, NaN or infinite.

    Args:
        weight: the last weight; 0 if the loss has none yet.
        wanted_norm: norm of the gradient that the weighted loss should have.
        norm: norm of the gradient of the loss without weight.
    """
    if not (0 < wanted_norm < math.inf and 0 < norm < math.inf):
        return weight
    wanted = min(max(wanted_norm / norm, 1 / MAX_WEIGHT), MAX_WEIGHT)
    if weight == 0:
        return wanted
    return weight * min(max((wanted / weight) ** RATE, 1 / MAX_CHANGE), MAX_CHANGE)
