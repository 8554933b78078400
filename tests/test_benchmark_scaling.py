"""The benchmark of growing sizes, on runs of known cost."""

import sys

import pytest
import torch

import benchmark_scaling
from clockdistill.evaluation.cost import peak_allocation

MEBI = 2**20


@pytest.mark.parametrize("power", [1, 2])
def test_measured_memory_has_the_exponent_of_what_a_run_allocates(power):
    def workload(factor):
        return lambda: torch.zeros(factor**power * MEBI, dtype=torch.uint8)

    milliseconds, mebibytes = benchmark_scaling.measure(workload, peak_allocation, rounds=1)
    assert mebibytes == [factor**power for factor in (1, 4, 16)]
    assert min(milliseconds) > 0
    assert benchmark_scaling.exponent(mebibytes) == pytest.approx(power)
    objects = [benchmark_scaling.peak_of_objects(lambda n=n: bytearray(n * MEBI)) / MEBI for n in (1, 4, 16)]
    assert objects == pytest.approx([1, 4, 16], rel=0.01)


def test_the_last_exponent_ignores_constant_parts():
    costs = [100 + factor**2 for factor in (1, 4, 160)]
    assert benchmark_scaling.exponent(costs) < benchmark_scaling.exponent(costs[-2:])
    assert benchmark_scaling.exponent([5.0, 1.0, 4.0][-2:]) == pytest.approx(1)


def test_one_quantity_grows_at_a_time(monkeypatch):
    def sizes(cfg, batch):
        instances = batch[0]["instances"]
        return len(batch), batch[0]["image"][0].numel(), len(instances), cfg.model.num_classes

    monkeypatch.setattr(benchmark_scaling, "distillation_step", sizes)
    tasks = benchmark_scaling.workloads("dino")
    for index, growth in enumerate(("images", "tokens", "objects", "classes")):
        workload, _ = tasks[growth]["distillation step"]
        small, large = workload(1), workload(16)
        assert [b / a for a, b in zip(small, large, strict=True)] == [16 if i == index else 1 for i in range(4)]


def test_table(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_scaling, "DATASET", 2)
    monkeypatch.setattr(benchmark_scaling, "FACTORS", (1, 2))
    monkeypatch.setattr(sys, "argv", ["", "--only", "images", "--families", "dino", "--rounds", "1"])
    threads = torch.get_num_threads()
    benchmark_scaling.main()
    torch.set_num_threads(threads)
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert [row[1].strip() for row in rows] == ["distillation step, dino", "KITTI's metric", "COCO matching"]
    assert all(float(cell) for row in rows for cell in row[3:5] + row[6:])
