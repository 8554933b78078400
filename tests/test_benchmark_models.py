"""The benchmark of full-size models, run on small ones."""

import json
import subprocess
import sys

import pytest
import torch
from detectron2.config import instantiate

import benchmark_models
import families
from clockdistill.evaluation.cost import count_flops
from helpers.models import CONFIGS, random_batch, tiny_config


@pytest.mark.parametrize("config", ["dino_r18_tiny_street", "dino_r18_small_to_tiny_street"])
def test_measure(monkeypatch, config):
    """The demo's student has 1.52 M parameters, with and without its teacher."""
    monkeypatch.setitem(benchmark_models.STUDENTS, "small", CONFIGS / "dino" / f"{config}.py")
    monkeypatch.setattr(benchmark_models, "IMAGE", (96, 320))
    result = benchmark_models.measure(benchmark_models.config_of("small"), torch.device("cpu"), rounds=1)
    assert result["parameters"] == pytest.approx(1.52e6, rel=0.01)
    assert 0.1 < result["gflops"] < 1
    assert min(result.values()) > 0
    assert result["inference_mib"] <= result["training_mib"]
    assert max(result["inference_share"], result["training_share"]) < 1


def test_distillation_is_compared_with_its_parts_in_turns(monkeypatch):
    config = CONFIGS / "dino/dino_r18_small_to_tiny_street.py"
    monkeypatch.setitem(benchmark_models.STUDENTS, "small", config)
    monkeypatch.setattr(benchmark_models, "IMAGE", (96, 320))
    times = benchmark_models.measure_distillation(benchmark_models.config_of("small"), torch.device("cpu"), rounds=2)
    assert set(map(len, times.values())) == {2}
    assert min(times["distilled"]) > min(times["plain"])
    assert min(times["distilled"]) > min(times["teacher"]) > 0


def test_share_of_the_products_rate():
    # half, twice and once the time of a product, for a third of its operations
    assert benchmark_models.share(1, [1.0, 4.0, 3.0], 3, [2.0, 2.0, 3.0]) == pytest.approx(1 / 3)


def test_a_step_has_three_times_the_operations_of_inference_without_frozen_layers():
    torch.manual_seed(0)
    model = instantiate(tiny_config("deformable_detr")).eval()  # without denoising queries
    batch = random_batch(sizes=[(96, 128)], counts=[3])
    forward = 2 * count_flops(model, batch[0])

    def step(batch):
        sum(model(batch).values()).backward()

    model.train()
    stem = 2 * 48 * 64 * 8 * 3 * 7 * 7  # has no gradient of its input
    # the count at inference has normalization too
    assert benchmark_models.count_step_flops(step, batch[0]) == pytest.approx(3 * forward - stem, rel=0.03)
    model.requires_grad_(False)
    model.class_heads.requires_grad_(True)
    assert benchmark_models.count_step_flops(step, batch[0]) == pytest.approx(forward, rel=0.03)


def test_operations_of_fused_attention_and_sampling():
    query, value = torch.randn(1, 2, 5, 8, requires_grad=True), torch.randn(1, 12, 2, 4, requires_grad=True)
    points, weights = torch.rand(1, 7, 2, 1, 3, 2), torch.rand(1, 7, 2, 1, 3, requires_grad=True)
    shapes, starts = torch.tensor([[3, 4]]), torch.tensor([0])

    def attend(_):
        torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()

    def sample(_):
        torch.ops.clockdistill.ms_deform_attn(value, shapes, starts, points, weights).sum().backward()

    assert benchmark_models.count_step_flops(attend, {}) == 3 * 2 * (2 * 2 * 5 * 5 * 8)
    assert benchmark_models.count_step_flops(sample, {}) == 3 * 2 * (7 * 2 * 3) * 4 * 5


def test_inference_is_compared_with_eager_float32():
    times = {"product": [2.0, 2.0], "float32": [4.0, 6.0], "bfloat16, compiled": [1.0, 3.0], "relative_flops": 0.5}
    *_, eager, compiled = benchmark_models.inference_table({"dino": times}).splitlines()
    # ratios 4 and 2; shares 0.5 * 2 / 4 and 0.5 * 2 / 6, 0.5 * 2 / 1 and 0.5 * 2 / 3
    assert [cell.strip() for cell in eager.split("|")[1:-1]] == ["dino", "float32", "5000", "1.00", "21%"]
    assert [cell.strip() for cell in compiled.split("|")[1:-1]] == ["dino", "bfloat16, compiled", "2000", "3.00", "67%"]


def test_ratio_of_distillation_to_its_parts():
    times = dict(plain=[2.0, 4.0, 2.0], teacher=[1.0, 1.0, 1.0], distilled=[6.0, 5.0, 3.0])
    times |= {f"{name}_processor": [value / 2 for value in values[:1]] for name, values in times.items()}
    assert benchmark_models.distillation_row(times) == [2000, 1000, 5000, 1.0, 2.0]


def test_only_distilled_models_are_compared_with_their_parts(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark_models.py", "--distillation", "--models", "dino"])
    with pytest.raises(SystemExit):
        benchmark_models.main()
    assert "--distillation takes only " in capsys.readouterr().err


def test_models_are_all_variants_and_each_familys_students():
    students = {f"{family}_{name}" for family in families.MODELS for name in ("r18", "r50_to_r18")}
    light = {f"{family}_{name}_light" for family in ("dino", "deformable_detr") for name in ("r18", "r50_to_r18")}
    assert set(benchmark_models.MODELS) == {*families.VARIANTS, *students, *light}
    assert benchmark_models.config_of("dino.5scale").model.encoder.num_levels == 5
    alone, distilled = (benchmark_models.config_of(f"dab_detr_{name}") for name in ("r18", "r50_to_r18"))
    assert alone.model == distilled.model
    assert "distillation" not in alone
    assert distilled.distillation.embedding == "random"  # which needs no calibration


def test_every_model_is_measured_in_its_own_process(monkeypatch, capsys):
    commands = []

    def run(command, **_):
        commands.append(command)
        number = float(len(commands))
        keys = ["parameters", "gflops", "product_rate"]
        keys += [f"{run}_{what}" for run in ("inference", "training") for what in ("ms", "share", "mib")]
        return subprocess.CompletedProcess(command, 0, "a warning\n" + json.dumps(dict.fromkeys(keys, number)))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["benchmark_models.py", "--models", "dino", "dab_detr.dc5"])
    benchmark_models.main()
    assert [command[-2:] for command in commands] == [["--models", "dino"], ["--models", "dab_detr.dc5"]]
    assert all("--alone" in command for command in commands)
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert [[cell.strip() for cell in row.split("|")][1:4] for row in rows] == [
        ["dino", "0.00", "1.0"],
        ["dab_detr.dc5", "0.00", "2.0"],
    ]
