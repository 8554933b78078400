"""Weights that follow the gradients. On several processes, see test_processes.py."""

import io
import itertools
import math

import pytest
import torch
from detectron2.utils.events import EventStorage

from clockdistill.distillation import MemoryLoss, TargetAwareLogitLoss
from clockdistill.distillation.balance import MAX_CHANGE, GradientBalance
from clockdistill.engine import Trainer
from helpers.distillation import WEIGHTS, make_hook, save_teacher
from helpers.models import add_noise, random_batch, tiny

RATIOS = {"memory": 1.0, "logits": 0.3}


def make_student():
    # without denoising, whose noise differs from step to step
    return add_noise(tiny("deformable_detr"), scale=0.05)


def run_steps(hook, student, steps):
    """Losses of the last of several steps with the same weights and batch, and what was logged."""
    with EventStorage() as storage:
        for iteration in range(steps):
            storage.iter = iteration
            losses = hook.compute_losses(student, random_batch())
        return losses, {name: value for name, (value, _) in storage.latest().items()}


def gradient_norm(losses, prefix, student):
    """Norm of the gradient of all losses whose names have a prefix."""
    loss = sum(value for name, value in losses.items() if name.startswith(prefix))
    gradients = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients]).norm().item()


@pytest.mark.parametrize("factor", [1e-3, 1, 1e3])
def test_ratios_are_reached_from_any_scale_of_the_losses(tmp_path, factor):
    student, teacher = make_student(), save_teacher(tmp_path, "deformable_detr", embed_dim=64)
    scaled = {name: factor * weight for name, weight in WEIGHTS.items()}
    losses = {"memory": MemoryLoss(1e-2 * factor, 1e-3 * factor), "logits": TargetAwareLogitLoss(**scaled)}
    hook = make_hook(student, teacher, losses, "random", balance=RATIOS)
    first, _ = run_steps(hook, student, 1)
    assert all(first[name] == 0 for name in first if name.startswith(("loss_memory", "loss_logits")))
    losses, logged = run_steps(hook, student, 2)
    distilled = gradient_norm(losses, "loss_memory", student), gradient_norm(losses, "loss_logits", student)
    own = {name: v for name, v in losses.items() if not name.startswith(("loss_memory", "loss_logits"))}
    detection = gradient_norm(own, "loss", student)
    assert [norm / detection for norm in distilled] == pytest.approx(list(RATIOS.values()), rel=1e-3)

    plain, _ = run_steps(make_hook_like(hook, student, teacher, scaled, factor), student, 1)
    for name, value in own.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-6)
    for name in losses.keys() - own.keys():
        weight = logged[f"distillation_weight/{name.split('_')[1]}"]
        torch.testing.assert_close(losses[name], weight * plain[name], rtol=1e-4, atol=1e-6)


def make_hook_like(hook, student, teacher, scaled, factor):
    """The same hook without `balance`."""
    losses = {"memory": MemoryLoss(1e-2 * factor, 1e-3 * factor), "logits": TargetAwareLogitLoss(**scaled)}
    other = make_hook(student, teacher, losses, "random")
    assert not any(name.startswith("balance") for name in other.state_dict())
    state = {name: value for name, value in hook.state_dict().items() if not name.startswith("balance")}
    other.load_state_dict(state)
    return other


class Toy:
    """A student of one layer, whose output is in half precision, and two balanced losses of a given scale."""

    def __init__(self, ratio=0.5, period=1):
        torch.manual_seed(0)
        self.student, self.data = torch.nn.Linear(4, 2), torch.randn(8, 4)
        self.balance = GradientBalance({"feature": ratio, "other": ratio}, period)

    def step(self, scale, iteration=0, loss_scale=1.0):
        """Return the weight of the loss "feature" after a step."""
        with EventStorage(iteration):
            output = self.student(self.data).half().float()
            losses = {"feature": {"a": scale * output.abs().mean(), "b": scale * output.mean()}}
            losses["other"] = {"c": output.square().mean()}
            self.balance(output.square().mean(), losses, self.student, loss_scale, True)
        return self.balance.weights["feature"]


def test_weights_follow_slowly():
    toy = Toy()
    first = toy.step(1.0)
    weights = [first] + [toy.step(1000.0) for _ in range(40)]
    assert weights[-1] == pytest.approx(first / 1000, rel=1e-2)
    changes = [before / after for before, after in itertools.pairwise(weights)]
    assert max(changes) == pytest.approx(MAX_CHANGE)
    assert min(changes) >= 1


def test_weights_change_only_in_every_period():
    toy = Toy(period=3)
    weights = [toy.step(scale, iteration) for iteration, scale in enumerate([1, 10, 10, 10, 100, 100, 100])]
    changed = [iteration for iteration in range(1, 7) if weights[iteration] != weights[iteration - 1]]
    assert changed == [3, 6]


@pytest.mark.parametrize("scale", [0.0, math.nan, math.inf])
def test_a_norm_that_is_zero_or_not_finite_is_ignored(scale):
    toy = Toy()
    assert toy.step(scale) == 0
    weight = toy.step(1.0, iteration=1)
    assert weight > 0
    assert toy.step(scale, iteration=2) == weight
    # the other loss is balanced all the same
    assert toy.balance.weights["other"] == pytest.approx(0.5)


def test_a_missing_weight_is_measured_before_the_period_ends():
    toy = Toy(period=100)
    assert toy.step(math.inf) == 0
    assert toy.step(1.0, iteration=1) > 0


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_gradients_fit_into_float16(scale):
    """The gradient passes through half precision, scaled."""
    expected = Toy().step(1.0) / scale
    assert Toy().step(scale, loss_scale=2.0**14) == pytest.approx(expected, rel=1e-2)


def train(tmp_path, start, stop, state=None):
    """Train a student from an iteration on, and return its parameters and the trainer's state."""
    student = tiny()
    hook = make_hook(student, save_teacher(tmp_path, embed_dim=64), balance=RATIOS, balance_period=2)
    optimizer = torch.optim.SGD([*student.parameters(), *hook.parameters()], 1e-3)
    batches = [random_batch(seed=iteration) for iteration in range(start, stop)]
    trainer = Trainer(student, batches, optimizer, seed=0)
    trainer.register_hooks([hook])
    if state is not None:
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        student.load_state_dict(state["student"])
        trainer.load_state_dict(state["trainer"])
    trainer.train(start, stop)
    return {"student": student.state_dict(), "trainer": trainer.state_dict()}


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole = train(tmp_path, 0, 6)
    part = train(tmp_path, 0, 3)
    weights = part["trainer"]["hooks"]["DistillationHook"]["balance._extra_state"]
    assert 0 not in weights.values()
    assert weights != whole["trainer"]["hooks"]["DistillationHook"]["balance._extra_state"]
    resumed = train(tmp_path, 3, 6, part)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_the_weights_of_other_losses_are_not_resumed():
    with pytest.raises(ValueError, match="weights of feature, other, not of memory"):
        GradientBalance({"memory": 1.0}, 1).load_state_dict(Toy().balance.state_dict())


def test_a_loss_may_be_called_detection():
    student, balance = torch.nn.Linear(4, 2), GradientBalance({"detection": 0.5}, 1)
    with EventStorage():
        loss = student(torch.ones(8, 4)).square().mean()
        balance(loss, {"detection": {"a": 10 * loss}}, student, 1.0, True)
    assert balance.weights["detection"] == pytest.approx(0.05)
