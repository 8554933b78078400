"""The benchmark of exported models, run on a small one."""

import pytest

import benchmark_export
from helpers.models import random_batch, tiny


def test_every_export_is_timed(tmp_path):
    for package in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason="pip install -e .[export]")
    images = [x["image"].numpy() for x in random_batch(((64, 96), (64, 96)), (1, 1))]
    models = benchmark_export.export(tiny("dab_detr", decoder_layers=1).eval(), images, tmp_path)
    assert list(models) == [f"{runtime} {x}" for runtime in ("ONNX Runtime", "OpenVINO") for x in ("fp32", "int8")]
    times = benchmark_export.measure(models, images[0], rounds=1)
    assert list(times) == list(models)
    assert min(times.values()) > 0


def test_ratios_say_how_many_times_as_fast_a_row_is():
    *_, slow, fast = benchmark_export.table({"PyTorch": 300.0, "int8": 200.0}).splitlines()
    assert [cell.strip() for cell in slow.strip("|").split("|")] == ["PyTorch", "300", "1.00", "0.67"]
    assert [cell.strip() for cell in fast.strip("|").split("|")] == ["int8", "200", "1.50", "1.00"]
