"""What is measured does not depend on how the images are dealt out."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

import make_street_scenes
import train_net
from clockdistill.data import DetectionMapper
from clockdistill.engine import do_test, load_config, load_model
from clockdistill.engine.train import without_nan
from helpers.models import CONFIGS

CONFIG = CONFIGS / "dino" / "dino_r18_small_street.py"
CHECKPOINT = CONFIGS.parent / "demo" / "dino_r18_small_street.pth"


class TwoSizes(DetectionMapper):
    """Every second image smaller than the others."""

    def __call__(self, dataset_dict):
        height = 72 if dataset_dict["image_id"] % 2 else 96
        self.augmentations = T.AugmentationList([T.ResizeShortestEdge(height)])
        return super().__call__(copy.deepcopy(dataset_dict))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Seven images: no two processes have as many, and no two batches."""
    folder = tmp_path_factory.mktemp("scenes")
    make_street_scenes.make(folder / "street_scenes", train=1, val=7, seed=0, size=(320, 96), jobs=1)
    return folder


@pytest.fixture
def street(scenes, monkeypatch):
    """A config of those images, and a detector that knows what is on them."""
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
    assert {task: written[task] for task in expected} == without_nan(expected)
    for name in ("coco_instances_results.json", "street_val_results/000007.txt"):
        files = [folder / name for folder in (tmp_path / "one", tmp_path / "two" / "teacher")]
        assert files[0].read_bytes() == files[1].read_bytes()
