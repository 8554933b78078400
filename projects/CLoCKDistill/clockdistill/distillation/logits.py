"""Target-aware consistent logit distillation (arXiv:2502.10683, Sec. 3.3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import above, checked, not_negative
from ..layers import at_least_float32, giou_loss
from ..modeling import HungarianMatcher, Outputs, Predictions, Targets
from .base import DistillationLoss


def bernoulli_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return the elementwise KL(teacher || student) of sigmoids of logits, times the squared temperature."""
    teacher, student = teacher / temperature, student / temperature
    positive = F.logsigmoid(teacher) - F.logsigmoid(student)
    negative = F.logsigmoid(-teacher) - F.logsigmoid(-student)
    p = teacher.sigmoid()
    return (p * positive + (1 - p) * negative) * temperature**2


def spread_layers(predictions: Predictions, num_layers: int) -> Predictions:
    """Select `num_layers` layers, evenly spread and ending with the last one."""
    index = spread_indices(len(predictions.logits), num_layers)
    return Predictions(predictions.logits[index], predictions.boxes[index])


def spread_indices(available: int, num_layers: int) -> list[int]:
    """Return the indices of the layers that `spread_layers` selects."""
    return [math.ceil((layer + 1) * available / num_layers) - 1 for layer in range(num_layers)]


def gather_queries(predictions: Predictions, query_of: Tensor) -> Predictions:
    """Return the predictions of the queries with these indices, (E, B, n); -1 yields any query."""
    index = query_of.clamp(min=0)[..., None]
    return Predictions(*(x.gather(2, index.expand(-1, -1, -1, x.shape[-1])) for x in predictions))


class LogitLoss(DistillationLoss):
    """Base class of losses that compare classes and boxes of teacher and student on every decoder layer.

    Args:
        class_weight, l1_weight, giou_weight: lambda_cls, lambda_L1, lambda_GIoU.
        temperature: temperature of the sigmoids in the divergence.
        weight_by_confidence: weight each query by the teacher's highest class score; otherwise all have equal weight.
    """

    @checked(class_weight=not_negative, l1_weight=not_negative, giou_weight=not_negative, temperature=above(0))
    def __init__(
        self,
        class_weight: float,
        l1_weight: float,
        giou_weight: float,
        temperature: float = 1.0,
        weight_by_confidence: bool = True,
    ):
        super().__init__()
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.temperature = temperature
        self.weight_by_confidence = weight_by_confidence

    def weights(self, teacher: Predictions, valid: Tensor | bool = True) -> Tensor:
        """Return the weights (E, B, Q) of queries, given which have a loss, (B, Q) or (E, B, Q)."""
        confidence = at_least_float32(teacher.logits).sigmoid().amax(-1)
        return (confidence if self.weight_by_confidence else torch.ones_like(confidence)) * valid

    def compare(
        self, teacher: Predictions, student: Predictions, valid: Tensor | bool, normalizer: Tensor
    ) -> dict[str, Tensor]:
        """
        Args:
            teacher, student: predictions for the same queries. Of the teacher's layers, as many are compared as the
                student has.
            valid: (B, Q) or (E, B, Q), False on queries without a loss; True if all have one.
            normalizer: (teacher's layers,), sum of the weights.
        """
        num_layers = len(student.logits)
        normalizer = normalizer[spread_indices(len(teacher.logits), num_layers)].clamp(min=1e-6)
        teacher, student = (
            Predictions(*map(at_least_float32, p)) for p in (spread_layers(teacher, num_layers), student)
        )
        weight = self.weights(teacher, valid) / normalizer[:, None, None]
        divergence = bernoulli_kl(teacher.logits, student.logits, self.temperature).sum(-1)
        l1 = (teacher.boxes - student.boxes).abs().sum(-1)
        return {
            "class": self.class_weight * (weight * divergence).sum(),
            "bbox": self.l1_weight * (weight * l1).sum(),
            "giou": self.giou_weight * (weight * giou_loss(student.boxes, teacher.boxes)).sum(),
        }


class SharedQueriesLoss(LogitLoss):
    """Base class of losses that compare both decoders' predictions for one group of queries.

    Attributes:
        group: name of the group in `Outputs.extra_predictions`.
    """

    group: str

    def valid(self, targets: Targets) -> Tensor | bool:
        """Return which of the group's queries have a loss, (B, Q); True if all have one."""
        return True

    def normalizer(self, teacher: Outputs, targets: Targets) -> Tensor:
        """Return the sum of the weights for each layer of the teacher."""
        return self.weights(teacher.extra_predictions[self.group], self.valid(targets)).sum((1, 2))

    def forward(
        self, teacher: Outputs, student: Outputs, targets: Targets, normalizer: Tensor | None = None
    ) -> dict[str, Tensor]:
        if normalizer is None:
            normalizer = self.normalizer(teacher, targets)
        predictions = (outputs.extra_predictions[self.group] for outputs in (teacher, student))
        return self.compare(*predictions, self.valid(targets), normalizer)


class TargetAwareLogitLoss(SharedQueriesLoss):
    """Target-aware logit loss: teacher and student decode the same queries, made from the ground truth."""

    requires_targets = True
    group = "targets"

    def valid(self, targets: Targets) -> Tensor:
        return ~targets.padding


class MatchedLogitLoss(LogitLoss):
    """Compares the object queries that are matched to the same object, layer by layer.

    This is the baseline that the paper argues against, because the matched queries attend to different places.

    Args:
        matcher: matches the queries of either model to the objects.
        weights: arguments of `LogitLoss`.
    """

    requires_objects = True

    def __init__(self, matcher: HungarianMatcher, **weights):
        super().__init__(**weights)
        self.matcher = matcher

    def normalizer(self, teacher: Outputs, targets: Targets) -> Tensor:
        """Return the sum of the weights of the teacher's matched queries, for each of its layers."""
        return self.weights(*self.gather(teacher.object_predictions, targets)).sum((1, 2))

    def forward(
        self, teacher: Outputs, student: Outputs, targets: Targets, normalizer: Tensor | None = None
    ) -> dict[str, Tensor]:
        if normalizer is None:
            normalizer = self.normalizer(teacher, targets)
        teacher_predictions, matched = self.gather(teacher.object_predictions, targets)
        student_predictions, also_matched = self.gather(student.object_predictions, targets)
        matched = matched[spread_indices(len(matched), len(also_matched))]
        return self.compare(teacher_predictions, student_predictions, matched & also_matched, normalizer)

    def gather(self, predictions: Predictions, targets: Targets) -> tuple[Predictions, Tensor]:
        """Return the matched predictions in the order of the objects, (E, B, n, ...), and which exist, (E, B, n).

        If there are more objects than queries, some objects have no prediction.
        """
        size = len(predictions.logits), *targets.padding.shape
        query_of = torch.full(size, -1, device=targets.padding.device)
        for layer, (image, query, target) in enumerate(self.matcher(predictions, targets)):
            query_of[layer, image, target] = query
        return gather_queries(predictions, query_of), query_of >= 0
