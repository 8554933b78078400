import copy
import re

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage

from clockdistill.distillation import (
    DistillationHook,
    DistillationLoss,
    MatchedLogitLoss,
    MemoryLoss,
    TargetAwareLogitLoss,
)
from clockdistill.errors import UserError
from clockdistill.modeling import HungarianMatcher, Outputs, Queries
from helpers.distillation import CROSS, VARIANTS, WEIGHTS, make_hook, save_teacher
from helpers.models import add_noise, random_batch, tiny, tiny_config

variants = pytest.mark.parametrize(("variant", "embedding"), VARIANTS.items())
pairs = pytest.mark.parametrize(
    ("teacher_variant", "student_variant"),
    [(variant, variant) for variant in VARIANTS] + [pair[:2] for pair in CROSS],
)


@pairs
def test_gradients_reach_student_and_projections_but_not_the_teacher(tmp_path, teacher_variant, student_variant):
    student = tiny(student_variant)
    hook = make_hook(
        student, save_teacher(tmp_path, teacher_variant, embed_dim=64), embedding=VARIANTS[teacher_variant]
    )
    expected = {"losses.memory.projection", "query_adapter.content"}
    if not student.encodes_boxes:
        expected.add("query_adapter.position")
    assert {re.sub(r"(\.mlp.*)?\.(weight|bias)$", "", name) for name in hook.state_dict()} == expected
    before = copy.deepcopy(hook.teacher.state_dict())
    optimizer = torch.optim.AdamW([*student.parameters(), *hook.parameters()], 1e-3)
    for step in range(2):
        losses = hook.compute_losses(student, random_batch(counts=(3, 0), seed=step))
        assert {"loss_memory_object", "loss_memory_background", "loss_logits_class", "loss_class"} <= losses.keys()
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
def test_the_terms_are_zero_if_student_and_teacher_are_equal(tmp_path, variant, embedding):
    teacher = save_teacher(tmp_path, variant)
    student = instantiate(tiny_config(variant))
    student.load_state_dict(torch.load(teacher["checkpoint"], weights_only=True)["model"])
    matched = MatchedLogitLoss(HungarianMatcher(2, 5, 2), **WEIGHTS)
    for losses in (None, {"matched": matched}):
        hook = make_hook(student, teacher, losses, embedding)
        # only batch statistics distinguish the student from its teacher
        student.train().backbone.eval()
        terms = hook.compute_losses(student, random_batch())
        for name, value in terms.items():
            if name.startswith(("loss_memory", "loss_logits", "loss_matched")):
                assert value.item() == pytest.approx(0, abs=1e-4), name


@variants
def test_distillation_does_not_change_the_detection_losses(tmp_path, variant, embedding):
    student, batch = tiny(variant), random_batch()
    hook = make_hook(student, save_teacher(tmp_path, variant), embedding=embedding)
    torch.manual_seed(5)
    plain = student(batch)
    torch.manual_seed(5)
    distilled = hook.compute_losses(student, batch)
    for name, value in plain.items():
        torch.testing.assert_close(distilled[name], value, rtol=1e-4, atol=1e-5)


def test_gradient_shares_sum_to_one_and_follow_the_weights(tmp_path):
    shares = []
    for factor in (1, 10):
        student = tiny()
        hook = make_hook(
            student, save_teacher(tmp_path), {"memory": MemoryLoss(1e-2 * factor, 1e-3)}, gradient_share_period=1
        )
        torch.manual_seed(0)
        with EventStorage() as storage:
            losses = hook.compute_losses(student, random_batch())
            shares.append({k: v for k, (v, _) in storage.latest().items()})
        sum(losses.values()).backward()
    for share in shares:
        assert set(share) == {f"gradient_share/{name}" for name in ("detection", "memory_object", "memory_background")}
        assert sum(share.values()) == pytest.approx(1)
    ratios = [share["gradient_share/memory_object"] / share["gradient_share/detection"] for share in shares]
    assert ratios[1] / ratios[0] == pytest.approx(10, rel=1e-3)


class ConstantLoss(DistillationLoss):
    def forward(self, teacher, student, targets):
        return {"zero": targets.boxes.new_zeros(())}


