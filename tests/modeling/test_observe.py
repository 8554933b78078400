"""What a query attends to, against the attention itself."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import box_convert, box_iou

from clockdistill.layers import MultiScaleDeformableAttention
from clockdistill.modeling.observe import observe_attention, view
from tiny import VARIANTS, random_batch, roughen, tiny

variants = pytest.mark.parametrize("variant", VARIANTS)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_sampling_points_are_those_of_the_paper(coordinates):
    """Deformable DETR, Eq. 3 and Sec. A.4: points lie an offset, in cells or shares of the box, from it."""
    module = MultiScaleDeformableAttention(8, 2, 2, 3)
    torch.nn.init.normal_(module.sampling_offsets.weight)
    torch.nn.init.normal_(module.attention_weights.weight)
    query, reference, shapes = torch.randn(1, 4, 8), torch.rand(1, 4, 2, coordinates), torch.tensor([[3, 5], [2, 2]])
    attended = module.attended(query, None, reference, None, shapes, None)
    offsets = module.sampling_offsets(query).view(4, 2, 2, 3, 2)
    for q in range(4):
        for level in range(2):
            points = []
            for head in range(2):
                for offset in offsets[q, head, level]:
                    around = reference[0, q, level]
                    extent = 1 / shapes[level].flip(0) if coordinates == 2 else around[2:] / 2 / 3
                    points.append(around[:2] + offset * extent)
            assert_close(attended.points[0, q, level], torch.stack(points))
    assert_close(attended.weights.sum((2, 3)), torch.ones(1, 4))


@variants
def test_a_layer_attends_where_it_says(variant):
    """Weights sum to one, and dense ones are at the centres of cells that are no padding."""
    model = roughen(tiny(variant)).eval()
    memory = model.encode(model.preprocess(random_batch()))
    with torch.no_grad(), observe_attention(model) as layers:
        model.decode(memory, model.propose(memory))
    assert len(layers) == len(model.decoder.layers)
    for attended in layers:
        assert_close(attended.weights.sum((2, 3)), torch.ones(attended.weights.shape[:2]))
        if attended.is_dense:
            on_padding = memory.padding_mask[:, None].expand(attended.weights[:, :, 0].shape)
            assert not attended.weights[:, :, 0][on_padding].any()
            height, width = memory.spatial_shapes[0].tolist()
            cell = attended.points[0, 0, 0] * torch.tensor([width, height])
            assert cell[width + 2].tolist() == [2.5, 1.5]
    with torch.no_grad():
        model.decode(memory, model.propose(memory))
    assert len(layers) == len(model.decoder.layers)  # nobody listens any more


@variants
def test_the_query_that_is_shown_finds_the_object(variant):
    model = roughen(tiny(variant)).eval()
    inputs = random_batch(counts=(1, 0))[0]
    target = model.targets([inputs])[0]
    seen = view(model, inputs, target)
    with torch.no_grad():
        memory = model.encode(model.preprocess([inputs]))
        predictions = model.decode(memory, model.propose(memory))
    scores = predictions.logits[-1, 0, :, target.labels[0]].sigmoid()
    boxes = box_convert(predictions.boxes[-1, 0], "cxcywh", "xyxy")
    fits = [
        box_iou(box[None], box_convert(target.boxes, "cxcywh", "xyxy")).item() * score.item()
        for box, score in zip(boxes, scores, strict=True)
    ]
    best = max(range(len(fits)), key=fits.__getitem__)
    assert_close(seen.box, boxes[best])
    assert seen.score == pytest.approx(scores[best].item())
    assert [tuple(level.shape) for level in seen.strength] == [tuple(s) for s in memory.spatial_shapes.tolist()]
    height, width = memory.spatial_shapes[-1].tolist()
    assert seen.strength[-1][-1, -1].item() == pytest.approx(memory.tokens[0, -1].norm().item(), rel=1e-5)
    assert seen.strength[-1].shape == (height, width)
