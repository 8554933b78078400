"""Several batches per optimizer step. On several processes, see tests/distillation/test_processes.py."""

import logging
import re

import pytest
import torch

from clockdistill.engine.hooks import EMAHook
from helpers.distillation import save_teacher
from helpers.gradients import assert_equal_gradients, step_gradients
from helpers.toy import ToyDetector, ToyLoader, toy_trainer

KEY_BIAS = re.compile(r"key_\w+_proj\.bias$")


@pytest.mark.parametrize("variant", ["dino", "deformable_detr", "deformable_detr.two_stage", "dab_detr"])
def test_gradients_are_those_of_the_joint_batch(variant):
    joint = step_gradients(variant)
    assert_equal_gradients(step_gradients(variant, accumulate=4), joint)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_so_are_those_of_distillation(tmp_path, dtype):
    """Every loss divides by something else: images, cells, confidences, objects."""
    teacher = save_teacher(tmp_path, embed_dim=64)
    joint, parts = (step_gradients("dab_detr", teacher, accumulate=n, amp_dtype=dtype) for n in (1, 4))
    if dtype is not None:
        # those of the keys' biases are rounding errors, since softmax does not change with them
        joint, parts = ({n: g for n, g in x.items() if not KEY_BIAS.search(n)} for x in (joint, parts))
    assert_equal_gradients(parts, joint, rtol=1e-3 if dtype is None else 5e-2)


def mean_step(model, batches, clip_grad):
    """Losses of a step of gradient descent on the mean loss, by hand."""
    values = [model(batch) for batch in batches]
    means = {name: torch.stack([losses[name] for losses in values]).mean() for name in values[0]}
    gradients = torch.autograd.grad(sum(means.values()), list(model.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= 0.1 * min(1, clip_grad / norm) * gradient
    return {name: value.item() for name, value in means.items()}, norm.item()


def test_a_step_clips_the_mean_gradient_and_logs_mean_losses_once():
    trainer = toy_trainer(accumulate=3, clip_grad=0.1)
    ema = EMAHook(trainer.model, 0.5)
    trainer.register_hooks([ema])
    trainer.train(0, 2)
    torch.manual_seed(0)
    model, batches = ToyDetector(channels=4), iter(ToyLoader(seed=1))
    for _ in range(2):
        losses, norm = mean_step(model, [next(batches) for _ in range(3)], clip_grad=0.1)
    # batch-norm statistics see each batch
    torch.testing.assert_close(trainer.model.state_dict(), model.state_dict(), rtol=1e-4, atol=1e-5)
    logged = {name: value for name, (value, _) in trainer.storage.latest().items()}
    assert {name: logged[name] for name in losses} == pytest.approx(losses, rel=1e-5)
    assert logged["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm > 0.1
    assert ema.state_dict() == {"n_averaged": 2}


def test_one_batch_that_is_not_finite_skips_the_step():
    trainer = toy_trainer(accumulate=3, broken_at=4, max_nonfinite_steps=2)
    trainer.train(0, 3)
    assert trainer.skipped_steps == 1
    without = toy_trainer(accumulate=3)
    without.data_loader = [batch for i, batch in zip(range(9), ToyLoader(seed=1)) if i not in (3, 4, 5)]
    without.train(0, 2)
    torch.testing.assert_close(trainer.model.state_dict(), without.model.state_dict(), rtol=0, atol=0)


def test_another_number_of_batches_is_said_when_resuming(caplog):
    state = toy_trainer(accumulate=3).state_dict()
    trainer = toy_trainer(accumulate=2)
    logging.getLogger("clockdistill").addHandler(caplog.handler)
    trainer.load_state_dict(state)
    logging.getLogger("clockdistill").removeHandler(caplog.handler)
    assert "train.accumulate=3, and now it is 2: data come in another order" in caplog.text