def test_a_loss_without_gradient_has_no_gradient_share(tmp_path):
    losses = {"memory": MemoryLoss(1e-2, 1e-3), "constant": ConstantLoss()}
    hook = make_hook(tiny(), save_teacher(tmp_path), losses, gradient_share_period=1)
    with EventStorage() as storage:
        assert hook.compute_losses(tiny(), random_batch())["loss_constant_zero"] == 0
        assert "gradient_share/memory_object" in storage.latest()
        assert "gradient_share/constant_zero" not in storage.latest()


class Probe(DistillationLoss):
    """Returns a given result, and keeps its inputs."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, teacher, student, targets):
        self.given = [teacher, student]
        return self.result


@pytest.mark.parametrize("required", [None, "memory", "objects", "targets"])
def test_a_loss_gets_only_the_outputs_that_it_requires(tmp_path, required):
    names = {"memory": "memory", "objects": "object_predictions", "targets": "target_predictions"}
    loss = Probe({})
    if required:
        setattr(loss, f"requires_{required}", True)
    losses = {"probe": loss, "memory": MemoryLoss(1.0, 1.0), "logits": TargetAwareLogitLoss(**WEIGHTS)}
    make_hook(tiny(), save_teacher(tmp_path), losses).compute_losses(tiny(), random_batch())
    for outputs in loss.given:
        given = [key for key, name in names.items() if getattr(outputs, name) is not None]
        assert given == ([required] if required else [])


@pytest.mark.parametrize(
    ("required", "expected"),
    [("memory", ["encode"]), ("targets", ["encode", "decode"]), ("objects", ["encode", "propose", "decode"])],
)
def test_the_teacher_runs_only_what_the_losses_require(tmp_path, monkeypatch, required, expected):
    loss, ran = Probe({}), []
    setattr(loss, f"requires_{required}", True)
    hook = make_hook(tiny(), save_teacher(tmp_path), {"probe": loss})
    for name in ("encode", "propose", "decode"):
        method = getattr(hook.teacher, name)
        monkeypatch.setattr(hook.teacher, name, lambda *args, n=name, m=method: ran.append(n) or m(*args))
    hook.compute_losses(tiny(), random_batch())
    assert ran == expected


@variants
def test_the_teachers_outputs_are_those_of_a_pass_over_all_queries(tmp_path, variant, embedding):
    """Object and target queries in one decoder pass, as in training, give what the hook computes for each alone."""
    hook = make_hook(tiny(variant), save_teacher(tmp_path, variant), embedding=embedding)
    teacher, batch = hook.teacher, random_batch()
    hook.requires_objects = True
    queries = hook.embedding(teacher.targets(batch))
    with torch.no_grad():
        memory = teacher.encode(teacher.preprocess(batch))
        objects = teacher.propose(memory)
        joint = teacher.decode(memory, Queries.cat([objects, queries]))
    object_predictions, target_predictions = joint.split([len(objects), len(queries)])
    expected = Outputs(memory, object_predictions, {"targets": target_predictions})
    _, actual = hook.forward_teacher(batch, teacher.targets(batch))
    for name in ("object_predictions", "target_predictions"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.memory.tokens, memory.tokens, rtol=0, atol=0)


def test_the_teacher_runs_in_the_precision_of_the_training(tmp_path):
    hook, seen = make_hook(tiny(), save_teacher(tmp_path)), []
    hook.teacher.encoder.layers[0].ffn.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            hook.compute_losses(tiny(), random_batch())
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("result", [torch.zeros(()), {"name": torch.zeros(2)}, {"name": 0.0}])
def test_a_loss_that_does_not_return_scalars_by_name_is_refused(tmp_path, result):
    hook = make_hook(tiny(), save_teacher(tmp_path), {"mine": Probe(result)})
    with pytest.raises(UserError, match=r"distillation\.losses\.mine must return scalar losses by name"):
        hook.compute_losses(tiny(), random_batch())


@pytest.mark.parametrize("name", ["type", "training"])
def test_loss_names_that_torch_uses_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=rf"distillation\.losses\.{name} has a name that torch uses itself"):
        make_hook(tiny(), save_teacher(tmp_path), {name: MemoryLoss(1.0, 1.0)})


class Careless(DistillationLoss):
    def forward(self, teacher, student, targets):
        return {"x": teacher.memory.tokens.sum()}


def test_a_loss_that_uses_what_it_does_not_require_is_named(tmp_path):
    hook = make_hook(tiny(), save_teacher(tmp_path), {"mine": Careless()})
    with pytest.raises(UserError, match=r"distillation\.losses\.mine uses an output .*'tokens'.* set requires_memory"):
        hook.compute_losses(tiny(), random_batch())


class Forgetful(DistillationLoss):
    def forward(self, teacher, student, targets):
        return {"x": student.extra_predictions["points"].logits.sum()}


def test_a_loss_that_uses_queries_which_it_does_not_make_is_named(tmp_path):
    hook = make_hook(tiny(), save_teacher(tmp_path), {"mine": Forgetful()})
    with pytest.raises(UserError, match=r"distillation\.losses\.mine uses predictions for the queries 'points'"):
        hook.compute_losses(tiny(), random_batch())


@pytest.mark.parametrize("config", [{"_target_": "nowhere.Loss"}, L(MemoryLoss)(alfa=1.0)])
def test_a_loss_that_cannot_be_built_is_named(tmp_path, config):
    with pytest.raises(UserError, match=r"distillation\.losses\.mine cannot be built: "):
        make_hook(tiny(), save_teacher(tmp_path), {"mine": config})


@pairs
def test_state_holds_the_projections(tmp_path, teacher_variant, student_variant):
    teacher = save_teacher(tmp_path, teacher_variant, embed_dim=64)
    first, second = (make_hook(tiny(student_variant), teacher, embedding=VARIANTS[teacher_variant]) for _ in range(2))
    second.load_state_dict(first.state_dict())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


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
            losses = hook.compute_losses(student, random_batch())
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in student.parameters())
        values.append({k: v.item() for k, v in losses.items() if k.startswith(("loss_memory", "loss_logits"))})
    for name, value in values[0].items():
        assert values[1][name] == pytest.approx(value, rel=0.05), name


@pytest.mark.parametrize(
    ("teacher_variant", "student_variant"),
    [("deformable_detr.two_stage", "deformable_detr"), ("dino", "deformable_detr")],
)
def test_a_student_that_does_not_encode_boxes_gets_positions(tmp_path, teacher_variant, student_variant):
    student = add_noise(tiny(student_variant))
    hook = make_hook(student, save_teacher(tmp_path, teacher_variant), embedding="random")
    losses = hook.compute_losses(student, random_batch())
    losses["loss_logits_bbox"].backward()
    assert all(p.grad.abs().sum() > 0 for p in hook.parameters())


def test_a_student_that_encodes_boxes_gets_no_positions(tmp_path):
    student = tiny("deformable_detr.two_stage")
    hook = make_hook(student, save_teacher(tmp_path, "deformable_detr"), embedding="random")
    queries = hook.embedding(student.targets(random_batch()))
    assert queries.position is not None
    assert hook.query_adapter.adapt(queries).position is None


def test_a_teacher_without_denoising_has_no_label_embedding(tmp_path):
    with pytest.raises(UserError, match=r"set distillation\.embedding=calibrated"):
        make_hook(tiny("dab_detr"), save_teacher(tmp_path, "dab_detr"))


def test_random_content_is_the_same_every_time(tmp_path):
    teacher = save_teacher(tmp_path)
    first, second = (make_hook(tiny(), teacher, embedding="random").embedding for _ in range(2))
    assert torch.equal(first.content.weight, second.content.weight)


def test_hook_is_made_from_a_config(tmp_path):
    node = L(DistillationHook)(
        teacher=save_teacher(tmp_path),
        losses=dict(memory=L(MemoryLoss)(alpha=1.0, beta=1.0), logits=None),
        embedding="denoising",
        gradient_share_period=0,
    )
    node.student = tiny()
    losses = instantiate(node).losses
    assert list(losses) == ["memory"]
    assert isinstance(losses["memory"], MemoryLoss)
