"""Every config that is shipped can be built, and fits the teacher and the data that it names."""

from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog

import clockdistill.data  # noqa: F401  registers the data sets
from clockdistill.engine import load_config
from tiny import CONFIGS

PATHS = sorted(path for path in CONFIGS.rglob("*.py") if path.parent.name != "data" and "common" not in path.parts)


def build(cfg):
    with torch.device("meta"):
        return instantiate(cfg.model)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_config(path):
    cfg = load_config(str(path))
    model = build(cfg)
    # COCO's metadata belongs to Detectron2, which says "things" where KITTI's says classes
    names = cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names
    assert {len(MetadataCatalog.get(name).thing_classes) for name in names} == {model.num_classes}
    assert Path(cfg.train.output_dir).name == path.stem
    if "_to_" in path.stem:
        teacher = load_config(cfg.distillation.teacher.config)
        assert build(teacher).num_classes == model.num_classes
        assert teacher.dataloader.train.dataset.names == names[0]


def test_the_student_of_a_pair_is_the_plain_one():
    """Else a comparison of the two would compare more than distillation."""
    for path in PATHS:
        if "_to_" in path.stem:
            plain = path.with_name("dino_" + path.stem.split("_to_")[1] + ".py")
            distilled, alone = load_config(str(path)), load_config(str(plain))
            for section in ("model", "optimizer", "lr_multiplier"):
                assert distilled[section] == alone[section]
            assert distilled.dataloader.train == alone.dataloader.train
            for key in ("max_iter", "init_checkpoint", "seed", "clip_grad"):
                assert distilled.train[key] == alone.train[key]
