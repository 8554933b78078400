"""What a detector looks at: how strong its memory is, and where the query that finds an object attends."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from ..layers import Attended
from .detector import Detector
from .structures import Memory, Target


class View(NamedTuple):
    """How a detector sees an image and one of its objects, on the CPU; places are in [0, 1] of the image.

    Attributes:
        strength: a level's norms of its tokens, (H_l, W_l) each, padding left out.
        box: (4,), the query's final box, (x0, y0, x1, y1).
        score: of the object's class, in [0, 1].
        points: (P, 2), where the query attends in the decoder's last layer, (x, y), perhaps outside the image.
        weights: (P,), with a sum of at most one.
        grid: (height, width) where the points are the centres of so many cells, row by row; else None.
    """

    strength: list[Tensor]
    box: Tensor
    score: float
    points: Tensor
    weights: Tensor
    grid: tuple[int, int] | None


@torch.no_grad()
def view(detector: Detector, inputs: dict, target: Target) -> View:
    """How a detector in eval mode sees one image and one object.

    The query is the object query whose final box and score fit the object best: the one with the largest product of
    IoU and score of the object's class.

    Args:
        inputs: an image as the test loader gives it.
        target: the object, alone.
    """
    memory = detector.encode(detector.preprocess([inputs]))
    with observe_attention(detector) as layers:
        predictions = detector.decode(memory, detector.propose(memory))
    scores = predictions.logits[-1, 0, :, target.labels.item()].float().sigmoid().cpu()
    boxes = box_convert(predictions.boxes[-1, 0].float().cpu(), "cxcywh", "xyxy")
    overlap = box_iou(boxes, box_convert(target.boxes.float().cpu(), "cxcywh", "xyxy"))[:, 0]
    query = int((overlap * scores).argmax())
    return View(strength(memory, 0), boxes[query], float(scores[query]), *in_image(layers[-1], memory, 0, query))


@contextmanager
def observe_attention(detector: Detector) -> Iterator[list[Attended]]:
    """A list that fills with what the decoder's queries attend to in the memory, layer by layer, as it runs."""
    layers: list[Attended] = []

    def note(module, args, kwargs) -> None:
        layers.append(module.attended(*args, **kwargs))

    observed = [module for module in detector.decoder.modules() if hasattr(module, "attended")]
    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in observed]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def strength(memory: Memory, image: int) -> list[Tensor]:
    """Norms of an image's tokens, a map (H_l, W_l) a level, padding left out, on the CPU."""
    norms = torch.linalg.vector_norm(memory.tokens[image].float(), dim=-1).cpu()
    shapes = memory.spatial_shapes.tolist()
    levels = norms.split([height * width for height, width in shapes])
    valid = valid_shapes(memory, image)
    return [level.view(shape)[:height, :width] for level, shape, (height, width) in zip(levels, shapes, valid)]


def in_image(attended: Attended, memory: Memory, image: int, query: int) -> tuple[Tensor, Tensor, tuple | None]:
    """One query's points (P, 2) in [0, 1] of the image without padding, weights (P,) and grid, as in `View`."""
    points = attended.points[image, query].float() / memory.valid_ratios[image, :, None]
    points, weights = points.flatten(0, 1).cpu(), attended.weights[image, query].float().flatten().cpu()
    if not attended.is_dense:
        return points, weights, None
    inside = ~memory.padding_mask[image].cpu()
    return points[inside], weights[inside], valid_shapes(memory, image)[0]


def valid_shapes(memory: Memory, image: int) -> list[tuple[int, int]]:
    """Height and width of an image's levels without padding."""
    cells = (memory.valid_ratios[image].cpu() * memory.spatial_shapes.flip(-1)).round().int().flip(-1)
    return [tuple(shape) for shape in cells.tolist()]
