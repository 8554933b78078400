"""FitNets, FGD and MGD against their formulas. On several processes, see test_processes.py."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import LazyConfig, instantiate
from torch import nn

from clockdistill.distillation import FGDLoss, FitNetsLoss, MGDLoss
from clockdistill.errors import UserError
from clockdistill.seeding import STEP, seed_all
from families import CONFIGS, VARIANTS
from helpers.distillation import (
    SHAPES,
    VALID,
    losses_from_step,
    make_hook,
    make_memory,
    outputs_of,
    random_targets,
    save_teacher,
    weights_by_loop,
)
from helpers.models import add_noise, random_batch, tiny

METHODS = {name: LazyConfig.load(str(CONFIGS / "common/methods.py"))[name] for name in ("fitnets", "fgd", "mgd")}
SIZES = ((128, 192), (64, 96))
TARGETS = random_targets(3)


def make_losses():
    return {
        "fitnets": FitNetsLoss(0.1),
        "fgd": FGDLoss(0.1, 0.2, 0.3, 0.4, temperature=0.5),
        "mgd": MGDLoss(0.1, mask_ratio=0.5),
    }


def build(loss, levels, student=3, teacher=3):
    """Build the modules of a loss, with noise, for given widths of the models."""
    loss.level_scales = [1.0] * levels
    torch.manual_seed(0)
    loss.build(SimpleNamespace(embed_dim=teacher), SimpleNamespace(embed_dim=student))
    return add_noise(loss)


def crops(memory):
    """Yield the index of level and image, and the features (h, w, C) of each without padding."""
    for level, (x, shape) in enumerate(zip(memory.split(memory.features), SHAPES, strict=True)):
        for image, valid in enumerate(VALID):
            h, w = valid[level]
            yield level, image, x[image].unflatten(0, shape)[:h, :w]


def crop_pairs(loss, teacher, student):
    """Yield level, image, and the cells (h, w, C) of teacher and student, which is adapted."""
    for (level, image, t), (_, _, s) in zip(crops(teacher), crops(student), strict=True):
        yield level, image, t, loss.projection[level](s)


def memories(**kwargs):
    torch.manual_seed(1)
    return make_memory(SHAPES, VALID, 8, **kwargs), make_memory(SHAPES, VALID, 3, **kwargs)


def test_fitnets_is_half_the_squared_distance_without_padding():
    (teacher, student), loss = memories(), build(FitNetsLoss(0.1), 4, 3, 8)
    expected = sum(0.1 / 2 * (t - s).square().sum() / 3 for _, _, t, s in crop_pairs(loss, teacher, student))
    torch.testing.assert_close(loss(outputs_of(teacher), outputs_of(student), TARGETS)["hint"], expected)


def attention(x, temperature):
    """Eq. 5 to 8 for cells (n, C): spatial (n,) and channel (C,)."""
    n, channels = x.shape
    cells = [math.exp(sum(abs(v) for v in row) / channels / temperature) for row in x.tolist()]
    columns = [math.exp(sum(abs(v) for v in column) / n / temperature) for column in x.T.tolist()]
    spatial = [n * value / sum(cells) for value in cells]
    return torch.tensor(spatial), torch.tensor([channels * value / sum(columns) for value in columns])


def relation(x, block):
    """Eq. 13 for cells (n, C)."""
    first, norm, _, second = block.transform
    scores = torch.stack([block.score.weight[0] @ cell for cell in x]).exp()
    context = sum(score / scores.sum() * cell for score, cell in zip(scores, x, strict=True))
    hidden = first.weight @ context + first.bias
    hidden = (hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt() * norm.weight + norm.bias
    return x + second.weight @ hidden.clamp(min=0) + second.bias


def test_fgd_equals_its_formulas_on_images_without_padding():
    (teacher, student), loss = memories(), build(FGDLoss(0.1, 0.2, 0.3, 0.4, temperature=0.5), 4, 3, 8)
    losses = loss(outputs_of(teacher), outputs_of(student), TARGETS)
    weights = [teacher.split(weight) for weight in weights_by_loop(VALID, SHAPES, TARGETS)]
    expected = dict.fromkeys(("object", "background", "attention", "global"), 0.0)
    for level, image, t, s in crop_pairs(loss, teacher, student):
        h, w = t.shape[:2]
        objects, background = (x[level][image].unflatten(0, SHAPES[level])[:h, :w].flatten() for x in weights)
        t, s = t.flatten(0, 1), s.flatten(0, 1)
        (spatial, channel), (other_spatial, other_channel) = attention(t, 0.5), attention(s, 0.5)
        for k in range(8):
            distance = spatial * channel[k] * (t[:, k] - s[:, k]) ** 2
            expected["object"] += 0.1 * (objects * distance).sum() / 3
            expected["background"] += 0.2 * (background * distance).sum() / 3
        difference = (spatial - other_spatial).abs().sum() + (channel - other_channel).abs().sum()
        expected["attention"] += 0.3 * difference / 3
        difference = relation(t, loss.teacher_context[level]) - relation(s, loss.student_context[level])
        expected["global"] += 0.4 * difference.square().sum() / 3
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask_ratio", [0, 1])
def test_mgd_equals_its_formula_on_images_without_padding(mask_ratio):
    (teacher, student), loss = memories(), build(MGDLoss(0.1, mask_ratio), 4, 3, 8)
    expected = 0.0
    for level, _, t, s in crop_pairs(loss, teacher, student):
        conv1, conv2 = loss.generators[level].children()
        hidden = F.conv2d(s.permute(2, 0, 1) * (1 - mask_ratio), conv1.weight, conv1.bias, padding=1)
        generated = F.conv2d(hidden.clamp(min=0), conv2.weight, conv2.bias, padding=1)
        expected += 0.1 * (t.permute(2, 0, 1) - generated).square().sum() / 3
    torch.testing.assert_close(loss(outputs_of(teacher), outputs_of(student), TARGETS)["generation"], expected)


def test_mgd_masks_whole_cells_at_the_given_ratio():
    """The generator passes positive values on, so with a teacher of zeros the loss counts the cells that are left."""
    loss, (teacher, student) = build(MGDLoss(1.0, 0.65), 4), (make_memory(SHAPES, VALID) for _ in range(2))
    teacher.features.zero_()
    student.features.fill_(1)
    for generator in loss.generators:
        for conv in generator.children():
            nn.init.dirac_(conv.weight)
            nn.init.zeros_(conv.bias)
    kept = 3 * loss(outputs_of(teacher), outputs_of(student), TARGETS)["generation"].item() / 3
    assert kept == pytest.approx(round(kept), abs=1e-3)
    assert kept / (~teacher.padding_mask).sum() == pytest.approx(0.35, abs=0.08)


def test_mgds_mask_depends_on_seed_and_step_only():
    (teacher, student), loss = memories(), build(MGDLoss(0.1, 0.5), 4, 3, 8)
    values = []
    for step, drawn in ((7, 0), (7, 10), (8, 0)):
        torch.rand(drawn)
        seed_all(STEP, 0, 0, step)
        values.append(loss(outputs_of(teacher), outputs_of(student), TARGETS)["generation"].item())
    assert values[0] == values[1] != values[2]


def test_training_with_mgd_resumes_exactly(tmp_path):
    """The loss of a step is the same whether the steps before it ran or not."""
    teacher = save_teacher(tmp_path)
    through, resumed = (
        losses_from_step(first, teacher, {"mgd": build_method("mgd")}, "loss_mgd_generation") for first in (0, 1)
    )
    assert len(through) == 2
    assert through[1:] == resumed


@pytest.mark.parametrize("name", METHODS)
def test_gradcheck(name):
    torch.manual_seed(2)
    valid = [image[2:] for image in VALID]
    student, teacher = (make_memory(SHAPES[2:], valid, width, dtype=torch.float64) for width in (3, 8))
    loss = build(make_losses()[name], 2, 3, 8).double()
    inputs = [student.features.requires_grad_(), *loss.parameters()]

    def total(*_):
        torch.manual_seed(0)
        return sum(loss(outputs_of(teacher), outputs_of(student), TARGETS).values())

    assert torch.autograd.gradcheck(total, inputs, fast_mode=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_which_terms_are_zero_if_the_maps_are_equal(variant):
    model, batch = add_noise(tiny(variant)).eval(), random_batch(sizes=SIZES)
    with torch.no_grad():
        outputs = outputs_of(model.encode(model.preprocess(batch)))
        zero = {}
        for name, loss in make_losses().items():
            loss.level_scales = [1.0] * len(model.strides)
            loss.build(model, model)
            terms = loss(outputs, outputs, model.targets(batch))
            zero |= {f"{name}_{term}": value == 0 for term, value in terms.items()}
            if name == "fgd":
                trained = add_noise(loss)(outputs, outputs, model.targets(batch))
                assert [term for term, value in trained.items() if value > 0] == ["global"]
    assert [name for name, is_zero in zero.items() if not is_zero] == ["mgd_generation"]


def build_method(name):
    (loss,) = METHODS[name].values()
    return instantiate(loss)


@pytest.mark.parametrize("feature", ["backbone", "memory"])
@pytest.mark.parametrize(
    ("teacher", "student", "pairing"),
    [
        ("dino", "dino", "stride"),
        ("deformable_detr", "dab_detr.dc5", "stride"),
        ("dino", "dab_detr", "order"),
        ("dab_detr", "deformable_detr.two_stage", "stride"),
    ],
)
def test_gradients_reach_student_and_modules(tmp_path, teacher, student, pairing, feature):
    """For any families, widths and levels, also those of different shapes."""
    losses = {name: build_method(name) for name in METHODS}
    for loss in losses.values():
        loss.feature = feature
    student = tiny(student)
    hook = make_hook(student, save_teacher(tmp_path, teacher, embed_dim=64), losses, level_pairing=pairing)
    add_noise(hook.modules)
    torch.manual_seed(0)
    losses = hook.compute_losses(student, random_batch(sizes=SIZES, counts=(3, 0)))
    assert all(value.isfinite() for value in losses.values())
    sum(value for name, value in losses.items() if name.startswith(("loss_fitnets", "loss_fgd", "loss_mgd"))).backward()
    parameters = dict(hook.modules.named_parameters())
    assert [name for name, p in parameters.items() if p.grad is None or not p.grad.any()] == []
    assert all(student.neck.convs[level][0].weight.grad.any() for level in hook.student_levels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_near_full_precision(dtype):
    values = []
    for enabled in (False, True):
        models = memories()
        for memory in models:
            # the squares of these overflow in float16
            memory.features = (memory.features * 100).to(dtype if enabled else torch.float32)
        losses = [build(loss, 4, 3, 8) for loss in (FitNetsLoss(1), FGDLoss(1, 1, 1, 1, 500), MGDLoss(1, 0.5))]
        with torch.autocast("cpu", dtype, enabled=enabled):
            torch.manual_seed(0)
            results = [loss(*map(outputs_of, models), TARGETS) for loss in losses]
        values.append({term: value for terms in results for term, value in terms.items()})
    assert all(value.dtype == torch.float32 for value in values[1].values())
    for term, value in values[0].items():
        assert values[1][term].item() == pytest.approx(value.item(), rel=0.05), term


@pytest.mark.parametrize(
    "make",
    [lambda: FitNetsLoss(-1), lambda: FGDLoss(1, 1, 1, 1, temperature=0), lambda: MGDLoss(1, mask_ratio=1.5)],
)
def test_wrong_constants_are_refused(make):
    with pytest.raises(UserError):
        make()
