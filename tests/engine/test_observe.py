"""The attention that is drawn is what the modules compute."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_convert

from clockdistill.engine.observe import observe_object, record_attention
from clockdistill.layers import MultiScaleDeformableAttention
from clockdistill.modeling import Target
from clockdistill.modeling.dab_detr import CrossAttention
from helpers import models

SHAPES = torch.tensor([[4, 6], [2, 3]])


def deformable(heads, dims):
    layer = models.add_noise(MultiScaleDeformableAttention(8, heads, 2, 3), scale=0.3)
    generator = torch.Generator().manual_seed(1)
    arguments = (
        torch.randn(2, 5, 8, generator=generator),
        torch.randn(2, 30, 8, generator=generator),
        0.3 + 0.4 * torch.rand(2, 5, 2, dims, generator=generator),
        torch.zeros(2, 30, dtype=torch.bool),
        SHAPES,
        torch.tensor([0, 24]),
    )
    return layer, arguments


@pytest.mark.parametrize("dims", [2, 4])
@torch.no_grad()
def test_sampling_points_equal_the_papers(dims):
    layer, arguments = deformable(2, dims)
    query, _, reference, *_ = arguments
    points, weights, is_dense = layer.attended(*arguments)
    assert not is_dense
    torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(2, 5))
    offsets, logits = layer.sampling_offsets(query), layer.attention_weights(query)
    for b, q, head, level, k in torch.cartesian_prod(*map(torch.arange, (2, 5, 2, 2, 3))).tolist():
        place = (head * 2 + level) * 3 + k
        offset, anchor = offsets[b, q, 2 * place : 2 * place + 2], reference[b, q, level]
        height, width = SHAPES[level].tolist()
        reach = torch.tensor([1 / width, 1 / height]) if dims == 2 else anchor[2:] / 2 / 3
        torch.testing.assert_close(points[b, q, level, head * 3 + k], anchor[:2] + offset * reach)
        share = logits[b, q].view(2, 6)[head].softmax(0)[level * 3 + k]
        torch.testing.assert_close(weights[b, q, level, head * 3 + k], share / 2)


@torch.no_grad()
def test_deformable_output_is_the_weighted_sum_of_the_memory_at_the_points():
    layer, arguments = deformable(1, 4)
    points, weights, _ = layer.attended(*arguments)
    value, summed = layer.value_proj(arguments[1]), 0
    for level, tokens in enumerate(value.split([24, 6], 1)):
        grid = tokens.transpose(1, 2).unflatten(2, SHAPES[level].tolist())
        sampled = F.grid_sample(grid, 2 * points[:, :, level] - 1, align_corners=False)
        summed = summed + (sampled * weights[:, None, :, level]).sum(-1).transpose(1, 2)
    torch.testing.assert_close(layer.output_proj(summed), layer(*arguments))


@pytest.mark.parametrize("is_first", [True, False])
@torch.no_grad()
def test_dense_output_is_the_weighted_sum_of_the_values(is_first):
    detector = models.tiny("dab_detr").eval()
    images = [{"image": torch.rand(3, *size) * 255} for size in [(64, 96), (32, 64)]]
    memory = detector.encode(detector.preprocess(images))
    layer = CrossAttention(32, 1, is_first)
    arguments = torch.randn(2, 4, 32), torch.randn(2, 4, 32), torch.randn(2, 4, 32), memory
    points, weights, is_dense = layer.attended(*arguments)
    assert is_dense
    torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(2, 4))
    summed = weights[:, :, 0] @ layer.value_proj(memory.tokens)
    torch.testing.assert_close(layer.out_proj(summed), layer(*arguments))
    height, width = memory.spatial_shapes[0].tolist()
    cell = 1 * width + 2
    torch.testing.assert_close(points[1, 3, 0, cell], torch.tensor([2.5 / width, 1.5 / height]))


@pytest.mark.parametrize("variant", ["dino", "deformable_detr", "dab_detr"])
@torch.no_grad()
def test_view_is_that_of_the_query_with_the_largest_product_of_iou_and_score(variant):
    detector = models.tiny(variant).eval()
    inputs = {"image": torch.rand(3, 64, 96) * 255}
    target = Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.4, 0.6]]))
    view = observe_object(detector, inputs, target)
    memory = detector.encode(detector.preprocess([inputs]))
    with record_attention(detector) as layers:
        predictions = detector.decode(memory, detector.propose(memory))
    assert len(layers) == 2
    boxes = box_convert(predictions.boxes[-1, 0], "cxcywh", "xyxy")
    best = []
    for box, score in zip(boxes.tolist(), predictions.logits[-1, 0, :, 1].sigmoid().tolist(), strict=True):
        w, h = min(box[2], 0.7) - max(box[0], 0.3), min(box[3], 0.8) - max(box[1], 0.2)
        both = max(w, 0) * max(h, 0)
        best.append(score * both / (0.24 + (box[2] - box[0]) * (box[3] - box[1]) - both))
    query = best.index(max(best))
    torch.testing.assert_close(view.box, boxes[query])
    assert view.score == pytest.approx(predictions.logits[-1, 0, query, 1].sigmoid().item())
    torch.testing.assert_close(view.weights, layers[-1].weights[0, query].flatten())
    assert [list(level.shape) for level in view.memory_norms] == memory.spatial_shapes.tolist()
    assert view.memory_norms[0][0, 1].item() == pytest.approx(memory.tokens[0, 1].norm().item(), rel=1e-5)
