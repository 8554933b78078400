"""The code of docs/add_a_loss.md and docs/add_a_detector.md runs as it is printed there."""

import shutil
import sys

import pytest
import torch
from detectron2.config import instantiate

from clockdistill.engine import apply_overrides, load_config
from clockdistill.modeling import Outputs
from families import CONFIGS
from helpers.distillation import make_hook, save_teacher
from helpers.documents import ROOT, documented_files
from helpers.models import random_batch, shrink, tiny

DOCS = ROOT / "docs"


def files_of(page):
    return {str(path): code for path, code in documented_files((DOCS / page).read_text(encoding="utf-8"))}


@pytest.fixture
def cosine(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(files_of("add_a_loss.md")["projects/CLoCKDistill/my_losses.py"])
    monkeypatch.syspath_prepend(str(tmp_path))
    return "+distillation.losses.cosine={_target_: my_losses.CosineLoss, weight: 0.5}"


def test_the_documented_loss_is_added_by_an_override(tmp_path, cosine):
    command = (DOCS / "add_a_loss.md").read_text(encoding="utf-8")
    assert cosine.replace("0.5", "1.0") in command
    cfg = load_config(str(CONFIGS / "dino/dino_r18_small_to_tiny_street.py"))
    apply_overrides(cfg, [cosine])
    student, batch = tiny(), random_batch()
    hook = make_hook(student, save_teacher(tmp_path), cfg.distillation.losses)
    value = hook.compute_losses(student, batch)["loss_cosine_memory"]

    student.backbone.eval()
    memories = [model.encode(model.preprocess(batch)) for model in (hook.teacher, student)]
    (loss,) = [loss for name, loss in hook.losses.items() if name == "cosine"]
    alone = loss(*(Outputs(memory) for memory in memories), None)["memory"]
    pairs = [memory.tokens[~memory.padding_mask] for memory in memories]
    cosines = [(a @ b / (a.norm() * b.norm())).item() for a, b in zip(*pairs, strict=True)]
    assert alone.item() == pytest.approx(0.5 * (1 - sum(cosines) / len(cosines)), rel=1e-4)
    assert 0 < value.item() < 1


@pytest.fixture
def detector_config(tmp_path):
    """The config of the documented detector, in a copy of the package and the configs."""
    project = tmp_path / "projects" / "CLoCKDistill"
    shutil.copytree(CONFIGS, project / "configs")
    blocks = files_of("add_a_detector.md")
    for name, block in blocks.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
    assert len(blocks) == 3
    return project


def test_the_documented_detector_trains_and_is_distilled(detector_config, tmp_path, monkeypatch):
    # the installed package is not to be changed: import the new module under its full name from the copy
    import clockdistill.modeling

    monkeypatch.setattr(
        clockdistill.modeling,
        "__path__",
        [*clockdistill.modeling.__path__, str(detector_config / "clockdistill" / "modeling")],
    )
    monkeypatch.delitem(sys.modules, "clockdistill.modeling.dab_deformable_detr", raising=False)
    config = detector_config / "configs/dab_deformable_detr/dab_deformable_detr_r50_coco_50ep.py"
    cfg = load_config(str(config))
    torch.manual_seed(0)
    student = instantiate(shrink(cfg.model))
    hook = make_hook(student, save_teacher(tmp_path))
    losses = hook.compute_losses(student, random_batch())
    assert {"loss_class", "loss_giou_0", "loss_memory_object", "loss_logits_class"} <= losses.keys()
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
