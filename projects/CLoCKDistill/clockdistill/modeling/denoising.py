"""Contrastive denoising (DINO, arXiv:2203.03605, Sec. 3.3)."""

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..checks import checked, count, fraction, not_negative
from .structures import Queries, Targets


class ContrastiveDenoising(nn.Module):
    """Queries made from noisy ground truth: positive ones to be restored, negative ones to be classified as background.

    A query attends to its own group and to the object queries. Unlike in the reference implementation, no query attends
    to the padded slots of an image with fewer objects than the largest of its batch.

    Args:
        num_queries: number of (positive, negative) pairs per image, divided into as many groups as fit.
        label_noise: half of this fraction of the labels is replaced at random.
        box_noise: positive boxes have their corners moved by up to this many half extents of the box, negative ones by
            once to twice as much.
    """

    @checked(num_classes=count, embed_dim=count, num_queries=count, label_noise=fraction, box_noise=not_negative)
    def __init__(self, num_classes: int, embed_dim: int, num_queries: int, label_noise: float, box_noise: float):
        super().__init__()
        self.label_embedding = nn.Embedding(num_classes, embed_dim)
        self.num_queries = num_queries
        self.label_noise = label_noise
        self.box_noise = box_noise

    def forward(self, targets: Targets) -> tuple[Queries, tuple[Tensor, Tensor, Tensor], int]:
        """
        Returns:
            queries: groups of n positive and n negative queries, n being the largest number of objects per image.
            matches: image, query and target indices of all positive queries.
            num_groups: number of positive queries per object.
        """
        labels, boxes, padding = targets.labels, targets.boxes, targets.padding
        B, n = labels.shape
        num_groups = max(1, self.num_queries // n)
        slots = (B, num_groups, 2, n)
        target_index = torch.arange(n, device=labels.device).expand(slots)
        labels = labels[:, None, None].expand(slots)
        padding = padding[:, None, None].expand(slots)

        replaced = torch.rand(slots, device=labels.device) < self.label_noise * 0.5
        noisy_labels = torch.where(replaced, torch.randint_like(labels, self.label_embedding.num_embeddings), labels)
        noisy_boxes = self.add_box_noise(boxes[:, None, None].expand(*slots, 4))
        positive = torch.zeros(slots, dtype=torch.bool, device=labels.device)
        positive[:, :, 0] = True

        group = torch.arange(num_groups, device=labels.device).repeat_interleave(2 * n)
        queries = Queries(
            content=self.label_embedding(noisy_labels).flatten(1, 3),
            reference=noisy_boxes.flatten(1, 3),
            blocked=group[:, None] != group,
            padding=padding.flatten(1),
            attends_to_objects=True,
        )
        image, query = (positive & ~padding).flatten(1).nonzero(as_tuple=True)
        return queries, (image, query, target_index.flatten(1)[image, query]), num_groups

    def add_box_noise(self, boxes: Tensor) -> Tensor:
        """Add noise to boxes (B, groups, 2, n, 4) as (cx, cy, w, h): positive in [:, :, 0], negative in [:, :, 1]."""
        corners = box_convert(boxes, "cxcywh", "xyxy")
        distance = torch.rand_like(corners)
        distance[:, :, 1] += 1
        sign = torch.randint_like(corners, 2) * 2 - 1
        corners = corners + sign * distance * boxes[..., 2:].repeat(1, 1, 1, 1, 2) * (0.5 * self.box_noise)
        # corners of negative boxes may be swapped
        return box_convert(corners.clamp(0, 1), "xyxy", "cxcywh").clamp(min=1e-3)
