"""Every shipped config can be built and fits its name, teacher and data; the documented overrides work."""

import ast
import functools
import inspect
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from omegaconf import OmegaConf

import clockdistill.data  # noqa: F401  registers the datasets
import families
from clockdistill.distillation.teacher import pair_levels
from clockdistill.engine import load_config
from clockdistill.evaluation.cost import blank_image, count_flops

PATHS = families.TRAINING_CONFIGS
DISTILLED = [path for path in PATHS if "_to_" in path.stem]
# those for COCO are the models for KITTI, and slower
LIGHT = [path for path in DISTILLED if "_light_" in path.stem and "_coco_" not in path.stem]


@functools.cache
def load(path):
    """A config and its model on the meta device. Cached, since several students share a teacher."""
    cfg = load_config(str(path))
    return cfg, build(cfg)


def build(cfg):
    with torch.device("meta"):
        return instantiate(cfg.model)


def find(name):
    return next(path for path in PATHS if path.stem == name)


def student_name(path):
    """Name of the config of the same model without distillation."""
    return re.sub(r"_[^_]+_to_", "_", path.stem)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_config_fits_its_name_and_data(path):
    cfg, model = load(path)
    names = cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names
    if not names[0].startswith("coco:"):  # the user's own files
        assert {len(MetadataCatalog.get(name).thing_classes) for name in names} == {model.num_classes}
    assert Path(cfg.train.output_dir).name == path.stem
    depth = int(re.search(r"_r(\d+)", student_name(path))[1])
    assert cfg.model.backbone.depth == depth
    if "download.pytorch.org" in cfg.train.init_checkpoint:
        assert f"/resnet{depth}-" in cfg.train.init_checkpoint


@pytest.mark.parametrize("path", DISTILLED, ids=lambda path: path.stem)
def test_teacher_fits_the_student(path):
    cfg, student = load(path)
    teacher_cfg, teacher = load(cfg.distillation.teacher.config)
    assert teacher.num_classes == student.num_classes
    assert all(pair_levels(teacher.strides, student.strides, cfg.distillation.level_pairing))
    assert Path(cfg.distillation.teacher.config).stem.startswith(path.stem.split("_to_")[0])
    assert cfg.distillation.embedding == ("calibrated" if teacher.label_embedding is None else "denoising")
    assert teacher_cfg.dataloader.train.dataset.names == cfg.dataloader.train.dataset.names


@pytest.mark.parametrize("path", DISTILLED, ids=lambda path: path.stem)
def test_distillation_is_the_only_difference_from_the_plain_student(path):
    (distilled, _), (plain, _) = load(path), load(path.with_name(f"{student_name(path)}.py"))
    for section in ("model", "optimizer", "lr_multiplier"):
        assert distilled[section] == plain[section]
    assert distilled.dataloader.train == plain.dataloader.train
    for key in ("max_iter", "init_checkpoint", "seed", "clip_grad"):
        assert distilled.train[key] == plain.train[key]


@pytest.mark.parametrize("family", families.MODELS)
@pytest.mark.parametrize("backbones", ["r50", "r18", "r50_to_r18"])
def test_a_family_has_the_same_models_for_coco_and_kitti(family, backbones):
    coco = families.coco_config(family, backbones)
    assert coco.with_name(coco.name.replace("coco", "kitti")) in PATHS


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_a_light_student_needs_a_third_of_its_teachers_flops(path):
    student, _ = load(path)
    teacher, _ = load(student.distillation.teacher.config)
    # KITTI's at half size, for speed: 0.17 instead of 0.19 (DINO), and 0.25 instead of 0.24 (Deformable DETR)
    image = blank_image(*((96, 320) if "_street" in path.stem else (188, 621)))
    student, teacher = (count_flops(instantiate(cfg.model).eval(), image) for cfg in (student, teacher))
    assert student <= teacher / 3


@pytest.mark.parametrize("family", ["dino", "deformable_detr"])
def test_the_light_models_for_coco_and_kitti_differ_in_classes_alone(family):
    coco = families.coco_config(family, "r50_to_r18_light")
    models = [load(coco.with_name(coco.name.replace("coco", data)))[0].model for data in ("coco", "kitti")]
    assert OmegaConf.merge(models[1], {"num_classes": 80}) == models[0]


