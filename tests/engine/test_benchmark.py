"""`--eval-only` and `--compare`: what is measured, of which model, and where it is written."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

import train_net
from clockdistill.engine import benchmark, compare, eval_only, load_config
from clockdistill.errors import UserError
from helpers.models import CONFIGS
from helpers.toy import toy_config

TOY = Path(__file__).with_name("toy_config.py")
SHORT = ("train.benchmark.images=3", "train.benchmark.rounds=2")


def save_model(cfg, path, seed):
    torch.manual_seed(seed)
    torch.save({"model": instantiate(cfg.model).state_dict()}, path)
    return f"train.init_checkpoint='{path}'"


def test_results_have_costs_and_environment(tmp_path):
    checkpoint = save_model(toy_config(tmp_path), tmp_path / "model.pth", 0)
    results = eval_only(toy_config(tmp_path, *SHORT, checkpoint))
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["bbox"]["AP-Tram"] is None
    cost = results["benchmark"]
    # three 3x3 kernels a channel and its bias, batch norm's two, the head's two
    assert cost["parameters"] == 4 * 28 + 8 + 5
    assert cost["image_size"] == [8, 8]
    # at each of 6x6 cells 27 a channel in the convolution, 2 in batch norm, 1 in the head
    assert cost["gflops"] * 1e9 == pytest.approx(36 * 4 * (27 + 2 + 1))
    assert 0 < cost["ms_per_image"] <= cost["ms_per_image_p95"]
    assert results["environment"]["torch"] == torch.__version__
    assert results["environment"]["threads"] == torch.get_num_threads()


def test_costs_may_be_left_out(tmp_path):
    checkpoint = save_model(toy_config(tmp_path), tmp_path / "model.pth", 0)
    assert set(eval_only(toy_config(tmp_path, checkpoint, "train.benchmark=null"))) == {"bbox"}


def test_comparison_is_of_each_model_by_itself(tmp_path, caplog):
    cfg = toy_config(tmp_path, *SHORT)
    wide = toy_config(tmp_path, "model.channels=9")
    save_model(cfg, tmp_path / "a.pth", 1)
    save_model(wide, tmp_path / "b.pth", 2)
    config = tmp_path / "wide.py"
    config.write_text("from helpers.toy_config import *\nmodel.channels = 9\n")
    with caplog.at_level("INFO", logger="clockdistill"):
        results = compare(cfg, [f"plain={TOY}:{tmp_path / 'a.pth'}", f"wide one={config}:{tmp_path / 'b.pth'}"])

    assert list(results) == ["plain", "wide one"]
    assert json.loads((tmp_path / "comparison.json").read_text()) == results
    for name, own, checkpoint in (("plain", cfg, "a.pth"), ("wide one", wide, "b.pth")):
        assert json.loads((tmp_path / name / "results.json").read_text()) == results[name]
        own.train.update(init_checkpoint=str(tmp_path / checkpoint), benchmark=None)
        assert results[name]["bbox"] == eval_only(own)["bbox"]
    assert results["wide one"]["benchmark"]["parameters"] > results["plain"]["benchmark"]["parameters"]
    assert results["plain"]["bbox"]["AP"] != results["wide one"]["bbox"]["AP"]
    assert "differences from plain" in caplog.text


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["model.pth"], r"cannot read --compare 'model\.pth': write NAME=config\.py:checkpoint\.pth"),
        ([f"../up={TOY}:model.pth"], r"results of --compare '\.\./up' go to a folder"),
        (["a=none.py:model.pth"], r"config file none\.py does not exist"),
        ([f"a={TOY}:none.pth"], r"none\.pth"),
    ],
)
def test_wrong_models_are_refused(tmp_path, models, message):
    with pytest.raises(UserError, match=message):
        compare(toy_config(tmp_path), models)
    assert not list(tmp_path.rglob("*.json"))


def test_models_that_are_compared_have_the_classes_of_the_test_set(tmp_path, monkeypatch):
    config = str(CONFIGS / "dino" / "dino_r18_tiny_custom.py")
    cfg = load_config(config, ["model.num_classes=7", f"train.output_dir={tmp_path}"])
    compared = {}
    monkeypatch.setattr(benchmark, "_evaluate", lambda cfgs: compared.update(cfgs) or {})
    compare(cfg, [f"student={config}:model.pth"])
    assert compared["student"].model.num_classes == 7


def test_comparison_is_for_evaluation_alone():
    with pytest.raises(UserError, match=r"add --eval-only"):
        train_net.main(argparse.Namespace(compare=["a=b.pth"], eval_only=False))
