"""`--eval-only` and `--compare`: results do not depend on batches or processes, and costs are those of each model."""

import argparse
import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import transforms as T

import make_street_scenes
import train_net
from clockdistill.data import DetectionMapper
from clockdistill.engine import compare, do_test, eval_only, evaluation, load_config, load_model
from clockdistill.errors import UserError
from clockdistill.evaluation.results import nan_to_none
from helpers import toy_config as toy_config_module
from helpers.models import CONFIGS
from helpers.toy import ToyDetector, run_toy, toy_config

CONFIG = CONFIGS / "dino" / "dino_r18_small_street.py"
CHECKPOINT = CONFIGS.parent / "demo" / "dino_r18_small_street.pth"
TOY_CONFIG = toy_config_module.__file__
SHORT = ("train.benchmark.images=3", "train.benchmark.rounds=2")


class TwoSizes(DetectionMapper):
    """Resizes every second image to a smaller size."""

    def __call__(self, dataset_dict):
        height = 72 if dataset_dict["image_id"] % 2 else 96
        self.augmentations = T.AugmentationList([T.ResizeShortestEdge(height)])
        return super().__call__(copy.deepcopy(dataset_dict))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Seven images, which no number of processes or batches divides evenly."""
    folder = tmp_path_factory.mktemp("scenes")
    make_street_scenes.make(folder / "street_scenes", train=1, val=7, seed=0, size=(320, 96), jobs=1)
    return folder


@pytest.fixture
def street(scenes, monkeypatch):
    """A function from an output folder to a config with a detector trained on such images."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def config(output_dir):
        return load_config(str(CONFIG), [f"train.init_checkpoint='{CHECKPOINT}'", f"train.output_dir='{output_dir}'"])

    yield config
    torch.set_num_threads(threads)


def test_results_do_not_depend_on_the_batch_size(street, tmp_path):
    cfg = street(tmp_path)
    cfg.dataloader.test.mapper = L(TwoSizes)(is_train=False, augmentations=[], image_format="RGB")
    model = load_model(cfg).cpu()
    results = {}
    for batch_size in (1, 2, 3):
        cfg.dataloader.test.batch_size = batch_size
        results[batch_size] = json.dumps(do_test(cfg, model))
    assert 10 < json.loads(results[1])["bbox"]["AP"] < 100
    assert results[1] == results[2] == results[3]
    assert not model.training


def test_results_do_not_depend_on_the_number_of_processes(street, scenes, tmp_path):
    cfg = street(tmp_path / "one")
    expected = do_test(cfg, load_model(cfg).cpu())
    flags = ["--eval-only", "--num-gpus", "2", "--dist-url", "auto", "--compare", f"teacher={CONFIG}:{CHECKPOINT}"]
    overrides = [f"train.output_dir={tmp_path / 'two'}", "train.benchmark.images=1", "train.benchmark.rounds=1"]
    done = subprocess.run(
        [sys.executable, train_net.__file__, "--config-file", str(CONFIG), *flags, *overrides],
        env=os.environ | {"DETECTRON2_DATASETS": str(scenes), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "two" / "comparison.json").read_text())["teacher"]
    assert written["bbox"]["AP"] > 10
    assert {task: written[task] for task in expected} == nan_to_none(expected)
    for name in ("coco_instances_results.json", "street_val_results/000007.txt"):
        files = [folder / name for folder in (tmp_path / "one", tmp_path / "two" / "teacher")]
        assert files[0].read_bytes() == files[1].read_bytes()


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
    # per channel: three 3x3 kernels and a bias, two of batch norm, one of the head; and the head's bias
    assert cost["parameters"] == 4 * 28 + 8 + 5
    assert cost["image_size"] == [8, 8]
    # at each of 6x6 cells and per channel: 27 for the convolution, 2 for batch norm, 1 for the head
    assert cost["gflops"] * 1e9 == pytest.approx(36 * 4 * (27 + 2 + 1))
    assert 0 < cost["ms_per_image"] <= cost["ms_per_image_p95"]
    assert results["environment"]["torch"] == torch.__version__
    assert results["environment"]["threads"] == torch.get_num_threads()


def test_config_is_saved_except_in_the_folder_of_a_training(tmp_path):
    checkpoint = save_model(toy_config(tmp_path), tmp_path / "model.pth", 0)
    for seed in (1, 2):
        eval_only(toy_config(tmp_path, checkpoint, "train.benchmark=null", f"train.seed={seed}"))
        assert load_config(str(tmp_path / "config.yaml")).train.seed == seed
    (tmp_path / "train.lock").touch()
    eval_only(toy_config(tmp_path, checkpoint, "train.benchmark=null", "train.seed=3"))
    assert load_config(str(tmp_path / "config.yaml")).train.seed == 2


