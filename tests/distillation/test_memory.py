import math

import pytest
import torch

from clockdistill.distillation import MemoryLoss, PlainFeatureLoss
from clockdistill.distillation.memory import location_and_scale_weights, resize_levels
from clockdistill.errors import UserError
from clockdistill.modeling import Target, Targets
from helpers.distillation import SHAPES, VALID, make_memory, outputs_of, places, random_targets, weights_by_loop
from helpers.models import VARIANTS, add_noise, random_batch, tiny


@pytest.mark.parametrize("seed", range(20))
def test_masks_equal_a_loop_over_cells(seed):
    targets = random_targets(seed)
    actual = location_and_scale_weights(make_memory(SHAPES, VALID), targets)
    expected = weights_by_loop(VALID, SHAPES, targets)
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1])


def test_padding_has_no_weight_and_a_single_box_a_total_of_one():
    memory = make_memory(SHAPES, VALID)
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3]])
    targets = Targets([Target(torch.zeros(1, dtype=torch.long), boxes)] * 3)
    objects, background = location_and_scale_weights(memory, targets)
    assert objects[memory.padding_mask].sum() == background[memory.padding_mask].sum() == 0
    for level in objects.split([h * w for h, w in SHAPES], 1):
        torch.testing.assert_close(level.sum(1), torch.ones(3))


def test_a_box_on_cell_borders_covers_only_its_own_cells():
    """In float32, 0.2 * 10 cells is a rounding error more than 2."""
    memory = make_memory([(10, 10)], [[(10, 10)]])
    targets = Targets([Target(torch.zeros(1, dtype=torch.long), torch.tensor([[0.15, 0.65, 0.1, 0.1]]))])
    objects, _ = location_and_scale_weights(memory, targets)
    assert objects.nonzero().tolist() == [[0, 61]]


def test_selected_levels_form_a_memory():
    memory = make_memory(SHAPES, VALID)
    memory.position = torch.randn_like(memory.tokens)
    some = memory.select([2, 0])
    first, last = slice(0, 240), slice(300, 315)
    for name in ("tokens", "features", "position", "padding_mask"):
        whole = getattr(memory, name)
        assert torch.equal(getattr(some, name), torch.cat((whole[:, last], whole[:, first]), 1))
    assert some.spatial_shapes.tolist() == [[3, 5], [12, 20]]
    assert some.level_start_index.tolist() == [0, 15]
    assert torch.equal(some.valid_ratios, memory.valid_ratios[:, [2, 0]])


def test_sizes_without_padding_are_whole_numbers():
    sizes = make_memory(SHAPES, VALID).unpadded_sizes()
    assert sizes.flip(-1).tolist() == [[list(size) for size in image] for image in VALID]


def test_loss_equals_a_loop():
    teacher, student = make_memory(SHAPES, VALID), make_memory(SHAPES, VALID)
    targets = random_targets(3)
    losses = MemoryLoss(alpha=0.3, beta=0.02)(outputs_of(teacher), outputs_of(student), targets)
    objects, background = weights_by_loop(VALID, SHAPES, targets)
    total_object = total_background = 0.0
    for b in range(3):
        for cell in range(objects.shape[1]):
            distance = ((teacher.tokens[b, cell] - student.tokens[b, cell]) ** 2).sum()
            total_object += 0.3 * objects[b, cell] * distance / 3
            total_background += 0.02 * background[b, cell] * distance / 3
    torch.testing.assert_close(losses["object"], total_object)
    torch.testing.assert_close(losses["background"], total_background)


def test_an_image_without_objects_has_only_the_background_term():
    teacher, student = make_memory(SHAPES, VALID[:1]), make_memory(SHAPES, VALID[:1])
    nothing = Targets([Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))])
    losses = MemoryLoss(1.0, 1.0)(outputs_of(teacher), outputs_of(student), nothing)
    assert losses["object"] == 0
    assert losses["background"] > 0


@pytest.mark.parametrize("loss", [MemoryLoss(0.1, 0.1), MemoryLoss(0.1, 0.1, "backbone"), PlainFeatureLoss(1.0)])
def test_gradcheck(loss):
    teacher = make_memory(SHAPES[2:], [v[2:] for v in VALID], dtype=torch.float64)
    student = make_memory(SHAPES[2:], [v[2:] for v in VALID], dtype=torch.float64)
    tokens = loss.maps(outputs_of(student)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda _: sum(loss(outputs_of(teacher), outputs_of(student), random_targets(0)).values()), tokens
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_zero_if_student_and_teacher_are_equal(variant):
    model = add_noise(tiny(variant)).eval()
    batch = random_batch()
    outputs = outputs_of(model.encode(model.preprocess(batch)))
    for loss in (MemoryLoss(1.0, 1.0), PlainFeatureLoss(1.0)):
        assert all(value == 0 for value in loss(outputs, outputs, model.targets(batch)).values())


def test_half_precision_does_not_overflow():
    teacher, student = (make_memory(SHAPES, VALID, dtype=torch.float16) for _ in range(2))
    teacher.tokens += 300
    losses = MemoryLoss(1.0, 1.0)(outputs_of(teacher), outputs_of(student), random_targets(0))
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())


@pytest.mark.parametrize(("feature", "attribute"), [("memory", "tokens"), ("backbone", "features")])
def test_plain_loss_is_the_mean_over_valid_cells(feature, attribute):
    teacher, student = make_memory(SHAPES, VALID), make_memory(SHAPES, VALID)
    loss = PlainFeatureLoss(1.0, feature)(outputs_of(teacher), outputs_of(student), random_targets(0))["mse"]
    difference = getattr(teacher, attribute) - getattr(student, attribute)
    torch.testing.assert_close(loss, difference[~teacher.padding_mask].square().mean())


@pytest.mark.parametrize(
    ("student", "teacher", "strides"),
    [
        ((12, 25), (12, 25), (8, 8)),
        ((12, 25), (16, 32), (8, 8)),
        ((16, 32), (12, 25), (8, 8)),
        ((13, 7), (25, 13), (16, 8)),
        ((25, 13), (13, 7), (8, 16)),
        ((32, 16), (13, 7), (8, 16)),
    ],
)
def test_resized_levels_keep_their_places(student, teacher, strides):
    """Each cell has its center as value: resizing must not move it, however the two models pad."""
    source, target = torch.tensor([student, student]), torch.tensor([teacher, teacher])
    tokens = places(student, strides[0]).repeat(2, 1)[None]
    resized = resize_levels(tokens, source, target, [strides[0] / strides[1]] * 2)
    expected = places(teacher, strides[1]).repeat(2, 1)
    # beyond the student's map, and half a cell from its borders, there is nothing to interpolate
    last = torch.tensor([student[1], student[0]]) * strides[0] - max(strides) / 2
    inside = ((expected >= max(strides) / 2) & (expected <= last)).all(1)
    assert inside.sum() >= 2 * 0.7 * min(math.prod(student), math.prod(teacher)) / max(strides) * 8
    torch.testing.assert_close(resized[0, inside], expected[inside])


def test_unknown_feature_is_refused():
    with pytest.raises(UserError, match="choose memory or backbone"):
        MemoryLoss(1.0, 1.0, "neck")
