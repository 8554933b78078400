"""The check of exported full-size models, run on a small one."""

import pytest

import check_export
import families
from helpers.models import add_noise, random_batch, tiny

SIZE = (64, 96)


def test_differences_and_errors_are_reported(monkeypatch):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="pip install -e .[export]")
    model = tiny("dab_detr", decoder_layers=1).eval()
    images = [x["image"].numpy() for x in random_batch(sizes=(SIZE,), counts=(1,))]
    equal, text = check_export.check(model, ".onnx", images, SIZE)
    assert equal
    assert text.startswith("boxes differ by up to")
    write = check_export.write_model
    other = add_noise(tiny("dab_detr", decoder_layers=1), seed=5).eval()
    monkeypatch.setattr(check_export, "write_model", lambda _, *arguments: write(other, *arguments))
    equal, text = check_export.check(model, ".onnx", images, SIZE)
    assert not equal
    assert "does not compute what PyTorch computes" in text


def test_models_are_all_variants_and_each_familys_student():
    assert set(families.VARIANTS) < set(check_export.MODELS)
    assert {"dino_r18", "deformable_detr_r18", "dab_detr_r18"} < set(check_export.MODELS)