def test_benchmark_is_optional(tmp_path):
    checkpoint = save_model(toy_config(tmp_path), tmp_path / "model.pth", 0)
    assert set(eval_only(toy_config(tmp_path, checkpoint, "train.benchmark=null"))) == {"bbox"}


def autocast_dtypes(monkeypatch):
    """Record the precision of each evaluated batch, or None for float32."""
    dtypes = []
    forward = ToyDetector.forward

    def record(self, batch):
        if not self.training:
            dtypes.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return forward(self, batch)

    monkeypatch.setattr(ToyDetector, "forward", record)
    return dtypes


def test_evaluation_has_the_precision_of_the_config(tmp_path, monkeypatch):
    dtypes = autocast_dtypes(monkeypatch)
    checkpoint = save_model(toy_config(tmp_path), tmp_path / "model.pth", 0)
    scores = {}
    for enabled, dtype in (False, None), (True, torch.bfloat16):
        dtypes.clear()
        scores[dtype] = eval_only(toy_config(tmp_path, *SHORT, checkpoint, f"train.amp.enabled={enabled}"))
        assert set(dtypes) == {dtype}
    exact, rounded = (results["bbox"]["AP"] for results in scores.values())
    assert exact != rounded
    assert exact == pytest.approx(rounded, rel=0.02)


def test_evaluation_in_training_has_the_precision_of_the_config(tmp_path, monkeypatch):
    dtypes = autocast_dtypes(monkeypatch)
    run_toy(toy_config(tmp_path, "train.max_iter=1", "train.amp.enabled=True"))
    assert set(dtypes) == {torch.bfloat16}


def test_evaluation_compiles_the_model_if_the_config_says_so(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(ToyDetector, "compile", lambda self: compiled.append(self))
    checkpoint = save_model(toy_config(tmp_path), tmp_path / "model.pth", 0)
    eval_only(toy_config(tmp_path, *SHORT, checkpoint))
    assert not compiled
    eval_only(toy_config(tmp_path, *SHORT, checkpoint, "train.compile=True"))
    assert len(compiled) == 1


def test_compared_results_equal_those_of_each_model_alone(tmp_path, caplog):
    cfg = toy_config(tmp_path, *SHORT)
    wide = toy_config(tmp_path, "model.channels=9")
    save_model(cfg, tmp_path / "a.pth", 1)
    save_model(wide, tmp_path / "b.pth", 2)
    config = tmp_path / "wide.py"
    config.write_text("from helpers.toy_config import *\nmodel.channels = 9\n")
    with caplog.at_level("INFO", logger="clockdistill"):
        results = compare(cfg, [f"plain={TOY_CONFIG}:{tmp_path / 'a.pth'}", f"wide one={config}:{tmp_path / 'b.pth'}"])

    assert list(results) == ["plain", "wide one"]
    assert json.loads((tmp_path / "comparison.json").read_text()) == results
    for name, model_cfg, checkpoint in (("plain", cfg, "a.pth"), ("wide one", wide, "b.pth")):
        assert json.loads((tmp_path / name / "results.json").read_text()) == results[name]
        model_cfg.train.update(init_checkpoint=str(tmp_path / checkpoint), benchmark=None)
        assert results[name]["bbox"] == eval_only(model_cfg)["bbox"]
    assert results["wide one"]["benchmark"]["parameters"] > results["plain"]["benchmark"]["parameters"]
    assert results["plain"]["bbox"]["AP"] != results["wide one"]["bbox"]["AP"]
    assert "differences from plain" in caplog.text


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["model.pth"], r"cannot parse --compare 'model\.pth': write NAME=config\.py:checkpoint\.pth"),
        ([f"../up={TOY_CONFIG}:model.pth"], r"--compare '\.\./up' is not a valid folder name"),
        (["a=none.py:model.pth"], r"config file none\.py does not exist"),
        ([f"a={TOY_CONFIG}:none.pth"], r"none\.pth"),
    ],
)
def test_wrong_models_are_errors(tmp_path, models, message):
    with pytest.raises(UserError, match=message):
        compare(toy_config(tmp_path), models)
    assert not list(tmp_path.rglob("*.json"))


def test_compared_models_have_the_number_of_classes_of_the_config(tmp_path, monkeypatch):
    config = str(CONFIGS / "dino" / "dino_r18_tiny_custom.py")
    cfg = load_config(config, ["model.num_classes=7", f"train.output_dir={tmp_path}"])
    compared = {}
    monkeypatch.setattr(evaluation, "_evaluate", lambda output, cfgs: compared.update(cfgs) or {})
    compare(cfg, [f"student={config}:model.pth"])
    assert compared["student"].model.num_classes == 7


def test_compare_needs_eval_only():
    with pytest.raises(UserError, match=r"add --eval-only"):
        train_net.main(argparse.Namespace(compare=["a=b.pth"], eval_only=False))
