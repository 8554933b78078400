from functools import partial

import pytest
import torch
from detectron2.config import instantiate

from clockdistill.distillation import MemoryLoss, TargetAwareLogitLoss
from clockdistill.distillation.teacher import pair_levels
from clockdistill.engine import load_config
from clockdistill.errors import UserError
from families import coco_config
from helpers.distillation import CROSS, VARIANTS, WEIGHTS, make_hook, places, save_teacher, weights_by_loop
from helpers.models import add_noise, random_batch, shrink, tiny, tiny_config

# families with a light student
LIGHT = ["dino", "deformable_detr"]


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        ([8, 16, 32, 64], [8, 16, 32, 64], ([0, 1, 2, 3], [0, 1, 2, 3])),
        ([8, 16, 32, 64], [32], ([2], [0])),
        ([16], [8, 16, 32], ([0], [1])),
        ([4, 8, 16, 32, 64], [8, 16, 32, 64], ([1, 2, 3, 4], [0, 1, 2, 3])),
        ([32, 16, 8], [8, 16, 32], ([0, 1, 2], [2, 1, 0])),
        ([8, 16, 16, 32], [8, 16, 16, 32], ([0, 1, 2, 3], [0, 1, 2, 3])),
        ([16], [32], ([0], [0])),
        ([8, 16], [32], ([], [])),
    ],
)
def test_levels_of_the_same_stride_are_paired(teacher, student, expected):
    assert pair_levels(teacher, student) == expected


@pytest.mark.parametrize(
    ("teacher", "student", "pairs"),
    [
        ([8, 16, 32], [16, 32, 64], 3),
        ([8, 16, 32, 64], [16, 32, 64], 3),
        ([8, 16, 32, 64], [32], 1),
        ([16], [8, 16], 1),
    ],
)
def test_levels_are_paired_in_order_if_the_config_says_so(teacher, student, pairs):
    assert pair_levels(teacher, student, "order") == (list(range(pairs)), list(range(pairs)))


def light(family):
    """A light student, shrunk: no level of stride 8, and half of its teacher's queries."""
    model = shrink(load_config(str(coco_config(family, "r18_light"))).model)
    model.num_queries = 10
    return instantiate(model)


@pytest.mark.parametrize("family", LIGHT)
def test_a_light_student_learns_from_a_deeper_and_wider_teacher(tmp_path, family):
    student, teacher = light(family), save_teacher(tmp_path, family, embed_dim=64, decoder_layers=3)
    hook = make_hook(student, teacher, embedding=VARIANTS[family])
    losses = hook.compute_losses(student, random_batch())
    terms = {name for name in losses if name.startswith(("loss_memory", "loss_logits"))}
    assert len(terms) == 5
    sum(losses[name] for name in terms).backward()
    reached = [p.grad is not None for name, p in student.named_parameters() if name.startswith("decoder.layers.")]
    assert all(reached)
    assert all(p.grad.abs().sum() > 0 for p in hook.parameters())


@pytest.mark.parametrize(
    ("teacher_variant", "make_student", "strides"),
    [
        *((teacher, partial(tiny, student), [stride]) for teacher, student, stride in CROSS if stride),
        *((family, partial(light, family), [16, 32, 64]) for family in LIGHT),
    ],
)
def test_memories_are_compared_only_on_shared_levels(tmp_path, teacher_variant, make_student, strides):
    student = add_noise(make_student(), scale=0.05)
    hook = make_hook(
        student, save_teacher(tmp_path, teacher_variant, embed_dim=64), embedding=VARIANTS[teacher_variant]
    )
    student.backbone.eval()
    batch, canvas = random_batch(sizes=((128, 192), (64, 128))), (128, 192)
    shapes = [[side // stride for side in canvas] for stride in strides]
    valid = [[[side // stride for side in x["image"].shape[1:]] for stride in strides] for x in batch]
    objects, background = weights_by_loop(valid, shapes, student.targets(batch))

    def levels(model):
        """The tokens of these strides (B, N, C), cut out of those of all levels."""
        tokens = model.encode(model.preprocess(batch)).tokens
        cells = [(canvas[0] // stride) * (canvas[1] // stride) for stride in model.strides]
        by_stride = dict(zip(model.strides, tokens.split(cells, dim=1), strict=True))
        return torch.cat([by_stride[stride] for stride in strides], 1)

    with torch.no_grad():
        losses = hook.compute_losses(student, batch)
        projected = hook.modules["losses"]["memory"].projection(levels(student))
        distance = (levels(hook.teacher) - projected).square().sum(-1)
    torch.testing.assert_close(losses["loss_memory_object"], 1e-2 * (objects * distance).sum() / 2, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        losses["loss_memory_background"], 1e-3 * (background * distance).sum() / 2, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("padding", [("size_divisibility", 64), ("padding_constraints", {"square_size": 256})])
def test_the_teacher_may_pad_images_further(tmp_path, monkeypatch, padding):
    """With each cell's place as its memory, the memories are equal, whatever the padding."""
    student = tiny()
    hook = make_hook(student, save_teacher(tmp_path), {"memory": MemoryLoss(1.0, 1.0)})
    backbone = hook.teacher.backbone
    backbone.__class__ = type("PaddedResNet", (type(backbone),), dict([padding]))

    def encode_places(model, encode):
        def call(images):
            memory = encode(images)
            shapes = memory.spatial_shapes.tolist()
            tokens = torch.cat([places(shape, stride) for shape, stride in zip(shapes, model.strides, strict=True)])
            memory.tokens = tokens.repeat(len(memory.tokens), 1, memory.tokens.shape[-1] // 2)
            return memory

        return call

    for model in (student, hook.teacher):
        monkeypatch.setattr(model, "encode", encode_places(model, model.encode))
    batch = random_batch(sizes=((96, 200), (80, 160)))
    shapes = [hook.teacher.preprocess(batch).tensor.shape, student.preprocess(batch).tensor.shape]
    assert shapes[0] != shapes[1]
    losses = hook.compute_losses(student, batch)
    assert losses["loss_memory_object"] == losses["loss_memory_background"] == 0


def test_memories_without_a_common_level_are_refused(tmp_path):
    """Losses that do not compare memories are not affected."""
    config = tiny_config("dino")
    config.encoder.num_levels = 2
    config.neck.update(in_features=["res3", "res4"], in_channels=[16, 32])
    student, teacher = instantiate(config), save_teacher(tmp_path, "dab_detr")
    reason = r"levels of stride 32 and the student's of 8, 16, .*model\.neck\.in_features"
    with pytest.raises(UserError, match=reason):
        make_hook(student, teacher, embedding="random")
    hook = make_hook(student, teacher, {"logits": TargetAwareLogitLoss(**WEIGHTS)}, embedding="random")
    assert hook.compute_losses(student, random_batch())["loss_logits_class"] > 0
