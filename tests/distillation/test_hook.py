import copy
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from clockdistill.distillation import (
    DistillationHook,
    MatchedLogitLoss,
    MemoryLoss,
    PlainFeatureLoss,
    TargetAwareLogitLoss,
)
from clockdistill.distillation.hook import pair_levels
from clockdistill.engine import Trainer
from clockdistill.errors import UserError
from clockdistill.modeling import HungarianMatcher
from helpers.distillation import WEIGHTS, make_hook, save_teacher, weights_by_loop
from helpers.models import random_batch, roughen, tiny, tiny_config, tiny_dino

# one variant for every way in which queries come by content and position
VARIANTS = {
    "dino": "denoising",
    "deformable_detr": "random",
    "deformable_detr.two_stage": "random",
    "dab_detr": "random",
}
variants = pytest.mark.parametrize(("variant", "embedding"), VARIANTS.items())
# teacher, student, and the stride of the one level that they share, 0 where they share all
CROSS = [
    ("dino", "dab_detr", 32),
    ("dino", "dab_detr.dc5", 16),
    ("dab_detr", "dino", 32),
    ("deformable_detr.two_stage", "dab_detr", 32),
    ("dino", "deformable_detr", 0),
]
pairs = pytest.mark.parametrize(
    ("theirs", "ours"), [(variant, variant) for variant in VARIANTS] + [(theirs, ours) for theirs, ours, _ in CROSS]
)


@pairs
def test_gradients_reach_student_and_projections_but_change_nothing_of_the_teacher(tmp_path, theirs, ours):
    student = tiny(ours)
    hook = make_hook(student, save_teacher(tmp_path, theirs, embed_dim=64), embedding=VARIANTS[theirs])
    position = set() if student.encodes_boxes else {"position"}
    assert {name.split(".")[0] for name in hook.projections.state_dict()} == {"0", "content"} | position
    before = copy.deepcopy(hook.teacher.state_dict())
    optimizer = torch.optim.AdamW([*student.parameters(), *hook.parameters()], 1e-3)
    for step in range(2):
        losses = hook.step_losses(student, random_batch(counts=(3, 0), seed=step))
        assert {"loss_mem_object", "loss_mem_background", "loss_logit_class", "loss_class"} <= losses.keys()
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in student.parameters())
        assert all(p.grad.abs().sum() > 0 for p in hook.parameters())
        optimizer.step()
    after = hook.teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in hook.teacher.parameters())
    assert not hook.teacher.training


@variants
def test_equal_widths_need_no_projection(tmp_path, variant, embedding):
    hook = make_hook(tiny(variant), save_teacher(tmp_path, variant), embedding=embedding)
    assert list(hook.parameters()) == []


@variants
def test_terms_are_zero_for_a_student_that_is_its_teacher(tmp_path, variant, embedding):
    teacher = save_teacher(tmp_path, variant)
    student = instantiate(tiny_config(variant))
    student.load_state_dict(torch.load(teacher["checkpoint"], weights_only=True)["model"])
    matched = MatchedLogitLoss(HungarianMatcher(2, 5, 2), **WEIGHTS)
    for losses in (None, [matched]):
        hook = make_hook(student, teacher, losses, embedding)
        # batch statistics are what a student has that its teacher does not
        student.train().backbone.eval()
        terms = hook.step_losses(student, random_batch())
        for name, value in terms.items():
            if name.startswith(("loss_mem", "loss_logit", "loss_matched")):
                assert value.item() == pytest.approx(0, abs=1e-4), name


@variants
def test_distillation_leaves_the_detectors_own_losses_alone(tmp_path, variant, embedding):
    student, batch = tiny(variant), random_batch()
    hook = make_hook(student, save_teacher(tmp_path, variant), embedding=embedding)
    torch.manual_seed(5)
    plain = student(batch)
    torch.manual_seed(5)
    distilled = hook.step_losses(student, batch)
    for name, value in plain.items():
        torch.testing.assert_close(distilled[name], value, rtol=1e-4, atol=1e-5)


