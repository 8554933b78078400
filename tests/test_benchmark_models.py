"""The script that times the full-size models, on small ones."""

import json
import subprocess
import sys

import pytest
import torch

import benchmark_models


@pytest.mark.parametrize("config", ["dino_r18_tiny_street", "dino_r18_small_to_tiny_street"])
def test_measure(monkeypatch, config):
    """Of the demo's student, which has 1.52 M parameters, alone and with its teacher."""
    overrides = ("distillation.period=0",) if "_to_" in config else ()
    monkeypatch.setitem(benchmark_models.MODELS, "small", ("Small", f"dino/{config}.py", overrides))
    monkeypatch.setattr(benchmark_models, "IMAGE", (96, 320))
    result = benchmark_models.measure("small", torch.device("cpu"), rounds=1)
    assert result["parameters"] == pytest.approx(1.52e6, rel=0.01)
    assert 0.1 < result["gflops"] < 1
    assert min(result.values()) > 0
    assert result["inference_mib"] <= result["training_mib"]
    row = benchmark_models.results_table({"small": result}).splitlines()[-1]
    assert row.startswith("| Small | ")


def test_every_model_is_measured_in_a_process_of_its_own(monkeypatch, capsys):
    commands = []

    def run(command, **_):
        commands.append(command)
        number = float(len(commands))
        keys = ("parameters", "gflops", "inference_ms", "inference_mib", "training_ms", "training_mib")
        return subprocess.CompletedProcess(command, 0, "a warning\n" + json.dumps(dict.fromkeys(keys, number)))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["benchmark_models.py", "--models", "dino", "dab_detr.dc5"])
    benchmark_models.main()
    assert [command[-2:] for command in commands] == [["--models", "dino"], ["--models", "dab_detr.dc5"]]
    assert all("--alone" in command for command in commands)
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert [[cell.strip() for cell in row.split("|")][1:4] for row in rows] == [
        ["DINO R-50", "0.00", "1.0"],
        ["DAB-DETR R-50, DC5", "0.00", "2.0"],
    ]
