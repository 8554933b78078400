import json
import logging

import pytest
import torch
from detectron2.engine import HookBase

from clockdistill.engine import do_test, eval_only
from clockdistill.errors import UserError
from helpers.toy import (
    ToyDetector,
    ToyDistillation,
    ToyLoader,
    read_lines,
    read_metrics,
    run_toy,
    toy_config,
    toy_trainer,
)


def train_by_hand(steps, clip_grad):
    torch.manual_seed(0)
    model = ToyDetector(channels=4)
    losses, norms = [], []
    for _, batch in zip(range(steps), ToyLoader(seed=1)):
        loss = sum(model(batch).values())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        scale = 1 if clip_grad is None else min(1, clip_grad / norm.item())
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients):
                parameter -= 0.1 * scale * gradient
        losses.append(loss.item())
        norms.append(norm.item())
    return model, losses, norms


@pytest.mark.parametrize("clip_grad", [None, 0.1])
def test_steps_equal_those_of_a_plain_loop(clip_grad):
    trainer = toy_trainer(clip_grad=clip_grad)
    trainer.train(0, 4)
    model, losses, norms = train_by_hand(4, clip_grad)
    assert trainer.recorder.losses == pytest.approx(losses, rel=1e-5)
    assert trainer.recorder.norms == pytest.approx(norms, rel=1e-5)
    assert min(norms) > 0.1  # else nothing is clipped
    torch.testing.assert_close(trainer.model.state_dict(), model.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_on_the_cpu(dtype):
    seen = []
    trainer = toy_trainer(amp_dtype=dtype)
    trainer.model.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer.train(0, 20)
    _, losses, norms = train_by_hand(20, None)
    recorder = trainer.recorder
    assert set(seen) == {dtype}
    assert next(trainer.model.parameters()).dtype == torch.float32
    # with float16's initial scale the first steps overflow and are skipped: the norm is that of the first real step
    assert recorder.losses[0] == pytest.approx(losses[0], rel=0.03)
    assert recorder.norms[0] == pytest.approx(norms[0], rel=0.5)
    assert recorder.losses[-1] == pytest.approx(losses[-1], rel=0.2)
    assert recorder.losses[-1] < 0.8 * recorder.losses[0]


def test_infinite_loss_names_iteration_and_terms_and_keeps_the_weights():
    trainer = toy_trainer(broken_at=2)
    before = {}

    class Keep(HookBase):
        def before_step(self):
            before.update({name: p.detach().clone() for name, p in trainer.model.named_parameters()})

    trainer.register_hooks([Keep()])
    with pytest.raises(FloatingPointError, match=r"^the loss .* at iteration 2 \(loss_square, loss_abs\): lower"):
        trainer.train(0, 4)
    torch.testing.assert_close(dict(trainer.model.named_parameters()), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(dtype):
    """The batch is skipped, so that the weights and statistics are those of a run without it."""
    trainer = toy_trainer(broken_at=2, max_nonfinite_steps=2, amp_dtype=dtype)
    trainer.train(0, 5)
    assert (trainer.nonfinite_steps, trainer.skipped_steps) == (0, 1)
    assert trainer.storage.latest()["skipped_steps"] == (1, 2)
    without = toy_trainer(amp_dtype=dtype)
    without.data_loader = [batch for i, batch in zip(range(5), ToyLoader(seed=1)) if i != 2]
    without.train(0, 4)
    torch.testing.assert_close(trainer.model.state_dict(), without.model.state_dict(), rtol=0, atol=0)


def test_too_many_steps_in_a_row_end_the_training():
    trainer = toy_trainer(max_nonfinite_steps=3)
    trainer.data_loader = ToyLoader(seed=1, broken_from=4)
    with pytest.raises(FloatingPointError, match=r"in iterations 4 to 6 \("):
        trainer.train(0, 100)
    assert trainer.iter == 6


def test_infinite_gradient_is_found():
    trainer = toy_trainer()
    trainer.model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"^the gradient .* at iteration 0"):
        trainer.train(0, 1)


def test_gradients_that_overflow_in_float16_count_once_the_scale_cannot_fall():
    trainer = toy_trainer(amp_dtype=torch.float16, max_nonfinite_steps=2)
    trainer.model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"^the gradient .* in iterations 16 to 17 "):
        trainer.train(0, 100)  # the initial scale is 2^16


def test_losses_come_from_the_distillation_hook():
    trainer = toy_trainer()
    trainer.register_hooks([ToyDistillation(trainer.model)])
    trainer.train(0, 1)
    _, losses, _ = train_by_hand(1, None)
    assert trainer.recorder.losses[0] == pytest.approx(losses[0] + 4)


