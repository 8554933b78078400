import itertools
import math

import pytest
import torch
from torch import nn
from torchvision.ops import box_convert, generalized_box_iou

from clockdistill.errors import UserError
from clockdistill.layers import (
    MultiScaleDeformableAttention,
    PositionEmbeddingSine,
    at_least_float32,
    giou_loss,
    inverse_sigmoid,
    sine_embed_boxes,
)


def test_attention_ignores_padding():
    layer = MultiScaleDeformableAttention(16, 4, 2, 2)
    shapes, starts = torch.tensor([[4, 4], [2, 2]]), torch.tensor([0, 16])
    query, value = torch.randn(1, 3, 16), torch.randn(1, 20, 16)
    reference = torch.rand(1, 3, 2, 4)
    padding = torch.zeros(1, 20, dtype=torch.bool)
    padding[:, 12:] = True
    disturbed = value + 100 * padding[..., None]
    outputs = [layer(query, v, reference, padding, shapes, starts) for v in (value, disturbed)]
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("dims", [2, 4])
def test_sampling_locations_follow_the_formula(dims):
    """Points move by offsets in cells, boxes by offsets in halves of their size (arXiv:2010.04159, Sec. A.4)."""
    heads, levels, points = 2, 3, 4
    layer = MultiScaleDeformableAttention(8, heads, levels, points)
    nn.init.normal_(layer.sampling_offsets.weight)
    shapes = torch.tensor([[8, 5], [4, 3], [2, 2]])
    query, reference = torch.randn(2, 3, 8), torch.rand(2, 3, levels, dims)
    locations, _ = layer.sample(query, reference, shapes)
    offsets = layer.sampling_offsets(query).view(2, 3, heads, levels, points, 2)
    for b, q, h, level, p in itertools.product(*map(range, offsets.shape[:-1])):
        offset, near = offsets[b, q, h, level, p], reference[b, q, level]
        move = offset / shapes[level].flip(0) if dims == 2 else offset / points * near[2:] / 2
        torch.testing.assert_close(locations[b, q, h, level, p], near[:2] + move)


def test_attention_rejects_embed_dim_not_divisible_by_heads():
    with pytest.raises(UserError, match="embed_dim 30 must be a multiple of num_heads 4"):
        MultiScaleDeformableAttention(30, 4, 1, 1)


@pytest.mark.parametrize(("temperature", "offset"), [(20, 0.0), (10000, -0.5)])
def test_position_embedding_follows_the_formula(temperature, offset):
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[:, 3:], mask[:, :, 5:] = True, True
    encoded = PositionEmbeddingSine(8, temperature, offset)(mask)
    y, x = 2, 4
    for channel in range(8):
        index, extent = (y, 3) if channel < 4 else (x, 5)
        k = channel % 4
        phase = (index + 1 + offset) / extent * 2 * math.pi / temperature ** (2 * (k // 2) / 4)
        expected = math.sin(phase) if k % 2 == 0 else math.cos(phase)
        assert encoded[0, channel, y, x].item() == pytest.approx(expected, abs=1e-4)


def test_box_embedding_is_ordered_y_x_w_h():
    encoded = sine_embed_boxes(torch.tensor([[0.1, 0.2, 0.3, 0.4]]), 4)[0]
    first = encoded.view(4, 4)[:, 0]
    torch.testing.assert_close(first, torch.sin(torch.tensor([0.2, 0.1, 0.3, 0.4]) * 2 * math.pi))


def test_inverse_sigmoid_inverts_sigmoid_and_is_finite():
    x = torch.linspace(0.01, 0.99, 9)
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    assert inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0])).isfinite().all()


def test_giou_loss_matches_torchvision_and_vanishes_for_small_equal_boxes():
    a, b = torch.rand(2, 5, 4, dtype=torch.float64) * 0.3 + 0.1
    pairwise = generalized_box_iou(box_convert(a, "cxcywh", "xyxy"), box_convert(b, "cxcywh", "xyxy")).diagonal()
    torch.testing.assert_close(giou_loss(a, b), 1 - pairwise)
    tiny = torch.tensor([[0.3, 0.4, 0.004, 0.006]])
    assert giou_loss(tiny, tiny).item() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_float32_keeps_float64(dtype):
    x = torch.ones(2, dtype=dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert at_least_float32(x).dtype == expected
