"""Detection losses of the DETR family: focal classification, L1 and GIoU, on every decoder layer."""

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor
from torchvision.ops import box_convert, sigmoid_focal_loss

from ..layers import giou_loss
from .matcher import HungarianMatcher
from .structures import Predictions, Target, pad_targets


def average_over_ranks(total: Tensor) -> Tensor:
    """Mean of a scalar over all processes, so that each may normalise as if it held the joint batch."""
    world = comm.get_world_size()
    if world > 1:
        total = total.clone()
        torch.distributed.all_reduce(total)
    return total / world


class SetCriterion:
    """Losses of a set of predictions against a set of objects, each summed and divided by the number of objects.

    Args:
        matcher: assigns predictions to objects where no assignment is given.
        class_weight, l1_weight, giou_weight: weights of the three losses.
        alpha, gamma: of the focal loss (arXiv:1708.02002).
        ignore_overlap: a prediction without an object has no loss for a class where more than this share of its area
            lies in one region ignored for that class. By such a share COCO's evaluation tells what lies on a crowd
            (from IoU 0.5 on), and KITTI's development kit what lies on DontCare (0.5, of cars 0.7).
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        class_weight: float,
        l1_weight: float,
        giou_weight: float,
        alpha: float = 0.25,
        gamma: float = 2.0,
        ignore_overlap: float = 0.5,
    ):
        self.matcher = matcher
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.alpha = alpha
        self.gamma = gamma
        self.ignore_overlap = ignore_overlap

    def num_objects(self, targets: list[Target]) -> Tensor:
        """Objects a rank, averaged over ranks and at least 1."""
        count = sum(len(t.labels) for t in targets)
        return average_over_ranks(targets[0].boxes.new_tensor(float(count))).clamp(min=1)

    def __call__(
        self,
        predictions: Predictions,
        targets: list[Target],
        suffix: str = "",
        matches: tuple[Tensor, Tensor, Tensor] | None = None,
        padding: Tensor | None = None,
        repeats: int = 1,
    ) -> dict[str, Tensor]:
        """
        Args:
            suffix: appended to the names; auxiliary layers are numbered after it.
            matches: indices of image, query and target for all layers alike; by default the matcher's, layer by layer.
            padding: (B, Q), True on queries without a loss.
            repeats: how often every object is asked for.

        Returns:
            `loss_class`, `loss_bbox`, `loss_giou` of the last layer, and with `_0`, `_1`, … of those before it.
        """
        layers = len(predictions.logits)
        per_layer = self.matcher(predictions, targets) if matches is None else [matches] * layers
        normalizer = self.num_objects(targets) * repeats
        losses = {}
        for layer, (logits, boxes) in enumerate(zip(*predictions, strict=True)):
            name = suffix if layer == layers - 1 else f"{suffix}_{layer}"
            layer_losses = self.layer_losses(logits.float(), boxes.float(), targets, per_layer[layer], padding)
            losses.update({f"{key}{name}": value / normalizer for key, value in layer_losses.items()})
        return losses

    def layer_losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: list[Target],
        matches: tuple[Tensor, Tensor, Tensor],
        padding: Tensor | None,
    ) -> dict[str, Tensor]:
        image, query, target = matches
        first = torch.tensor([0] + [len(t.labels) for t in targets[:-1]], device=logits.device).cumsum(0)
        matched_labels = torch.cat([t.labels for t in targets])[first[image] + target]
        matched_boxes = torch.cat([t.boxes for t in targets])[first[image] + target]

        one_hot = torch.zeros_like(logits)
        one_hot[image, query] = F.one_hot(matched_labels, logits.shape[-1]).to(logits)
        class_loss = sigmoid_focal_loss(logits, one_hot, self.alpha, self.gamma)
        if padding is not None:
            class_loss = class_loss.masked_fill(padding[..., None], 0)
        ignored = self.in_ignored_regions(boxes.detach(), targets, logits.shape[-1])
        if ignored is not None:
            ignored[image, query] = False
            class_loss = class_loss.masked_fill(ignored, 0)
        predicted = boxes[image, query]
        return {
            "loss_class": self.class_weight * class_loss.sum(),
            "loss_bbox": self.l1_weight * (predicted - matched_boxes).abs().sum(),
            "loss_giou": self.giou_weight * giou_loss(predicted, matched_boxes).sum(),
        }

    def in_ignored_regions(self, boxes: Tensor, targets: list[Target], num_classes: int) -> Tensor | None:
        """(B, Q, K), True where a box of (B, Q, 4) lies in a region ignored for the class; None without regions."""
        nothing = Target(targets[0].labels[:0], targets[0].boxes[:0])
        regions = [nothing if target.ignored is None else target.ignored for target in targets]
        if not any(len(region.labels) for region in regions):
            return None
        labels, regions, padding = pad_targets(regions)
        # detections are clipped to the image before they are evaluated
        boxes, regions = (box_convert(b, "cxcywh", "xyxy").clamp(0, 1)[:, :, None] for b in (boxes, regions))
        regions = regions.transpose(1, 2)
        low, high = torch.maximum(boxes[..., :2], regions[..., :2]), torch.minimum(boxes[..., 2:], regions[..., 2:])
        area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
        covered = (high - low).clamp(min=0).prod(-1) > self.ignore_overlap * area
        of_class = F.one_hot(labels, num_classes).masked_fill(padding[..., None], 0)
        return covered.float() @ of_class.float() > 0
