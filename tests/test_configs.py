"""Every config that is shipped can be built, and fits the teacher and the data that it names."""

import functools
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog

import clockdistill.data  # noqa: F401  registers the data sets
from clockdistill.distillation.hook import pair_levels
from clockdistill.engine import load_config
from helpers.models import CONFIGS

PATHS = sorted(path for path in CONFIGS.rglob("*.py") if path.parent.name != "data" and "common" not in path.parts)


@functools.cache
def load(path):
    """A config and its model, without memory for the weights; a teacher serves several students."""
    cfg = load_config(path)
    with torch.device("meta"):
        return cfg, instantiate(cfg.model)


def plain_name(path):
    """Of the config of the same detector without distillation. A pair from two families names both."""
    student = path.stem.split("_to_")[-1]
    family = path.parent.name
    return student if student.startswith(family) else f"{family}_{student}"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_config(path):
    cfg, model = load(str(path))
    names = cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names
    if not names[0].startswith("coco:"):  # files that the user names
        assert {len(MetadataCatalog.get(name).thing_classes) for name in names} == {model.num_classes}
    assert Path(cfg.train.output_dir).name == path.stem
    depth = int(re.search(r"_r(\d+)", plain_name(path))[1])
    assert cfg.model.backbone.depth == depth
    if "download.pytorch.org" in cfg.train.init_checkpoint:
        assert f"/resnet{depth}-" in cfg.train.init_checkpoint
    if "_to_" in path.stem:
        teacher, taught_by = load(cfg.distillation.teacher.config)
        assert taught_by.num_classes == model.num_classes
        assert all(pair_levels(taught_by.strides, model.strides))
        assert Path(cfg.distillation.teacher.config).stem.startswith(path.stem.split("_to_")[0])
        wanted = "calibrated" if taught_by.label_embedding is None else "denoising"
        assert cfg.distillation.embedding == wanted
        assert teacher.dataloader.train.dataset.names == names[0]


def test_the_student_of_a_pair_is_the_plain_one():
    """Else a comparison of the two would compare more than distillation."""
    for path in PATHS:
        if "_to_" in path.stem:
            plain = path.with_name(f"{plain_name(path)}.py")
            (distilled, _), (alone, _) = load(str(path)), load(str(plain))
            for section in ("model", "optimizer", "lr_multiplier"):
                assert distilled[section] == alone[section]
            assert distilled.dataloader.train == alone.dataloader.train
            for key in ("max_iter", "init_checkpoint", "seed", "clip_grad"):
                assert distilled.train[key] == alone.train[key]


@pytest.mark.parametrize(
    ("config", "epochs", "drop", "rates"),
    [
        ("dino_r50_coco_12ep", 12, 11, {1e-4, 1e-5}),
        ("dino_r50_coco_24ep", 24, 20, {1e-4, 1e-5}),
        ("dab_detr_r50_coco_50ep", 50, 40, {1e-4, 1e-5}),
        ("deformable_detr_r50_coco_50ep", 50, 40, {2e-4, 2e-5}),
    ],
)
def test_a_familys_schedule_is_its_papers(config, epochs, drop, rates):
    path = str(next(path for path in PATHS if path.stem == config))
    # not the one that others read: the model goes into it
    cfg, (_, model) = load_config(path), load(path)
    images = cfg.train.max_iter * cfg.dataloader.train.total_batch_size
    assert images / 118287 == pytest.approx(epochs, rel=1e-3)
    multiplier = instantiate(cfg.lr_multiplier)
    assert [multiplier((drop + late) / epochs) for late in (-0.01, 0.01)] == [1, 0.1]
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {round(r, 9) for r in rate.values()} == rates
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        slow = "backbone" in name or (
            "deformable" in config and ("sampling_offsets" in name or "reference_points" in name)
        )
        assert rate[id(parameter)] == pytest.approx(min(rates) if slow else max(rates)), name