def test_gradient_shares_sum_to_one_and_follow_the_weights(tmp_path):
    shares = []
    for factor in (1, 10):
        student = tiny_dino()
        hook = make_hook(student, save_teacher(tmp_path), [MemoryLoss(1e-2 * factor, 1e-3)], period=1)
        hook.trainer = Trainer(student, [], torch.optim.SGD(student.parameters(), 0.1))
        hook.trainer.iter = 0
        torch.manual_seed(0)
        with EventStorage() as storage:
            losses = hook.step_losses(student, random_batch())
            shares.append({k: v for k, (v, _) in storage.latest().items()})
        sum(losses.values()).backward()
    for share in shares:
        assert set(share) == {f"gradient_share/{name}" for name in ("det", "mem_object", "mem_background")}
        assert sum(share.values()) == pytest.approx(1)
    ratios = [share["gradient_share/mem_object"] / share["gradient_share/det"] for share in shares]
    assert ratios[1] / ratios[0] == pytest.approx(10, rel=1e-3)


@pairs
def test_state_holds_the_projections(tmp_path, theirs, ours):
    teacher = save_teacher(tmp_path, theirs, embed_dim=64)
    first, second = (make_hook(tiny(ours), teacher, embedding=VARIANTS[theirs]) for _ in range(2))
    second.load_state_dict(first.state_dict())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_losses_of_one_name_are_refused(tmp_path):
    hook = make_hook(tiny_dino(), save_teacher(tmp_path), [MemoryLoss(1.0, 1.0), MemoryLoss(2.0, 1.0)])
    with pytest.raises(UserError, match="are called loss_mem_"):
        hook.step_losses(tiny_dino(), random_batch())


@variants
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_near_full_precision(tmp_path, dtype, variant, embedding):
    teacher, values = save_teacher(tmp_path, variant, embed_dim=64), []
    for enabled in (False, True):
        student = tiny(variant)
        hook = make_hook(student, teacher, embedding=embedding)
        torch.manual_seed(0)
        for projection in hook.parameters():
            torch.nn.init.constant_(projection, 0.01)
        with torch.autocast("cpu", dtype, enabled=enabled):
            losses = hook.step_losses(student, random_batch())
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in student.parameters())
        values.append({k: v.item() for k, v in losses.items() if k.startswith(("loss_mem", "loss_logit"))})
    for name, value in values[0].items():
        assert values[1][name] == pytest.approx(value, rel=0.05), name


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
def test_levels_of_one_stride_are_compared(teacher, student, expected):
    assert pair_levels(teacher, student) == expected


