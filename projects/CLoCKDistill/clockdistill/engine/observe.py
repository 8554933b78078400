"""What a detector looks at: the norms of its memory, and what the query for an object attends to."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from ..evaluation.pictures import ObjectView
from ..layers import Attended
from ..modeling import Detector, Memory, Target


@torch.no_grad()
def observe_object(detector: Detector, inputs: dict, target: Target) -> ObjectView:
    """Observe how a detector in eval mode sees an image and one of its objects.

    The view is that of the object query with the largest product of IoU and score for the object's class.

    Args:
        inputs: an image in the format of the test loader.
        target: a single object.
    """
    memory = detector.encode(detector.preprocess([inputs]))
    with record_attention(detector) as layers:
        predictions = detector.decode(memory, detector.propose(memory))
    scores = predictions.logits[-1, 0, :, target.labels.item()].float().sigmoid().cpu()
    boxes = box_convert(predictions.boxes[-1, 0].float().cpu(), "cxcywh", "xyxy")
    overlaps = box_iou(boxes, box_convert(target.boxes.float().cpu(), "cxcywh", "xyxy"))[:, 0]
    query = int((overlaps * scores).argmax())
    norms = torch.linalg.vector_norm(memory.tokens[0].float(), dim=-1)
    return ObjectView(
        split_levels(norms, memory), boxes[query], float(scores[query]), *query_attention(layers[-1], memory, query)
    )


@contextmanager
def record_attention(detector: Detector) -> Iterator[list[Attended]]:
    """Record what the decoder's queries attend to, layer by layer, in the list that the context manager returns."""
    layers: list[Attended] = []

    def record(module, args, kwargs) -> None:
        layers.append(module.attended(*args, **kwargs))

    modules = [module for module in detector.decoder.modules() if hasattr(module, "attended")]
    handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def split_levels(values: Tensor, memory: Memory) -> list[Tensor]:
    """Split values (N,) of the first image's tokens into maps (H_l, W_l) without padding, on the CPU."""
    shapes = memory.spatial_shapes.tolist()
    levels = values.cpu().split([height * width for height, width in shapes])
    unpadded = unpadded_shapes(memory)
    return [level.view(shape)[:height, :width] for level, shape, (height, width) in zip(levels, shapes, unpadded)]


def query_attention(attended: Attended, memory: Memory, query: int) -> tuple[Tensor, Tensor, tuple[int, int] | None]:
    """Return points, weights and grid size of a query on the first image, as in `ObjectView`."""
    points = attended.points[0, query].float() / memory.valid_ratios[0, :, None]
    points, weights = points.flatten(0, 1).cpu(), attended.weights[0, query].float().flatten().cpu()
    if not attended.is_dense:
        return points, weights, None
    inside = ~memory.padding_mask[0].cpu()
    return points[inside], weights[inside], unpadded_shapes(memory)[0]


def unpadded_shapes(memory: Memory) -> list[tuple[int, int]]:
    """Height and width of the first image's levels without padding."""
    return [(height, width) for width, height in memory.unpadded_sizes()[0].int().tolist()]
