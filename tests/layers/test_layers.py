import math

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from clockdistill.errors import UserError
from clockdistill.layers import (
    MultiScaleDeformableAttention,
    PositionEmbeddingSine,
    giou_loss,
    inverse_sigmoid,
    ms_deform_attn,
    sine_embed_boxes,
)


def bilinear(level, x, y):
    """level (H, W, D) at (x, y) in units of the level, cell centres at half-integers, zero outside."""
    height, width, depth = level.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = level.new_zeros(depth)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total = total + level[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def test_ms_deform_attn_equals_a_loop_over_points():
    B, heads, D, Q, points = 2, 2, 3, 4, 2
    shapes = torch.tensor([[5, 7], [3, 4], [1, 1]])
    starts = torch.tensor([0, 35, 47])
    value = torch.randn(B, 48, heads, D, dtype=torch.float64)
    locations = torch.rand(B, Q, heads, len(shapes), points, 2, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(B, Q, heads, len(shapes), points, dtype=torch.float64)
    expected = torch.zeros(B, Q, heads, D, dtype=torch.float64)
    for b in range(B):
        for q in range(Q):
            for h in range(heads):
                for level, (height, width) in enumerate(shapes.tolist()):
                    cells = value[b, starts[level] : starts[level] + height * width, h].view(height, width, D)
                    for p in range(points):
                        x, y = locations[b, q, h, level, p].tolist()
                        expected[b, q, h] += weights[b, q, h, level, p] * bilinear(cells, x, y)
    actual = ms_deform_attn(value, shapes, starts, locations, weights)
    torch.testing.assert_close(actual, expected.flatten(2))


def test_ms_deform_attn_gradients():
    shapes, starts = torch.tensor([[3, 2], [1, 2]]), torch.tensor([0, 6])
    value = torch.randn(1, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    locations = (torch.rand(1, 2, 2, 2, 2, 2, dtype=torch.float64) * 1.2 - 0.1).requires_grad_()
    weights = torch.rand(1, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn(v, shapes, starts, x, w), (value, locations, weights)
    )


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_ms_deform_attn_in_half_precision_on_a_wide_map(dtype, precision):
    """Locations stay in float32: in bfloat16 they would be a third of a cell off at this width."""
    shapes, starts = torch.tensor([[4, 167]]), torch.tensor([0])
    value = torch.randn(1, 4 * 167, 2, 4, dtype=torch.float64)
    locations = torch.rand(1, 50, 2, 1, 3, 2, dtype=torch.float64)
    weights = torch.rand(1, 50, 2, 1, 3, dtype=torch.float64)
    expected = ms_deform_attn(value.to(dtype).double(), shapes, starts, locations, weights.to(dtype).double())
    actual = ms_deform_attn(value.to(dtype), shapes, starts, locations.float(), weights.to(dtype))
    assert actual.dtype == dtype
    assert (actual.double() - expected).abs().max() <= precision * expected.abs().max()


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


def test_attention_needs_heads_that_divide_the_width():
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


def test_box_embedding_is_in_the_order_y_x_w_h():
    encoded = sine_embed_boxes(torch.tensor([[0.1, 0.2, 0.3, 0.4]]), 4)[0]
    first = encoded.view(4, 4)[:, 0]
    torch.testing.assert_close(first, torch.sin(torch.tensor([0.2, 0.1, 0.3, 0.4]) * 2 * math.pi))


def test_inverse_sigmoid_inverts_and_is_finite():
    x = torch.linspace(0.01, 0.99, 9)
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    assert inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0])).isfinite().all()


def test_giou_loss_equals_the_pairwise_form_and_is_zero_for_small_equal_boxes():
    a, b = torch.rand(2, 5, 4, dtype=torch.float64) * 0.3 + 0.1
    pairwise = generalized_box_iou(box_convert(a, "cxcywh", "xyxy"), box_convert(b, "cxcywh", "xyxy")).diagonal()
    torch.testing.assert_close(giou_loss(a, b), 1 - pairwise)
    tiny = torch.tensor([[0.3, 0.4, 0.004, 0.006]])
    assert giou_loss(tiny, tiny).item() < 1e-6