def test_a_second_loss_function_is_refused():
    trainer = toy_trainer()
    trainer.register_hooks([ToyDistillation(trainer.model), ToyDistillation(trainer.model)])
    with pytest.raises(RuntimeError, match="two hooks set the loss function"):
        trainer.train(0, 1)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_the_loss_function_is_given_model_batch_and_scale(dtype):
    trainer, seen = toy_trainer(amp_dtype=dtype), []

    class Hook(HookBase):
        def before_train(self):
            self.trainer.set_loss_function(self.compute)

        def compute(self, model, batches, loss_scale):
            seen.append((model, loss_scale))
            yield from map(model, batches)

    trainer.register_hooks([Hook()])
    trainer.train(0, 1)
    assert seen == [(trainer.model, 1.0 if dtype is None else 65536.0)]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.ema.enabled=True", "train.ema.decay=0.5"),
        ("distilled",),
        ("train.accumulate=2", "train.amp.enabled=True", "train.ema.enabled=True"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, overrides):
    def config(folder, *more):
        cfg = toy_config(folder, *(o for o in overrides if o != "distilled"), *more)
        if "distilled" in overrides:
            cfg.distillation = {"_target_": "helpers.toy.ToyDistillation"}
        return cfg

    run_toy(config(tmp_path / "whole"))
    run_toy(config(tmp_path / "parts", "train.checkpointer.period=3"))
    # as if the run had been killed in iteration 5: its last checkpoint is that of iteration 2
    for path in (tmp_path / "parts").glob("*"):
        if not path.name.startswith(("model_0000002", "metrics.json", "events")):
            path.unlink()
    (tmp_path / "parts" / "last_checkpoint").write_text("model_0000002.pth")
    run_toy(config(tmp_path / "parts"), resume=True)

    whole, parts = (read_lines(tmp_path / run) for run in ("whole", "parts"))
    assert [line["iteration"] for line in parts] == list(range(7))
    assert repr(parts) == repr(whole)  # a class without AP is NaN
    for name in ("model_final.pth", "model_0000005.resume.pth"):
        whole, parts = (torch.load(tmp_path / run / name, weights_only=True) for run in ("whole", "parts"))
        torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    if "distilled" in overrides:
        assert whole["trainer"]["hooks"]["ToyDistillation"]["factor"] < 2


def test_resuming_a_finished_training_only_evaluates(tmp_path):
    run_toy(toy_config(tmp_path))
    (tmp_path / "results.json").unlink()
    before = (tmp_path / "model_final.pth").read_bytes()
    run_toy(toy_config(tmp_path), resume=True)
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert (tmp_path / "results.json").is_file()


def test_learning_rates_and_their_schedule(tmp_path):
    run_toy(toy_config(tmp_path))
    groups = torch.load(tmp_path / "model_0000005.resume.pth", weights_only=True)["trainer"]["optimizer"][
        "param_groups"
    ]
    assert sorted(group["initial_lr"] for group in groups) == pytest.approx([1e-3, 1e-2])
    # the logged rate is the backbone's, which has most of the parameters
    assert list(read_metrics(tmp_path, "lr").values()) == pytest.approx([1e-3] * 4 + [1e-4] * 2)


@pytest.mark.parametrize("ema", [False, True])
def test_results_are_those_of_the_saved_weights_and_have_no_nan(tmp_path, ema):
    run_toy(toy_config(tmp_path, f"train.ema.enabled={ema}", "train.ema.decay=0.5"))
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    cfg = toy_config(tmp_path, f"train.init_checkpoint='{tmp_path / 'model_final.pth'}'")
    assert eval_only(cfg)["bbox"]["AP"] == pytest.approx(json.loads(text)["bbox"]["AP"])


def test_eval_only_without_weights_or_evaluator_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"train\.init_checkpoint"):
        eval_only(toy_config(tmp_path))
    torch.save({"model": {"head.bias": torch.zeros(1)}}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"part\.pth does not set 7 parameters .*backbone\.0\.weight"):
        eval_only(toy_config(tmp_path, f"train.init_checkpoint='{tmp_path / 'part.pth'}'"))
    cfg = toy_config(tmp_path, "dataloader.evaluator=null")
    with pytest.raises(UserError, match=r"dataloader\.evaluator"):
        do_test(cfg, ToyDetector(channels=4))


def test_a_loader_of_others_need_not_know_its_length(tmp_path, monkeypatch):
    """In Detectron2's training loader, `dataset` is a loader without a length."""
    sources = []
    monkeypatch.setattr(ToyLoader, "dataset", iter([]), raising=False)
    monkeypatch.setattr(ToyDistillation, "calibrate", lambda self, data, source: sources.append(source))
    cfg = toy_config(tmp_path)
    cfg.distillation = {"_target_": "helpers.toy.ToyDistillation"}
    run_toy(cfg)
    assert sources == [dict(datasets=[], images=None)]


@pytest.mark.parametrize("flags", [{}, {"resume": True}], ids=["new", "resumed"])
def test_a_finished_training_is_not_overwritten(tmp_path, flags):
    run_toy(toy_config(tmp_path))
    for path in tmp_path.glob("model_0*.pth"):
        path.unlink()
    before = (tmp_path / "metrics.json").read_text()
    with pytest.raises(UserError, match="has a finished training without a checkpoint to resume from: set another"):
        run_toy(toy_config(tmp_path), **flags)
    assert (tmp_path / "metrics.json").read_text() == before


def test_unknown_precision_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"train\.amp\.dtype"):
        run_toy(toy_config(tmp_path, "train.amp.enabled=True", "train.amp.dtype=float8"))


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(tmp_path, monkeypatch, capfd, caplog):
    printer = logging.getLogger("detectron2.utils.events")
    printer.addHandler(caplog.handler)
    printer.setLevel(logging.INFO)
    run_toy(toy_config(tmp_path / "lines"))
    assert "train:" not in capfd.readouterr().err
    assert "total_loss" in caplog.text
    caplog.clear()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run_toy(toy_config(tmp_path / "bar"))
    assert "train: 100%" in capfd.readouterr().err
    assert "total_loss" not in caplog.text
    printer.removeHandler(caplog.handler)


def test_config_lists_are_saved_as_plain_lists(tmp_path):
    cfg = toy_config(tmp_path, "+optimizer.etas=[0.5,1.2]", "optimizer._target_=torch.optim.Rprop")
    del cfg.optimizer.betas, cfg.optimizer.weight_decay
    run_toy(cfg)
    state = torch.load(tmp_path / "model_0000005.resume.pth", weights_only=True)
    assert state["trainer"]["optimizer"]["param_groups"][0]["etas"] == [0.5, 1.2]
