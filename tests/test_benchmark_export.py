"""The benchmark of exported models, run on a small one."""

import pytest

import benchmark_export
from clockdistill.export import write_model
from helpers.models import CONFIGS, tiny


def test_measure_and_table(tmp_path):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="pip install -e .[export]")
    model, path = tiny("dab_detr", decoder_layers=1).eval(), tmp_path / "model.onnx"
    write_model(model, path, (64, 96), dict(class_names=["cup"], size=[64, 96]))
    times = benchmark_export.measure(model, [path], rounds=1)
    assert list(times) == ["PyTorch", str(path)]
    assert min(times.values()) > 0


def test_ratios_say_how_many_times_as_fast_a_row_is():
    *_, slow, fast = benchmark_export.table({"PyTorch": 300.0, "a.onnx": 200.0}).splitlines()
    assert [cell.strip() for cell in slow.strip("|").split("|")] == ["PyTorch", "300", "1.00", "0.67"]
    assert [cell.strip() for cell in fast.strip("|").split("|")] == ["a.onnx", "200", "1.50", "1.00"]


def test_arguments():
    args = benchmark_export.parse_args(["--config-file", str(CONFIGS), "--models", "a.onnx", "b.xml"])
    assert (args.threads, len(args.models)) == (2, 2)