@pytest.mark.parametrize("family", families.MODELS)
def test_configs_set_every_parameter_of_matcher_and_criterion(family):
    criterion = families.model_config(family).criterion
    for node in (criterion, criterion.matcher):
        assert node.keys() - {"_target_"} == inspect.signature(node._target_).parameters.keys()


def test_docstrings_state_the_right_strides():
    stated = {}
    for path in PATHS:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if strides := [int(stride) for stride in re.findall(r"stride (\d+)", docstring)]:
            stated[path.stem] = strides
            assert strides == load(path)[1].strides, path.stem
    assert stated == {"dab_detr_r18_small_street": [8]}


@pytest.mark.parametrize(
    ("config", "epochs", "drop", "rates"),
    [
        ("dino_r50_coco_12ep", 12, 11, {1e-4, 1e-5}),
        ("dab_detr_r50_coco_50ep", 50, 40, {1e-4, 1e-5}),
        ("deformable_detr_r50_coco_50ep", 50, 40, {2e-4, 2e-5}),
    ],
)
def test_schedule_is_the_papers(config, epochs, drop, rates):
    cfg, (_, model) = load_config(str(find(config))), load(find(config))
    check_schedule(cfg, 118287, epochs, drop)
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


def check_schedule(cfg, images, epochs, drop):
    assert cfg.train.max_iter * cfg.dataloader.train.total_batch_size / images == pytest.approx(epochs, rel=1e-3)
    multiplier = instantiate(cfg.lr_multiplier)
    assert [multiplier((drop + late) / epochs) for late in (-0.01, 0.01)] == [1, 0.1]


@pytest.mark.parametrize(("data", "images", "max_iter"), [("kitti", 5985, 8978), ("coco", 118287, 177430)])
def test_override_for_24_epochs(data, images, max_iter):
    schedule = [f"train.max_iter={max_iter}", "lr_multiplier.milestones=[20]", "lr_multiplier.num_updates=24"]
    check_schedule(load_config(str(find(f"dino_r50_{data}_12ep")), schedule), images, 24, 20)


RESNETS = "train.init_checkpoint=https://download.pytorch.org/models/resnet"


@pytest.mark.parametrize(
    ("family", "channels", "parameters"),
    [("dino", "512,1024,2048", 66.59), ("deformable_detr", "512,1024,2048", 59.01), ("dab_detr", "2048", 62.61)],
)
def test_overrides_for_a_resnet_101_that_teaches_a_resnet_50(tmp_path, family, channels, parameters):
    plain = str(families.coco_config(family))
    teacher = load_config(plain, ["model.backbone.depth=101", f"{RESNETS}101-63fe2227.pth"])
    # training saves its config, overrides included, in the output folder
    LazyConfig.save(teacher, str(tmp_path / "config.yaml"))
    overrides = [
        *("model.backbone.depth=50", f"model.neck.in_channels=[{channels}]", f"{RESNETS}50-0676ba61.pth"),
        f"distillation.teacher.config={tmp_path}/config.yaml",
    ]
    student = load_config(str(families.coco_config(family, "r50_to_r18")), overrides)
    assert student.model == load_config(plain).model
    assert student.train.init_checkpoint == load_config(plain).train.init_checkpoint
    teacher = build(load_config(student.distillation.teacher.config))
    assert sum(p.numel() for p in teacher.parameters()) / 1e6 == pytest.approx(parameters, abs=0.005)


@pytest.mark.parametrize("student", ["deformable_detr", "dab_detr"])
def test_overrides_for_a_teacher_of_another_family(student):
    overrides = [f"distillation.teacher.config={families.coco_config('dino')}", "distillation.embedding=denoising"]
    cfg = load_config(str(families.coco_config(student, "r50_to_r18")), overrides)
    _, teacher = load(Path(cfg.distillation.teacher.config))
    assert teacher.label_embedding is not None
    assert any(pair_levels(teacher.strides, build(cfg).strides))
