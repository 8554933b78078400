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
    names = cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names
    if not names[0].startswith("coco:"):  # files that the user names
        assert {len(MetadataCatalog.get(name).thing_classes) for name in names} == {model.num_classes}
    assert Path(cfg.train.output_dir).name == path.stem
    if "_to_" in path.stem:
        teacher = load_config(cfg.distillation.teacher.config)
        taught_by = build(teacher)
        assert taught_by.num_classes == model.num_classes
        assert taught_by.num_levels == model.num_levels
        wanted = "calibrated" if taught_by.label_embedding is None else "denoising"
        assert cfg.distillation.embedding == wanted
        assert teacher.dataloader.train.dataset.names == names[0]


def test_the_student_of_a_pair_is_the_plain_one():
    """Else a comparison of the two would compare more than distillation."""
    for path in PATHS:
        if "_to_" in path.stem:
            plain = path.with_name(f"{path.parent.name}_{path.stem.split('_to_')[1]}.py")
            distilled, alone = load_config(str(path)), load_config(str(plain))
            for section in ("model", "optimizer", "lr_multiplier"):
                assert distilled[section] == alone[section]
            assert distilled.dataloader.train == alone.dataloader.train
            for key in ("max_iter", "init_checkpoint", "seed", "clip_grad"):
                assert distilled.train[key] == alone.train[key]


@pytest.mark.parametrize(
    ("config", "epochs", "rates"),
    [
        ("dino_r50_coco_12ep", 12, {1e-4, 1e-5}),
        ("dab_detr_r50_coco_50ep", 50, {1e-4, 1e-5}),
        ("deformable_detr_r50_coco_50ep", 50, {2e-4, 2e-5}),
    ],
)
def test_a_familys_schedule_is_its_papers(config, epochs, rates):
    cfg = load_config(str(next(path for path in PATHS if path.stem == config)))
    images = cfg.train.max_iter * cfg.dataloader.train.total_batch_size
    assert images / 118287 == pytest.approx(epochs, rel=1e-3)
    cfg.optimizer.params.model = model = build(cfg)
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
