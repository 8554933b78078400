"""The benchmark of memory, run on a small model."""

import subprocess
import sys

import torch

import benchmark_memory
import benchmark_models
from helpers.models import CONFIGS


def test_a_step_is_measured(monkeypatch):
    monkeypatch.setitem(benchmark_models.STUDENTS, "small", CONFIGS / "dino/dino_r18_small_to_tiny_street.py")
    monkeypatch.setattr(benchmark_models, "IMAGE", (96, 320))
    sizes = []
    step = benchmark_memory.training_step

    def record(*args):
        train = step(*args)
        return lambda batch: sizes.append([x["image"].shape[1:] for x in batch]) or train(batch)

    monkeypatch.setattr(benchmark_memory, "training_step", record)
    assert benchmark_memory.measure(benchmark_models.config_of("small"), 2, torch.device("cpu")) > 0
    assert sizes == [[(64, 96)], [(96, 320)] * 2]


def test_every_step_is_measured_in_its_own_process(monkeypatch, capsys):
    commands = []

    def run(command, env, **_):
        commands.append(command)
        assert "MALLOC_MMAP_THRESHOLD_" in env
        return subprocess.CompletedProcess(command, 0, "a warning\n1000.0" if "keep" in command else "600.0")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["benchmark_memory.py", "--models", "dino", "--batch-sizes", "1", "2"])
    benchmark_memory.main()
    assert [command[-6:] for command in commands] == [
        ["--models", "dino", "--batch-sizes", size, "--alone", way] for size in "12" for way in ("keep", "checkpoint")
    ]
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [["dino", size, "1000", "600", "-40%"] for size in "12"]


def test_checkpointing_reaches_the_model(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(benchmark_memory, "measure", lambda cfg, *_: seen.append(cfg) or 1.0)
    for way in ("keep", "checkpoint"):
        monkeypatch.setattr(sys, "argv", ["benchmark_memory.py", "--alone", way])
        benchmark_memory.main()
    assert [cfg.model.encoder.activation_checkpointing for cfg in seen] == [False, True]