@pytest.mark.parametrize(("theirs", "ours", "stride"), [pair for pair in CROSS if pair[2]])
def test_memories_are_compared_on_the_level_that_both_have_and_there_alone(tmp_path, theirs, ours, stride):
    student = roughen(tiny(ours), scale=0.05)
    hook = make_hook(student, save_teacher(tmp_path, theirs, embed_dim=64), embedding=VARIANTS[theirs])
    student.backbone.eval()
    batch, canvas = random_batch(sizes=((128, 192), (96, 160))), (128, 192)
    shape = [side // stride for side in canvas]
    valid = [[[side // stride for side in x["image"].shape[1:]]] for x in batch]
    objects, background = weights_by_loop(valid, [shape], student.targets(batch))

    def level(model):
        """The level's tokens (B, h * w, C), cut out of those of all levels."""
        tokens = model.encode(model.preprocess(batch)).tokens
        finer = [8, 16, 32, 64].index(stride) if model.num_levels > 1 else 0
        start = sum((canvas[0] // s) * (canvas[1] // s) for s in [8, 16, 32, 64][:finer])
        return tokens[:, start : start + shape[0] * shape[1]]

    with torch.no_grad():
        losses = hook.step_losses(student, batch)
        distance = (level(hook.teacher) - hook.projections["0"](level(student))).square().sum(-1)
    torch.testing.assert_close(losses["loss_mem_object"], 1e-2 * (objects * distance).sum() / 2, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        losses["loss_mem_background"], 1e-3 * (background * distance).sum() / 2, rtol=1e-4, atol=0
    )


def test_memories_without_a_common_level_are_refused(tmp_path):
    """What asks nothing of the memories is not."""
    config = tiny_config("dino")
    config.encoder.num_levels = 2
    config.neck.update(in_features=["res3", "res4"], in_channels=[16, 32])
    student, teacher = instantiate(config), save_teacher(tmp_path, "dab_detr")
    reason = r"levels of stride 32 and the student's of 8, 16, .*model\.neck\.in_features"
    with pytest.raises(UserError, match=reason):
        make_hook(student, teacher, embedding="random")
    hook = make_hook(student, teacher, [TargetAwareLogitLoss(**WEIGHTS)], embedding="random")
    assert hook.step_losses(student, random_batch())["loss_logit_class"] > 0


@pytest.mark.parametrize(
    ("theirs", "ours"), [("deformable_detr.two_stage", "deformable_detr"), ("dino", "deformable_detr")]
)
def test_a_student_that_encodes_no_boxes_is_given_positions_whoever_teaches(tmp_path, theirs, ours):
    student = roughen(tiny(ours))
    hook = make_hook(student, save_teacher(tmp_path, theirs), embedding="random")
    losses = hook.step_losses(student, random_batch())
    losses["loss_logit_bbox"].backward()
    assert all(p.grad.abs().sum() > 0 for p in hook.parameters())


def test_a_student_that_encodes_boxes_is_given_no_positions(tmp_path):
    student = tiny("deformable_detr.two_stage")
    hook = make_hook(student, save_teacher(tmp_path, "deformable_detr"), embedding="random")
    queries = hook.embedding(student.targets(random_batch()))
    assert queries.position is not None
    assert hook.translate(queries).position is None


def test_a_teacher_without_denoising_has_no_embedding_of_it(tmp_path):
    with pytest.raises(UserError, match=r"set distillation\.embedding=calibrated"):
        make_hook(tiny("dab_detr"), save_teacher(tmp_path, "dab_detr"))


def test_random_content_is_the_same_every_time(tmp_path):
    teacher = save_teacher(tmp_path)
    first, second = (make_hook(tiny_dino(), teacher, embedding="random").embedding for _ in range(2))
    assert torch.equal(first.content.weight, second.content.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(checkpoint="absent.pth"), "absent.pth does not exist"),
        (dict(checkpoint=""), "no teacher checkpoint is given"),
        (dict(config=""), "no teacher config is given"),
        (dict(config="absent.py"), "config file absent.py does not exist"),
    ],
)
def test_missing_teacher_files(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        make_hook(tiny_dino(), save_teacher(tmp_path) | change)


def test_a_teacher_config_needs_a_model(tmp_path):
    config = tmp_path / "empty.yaml"
    config.write_text("train: {}")
    with pytest.raises(UserError, match=r"empty\.yaml has no `model`"):
        make_hook(tiny_dino(), save_teacher(tmp_path) | dict(config=str(config)))


def test_the_teacher_has_the_students_number_of_classes_whatever_its_config_says(tmp_path):
    """A config's model.num_classes may have been overridden when the teacher was trained."""
    teacher = save_teacher(tmp_path)
    config = Path(teacher["config"])
    config.write_text(re.sub(r"(?m)^( *)num_classes: 3$", r"\1num_classes: 7", config.read_text()))
    assert "num_classes: 7" in config.read_text()
    assert make_hook(tiny_dino(), teacher).teacher.num_classes == 3


def test_teacher_of_other_classes(tmp_path):
    with pytest.raises(UserError, match="4 classes and the student 3"):
        make_hook(tiny_dino(), save_teacher(tmp_path, num_classes=4))


def test_teacher_checkpoint_that_leaves_a_parameter_unset(tmp_path):
    teacher = save_teacher(tmp_path)
    weights = torch.load(teacher["checkpoint"], weights_only=True)["model"]
    del weights["encoder.level_embed"]
    torch.save({"model": weights}, teacher["checkpoint"])
    with pytest.raises(UserError, match=r"teacher\.pth leaves 1 .* encoder\.level_embed"):
        make_hook(tiny_dino(), teacher)


def test_hook_is_made_from_a_config(tmp_path):
    node = L(DistillationHook)(
        teacher=save_teacher(tmp_path),
        losses=[L(MemoryLoss)(alpha=1.0, beta=1.0)],
        embedding="denoising",
        period=0,
    )
    node.student = tiny_dino()
    assert isinstance(instantiate(node).losses[0], MemoryLoss)


DISTRIBUTED = [
    ("dino", "dino"),
    ("dino", "dab_detr"),
    ("dab_detr", "dino"),
    ("dab_detr", "deformable_detr"),
    ("deformable_detr.two_stage", "deformable_detr.two_stage"),
]


def gradients(theirs, ours, folder, rank=0, world=1):
    """Gradients of student and projections, by name, on this rank's share of a batch."""
    config = tiny_config(ours)
    config.backbone.norm = "FrozenBN"
    if "denoising" in config:
        # a rank's own random noise is not the joint batch's
        config.denoising.update(label_noise=0.0, box_noise=0.0)
    torch.manual_seed(0)
    student = roughen(instantiate(config), scale=0.05)
    matcher = HungarianMatcher(2, 5, 2)
    losses = [
        MemoryLoss(1e-2, 1e-3),
        PlainFeatureLoss(1e-2, "features"),
        TargetAwareLogitLoss(**WEIGHTS),
        MatchedLogitLoss(matcher, **WEIGHTS),
    ]
    teacher = {
        name: f"{folder}/{theirs}/teacher.{suffix}" for name, suffix in (("config", "yaml"), ("checkpoint", "pth"))
    }
    hook = make_hook(student, teacher, losses, VARIANTS[theirs])
    for projection in hook.parameters():
        torch.nn.init.constant_(projection, 0.01)
    model = DistributedDataParallel(student) if world > 1 else student
    batch = random_batch(sizes=((160, 192), (128, 192), (160, 192), (160, 176)), counts=(3, 0, 1, 5))
    share = len(batch) // world
    # the second step fails if a parameter took no part in the first
    for _ in range(2):
        model.zero_grad()
        hook.projections.zero_grad()
        losses = hook.step_losses(model, batch[rank * share : (rank + 1) * share])
        sum(losses.values()).backward()
    named = {**dict(student.named_parameters()), **dict(hook.projections.named_parameters())}
    return {name: p.grad for name, p in named.items()}


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for theirs, ours in DISTRIBUTED:
        result = gradients(theirs, ours, folder, rank, world=2)
        if rank == 0:
            torch.save(result, f"{folder}/{theirs}_{ours}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """A folder with the teachers, and with the gradients of all pairs by two processes."""
    folder = tmp_path_factory.mktemp("distributed")
    for variant in dict(DISTRIBUTED):
        (folder / variant).mkdir()
        save_teacher(folder / variant, variant, embed_dim=64)
    mp.spawn(work, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize(("theirs", "ours"), DISTRIBUTED)
def test_two_processes_give_the_gradients_of_one_on_the_joint_batch(two_processes, theirs, ours):
    one = gradients(theirs, ours, two_processes)
    two = torch.load(two_processes / f"{theirs}_{ours}.pth", weights_only=True)
    assert one.keys() == two.keys()
    assert any(name.startswith("content") for name in one)
    for name, gradient in one.items():
        assert (two[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, name
