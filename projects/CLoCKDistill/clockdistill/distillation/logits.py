"""Target-aware consistent logit distillation (arXiv:2502.10683, Sec. 3.3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import giou_loss
from ..modeling import HungarianMatcher, Outputs, Predictions, Queries, Target
from ..modeling.criterion import average_over_ranks
from ..modeling.structures import pad_targets
from .base import DistillationLoss, at_least_float32


def target_queries(targets: list[Target], content: Tensor, box_encoder: nn.Module | None = None) -> Queries:
    """One query an object: its class's row of `content` (num_classes, C), its box as the reference.

    Args:
        box_encoder: from boxes (B, Q, 4) to positions (B, Q, C), for detectors whose decoder makes none of them.
    """
    labels, boxes, padding = pad_targets(targets)
    position = None if box_encoder is None else box_encoder(boxes)
    return Queries(content[labels], boxes, padding=padding, position=position)


def bernoulli_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of independent sigmoids, times the squared temperature; of logits, elementwise."""
    teacher, student = teacher / temperature, student / temperature
    positive = F.logsigmoid(teacher) - F.logsigmoid(student)
    negative = F.logsigmoid(-teacher) - F.logsigmoid(-student)
    p = teacher.sigmoid()
    return (p * positive + (1 - p) * negative) * temperature**2


def spread_layers(predictions: Predictions, num_layers: int) -> Predictions:
    """As many of the layers as wanted, evenly spread, the last one last."""
    available = len(predictions.logits)
    index = [math.ceil((layer + 1) * available / num_layers) - 1 for layer in range(num_layers)]
    return Predictions(predictions.logits[index], predictions.boxes[index])


class LogitLoss(DistillationLoss):
    """How far the student's classes and boxes are from the teacher's, for the same queries, on every decoder layer.

    Args:
        class_weight, l1_weight, giou_weight: lambda_cls, lambda_L1, lambda_GIoU.
        temperature: of the sigmoids in the divergence.
        confidence: weigh every query by the teacher's highest class score; else all alike.
    """

    name = "logit"

    def __init__(
        self,
        class_weight: float,
        l1_weight: float,
        giou_weight: float,
        temperature: float = 1.0,
        confidence: bool = True,
    ):
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.temperature = temperature
        self.confidence = confidence

    def compare(self, teacher: Predictions, student: Predictions, valid: Tensor) -> dict[str, Tensor]:
        """
        Args:
            teacher, student: answers to the same queries; the teacher's of any number of layers.
            valid: (B, Q) or (E, B, Q), False on queries that carry no loss.
        """
        teacher = spread_layers(teacher, len(student.logits))
        teacher, student = (Predictions(*map(at_least_float32, p)) for p in (teacher, student))
        weight = teacher.logits.sigmoid().amax(-1) if self.confidence else torch.ones_like(teacher.logits[..., 0])
        weight = weight * valid
        normalizer = average_over_ranks(weight.sum((1, 2))).clamp(min=1e-6)[:, None, None]
        weight = weight / normalizer
        divergence = bernoulli_kl(teacher.logits, student.logits, self.temperature).sum(-1)
        l1 = (teacher.boxes - student.boxes).abs().sum(-1)
        return {
            f"loss_{self.name}_class": self.class_weight * (weight * divergence).sum(),
            f"loss_{self.name}_bbox": self.l1_weight * (weight * l1).sum(),
            f"loss_{self.name}_giou": self.giou_weight * (weight * giou_loss(student.boxes, teacher.boxes)).sum(),
        }


class TargetAwareLogitLoss(LogitLoss):
    """Of queries made from the ground truth, so that both decoders read the same part of their memories."""

    asks_targets = True

    def __call__(self, teacher: Outputs, student: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        _, _, padding = pad_targets(targets)
        return self.compare(teacher.extra, student.extra, ~padding)


class MatchedLogitLoss(LogitLoss):
    """Of the object queries that a matcher assigns to the same objects, layer by layer: the rival that the paper
    argues against, since the two sets of queries look at different places.

    Args:
        matcher: assigns the queries of either model to the objects.
        weights: as in `LogitLoss`.
    """

    name = "matched"
    asks_objects = True

    def __init__(self, matcher: HungarianMatcher, **weights):
        super().__init__(**weights)
        self.matcher = matcher

    def __call__(self, teacher: Outputs, student: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        _, _, padding = pad_targets(targets)
        theirs, matched = self.gather(spread_layers(teacher.objects, len(student.objects.logits)), targets, padding)
        ours, also_matched = self.gather(student.objects, targets, padding)
        return self.compare(theirs, ours, matched & also_matched)

    def gather(self, predictions: Predictions, targets: list[Target], padding: Tensor) -> tuple[Predictions, Tensor]:
        """Predictions in the order of the objects: (E, B, n, ...); and (E, B, n), whether an object has one.

        With more objects than queries some have none.
        """
        query_of = torch.full((len(predictions.logits), *padding.shape), -1, device=padding.device)
        for layer, (image, query, target) in enumerate(self.matcher(predictions, targets)):
            query_of[layer, image, target] = query
        index = query_of.clamp(min=0)[..., None]
        gathered = Predictions(*(x.gather(2, index.expand(-1, -1, -1, x.shape[-1])) for x in predictions))
        return gathered, query_of >= 0
