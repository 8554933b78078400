"""Calibration of target queries on a frozen teacher."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from clockdistill.distillation.calibration import calibrate
from clockdistill.distillation.target_queries import TargetEmbedding
from clockdistill.errors import UserError
from helpers.distillation import make_hook, save_teacher
from helpers.models import add_noise, random_batch, tiny

CALIBRATION = dict(batches=2, steps=3, lr=1e-2)


def decoding_error(teacher, embedding, batch):
    """Mean L1 distance of the last layer's boxes, and mean logit of the right class, for the objects of one image."""
    targets = teacher.targets(batch)
    (target,) = targets
    with torch.no_grad():
        memory = teacher.encode(teacher.preprocess(batch))
        logits, boxes = teacher.decode(memory, embedding(targets))
    right = logits[-1, 0, range(len(target.labels)), target.labels]
    return (boxes[-1, 0] - target.boxes).abs().mean(), right.mean()


@pytest.mark.parametrize("variant", ["deformable_detr", "deformable_detr.two_stage", "dab_detr"])
def test_the_teacher_decodes_a_calibrated_query_into_its_object(variant):
    teacher = add_noise(tiny(variant)).eval().requires_grad_(False)
    before = copy.deepcopy(teacher.state_dict())
    batch = random_batch(sizes=((64, 96),), counts=(3,))
    embedding = TargetEmbedding(teacher)
    box_error, right = decoding_error(teacher, embedding, batch)
    calibrate(embedding, teacher, [batch] * 10, batches=5, steps=8, lr=5e-2)
    fitted_box_error, fitted_right = decoding_error(teacher, embedding, batch)
    assert fitted_box_error < 0.7 * box_error
    assert fitted_right > right + 1
    assert not any(p.requires_grad for p in embedding.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def calibrated_hook(teacher, data, source=None, **settings):
    hook = make_hook(tiny("deformable_detr"), teacher, embedding="calibrated", calibration=CALIBRATION | settings)
    hook.calibrate(data, source)
    return hook


def test_a_calibration_is_saved_next_to_the_teacher_and_reused_until_the_teacher_changes(tmp_path):
    teacher = save_teacher(tmp_path, "deformable_detr")
    first = calibrated_hook(teacher, [random_batch()] * 2)
    assert (tmp_path / "teacher.targets.pth").is_file()
    reused = calibrated_hook(teacher, None)
    torch.testing.assert_close(reused.embedding.state_dict(), first.embedding.state_dict(), rtol=0, atol=0)

    weights = torch.load(teacher["checkpoint"], weights_only=True)
    weights["model"]["encoder.level_embed"] += 1
    torch.save(weights, teacher["checkpoint"])
    anew = calibrated_hook(teacher, [random_batch()] * 2)
    assert not torch.equal(anew.embedding.content.weight, first.embedding.content.weight)


@pytest.mark.parametrize("other", [dict(batches=1), dict(steps=4), dict(lr=2e-2)], ids=str)
def test_a_calibration_with_other_settings_is_not_reused(tmp_path, other):
    teacher, batch = save_teacher(tmp_path, "deformable_detr"), random_batch()
    first = calibrated_hook(teacher, [batch] * 2)
    anew = calibrated_hook(teacher, [batch] * 2, **other)
    assert not torch.equal(anew.embedding.content.weight, first.embedding.content.weight)


def test_a_calibration_on_other_data_is_not_reused(tmp_path, caplog):
    """As with a small set for a first try, which lacks classes."""
    teacher, batch = save_teacher(tmp_path, "deformable_detr"), random_batch(counts=(3, 3))
    few = [x | dict(instances=x["instances"][x["instances"].gt_classes == 1]) for x in batch]
    first = calibrated_hook(teacher, [few] * 2, dict(images=2))
    assert "calibration have no objects of class 0, 2: their target queries have no content" in caplog.text
    assert not first.embedding.content.weight[[0, 2]].any()
    assert calibrated_hook(teacher, None, dict(images=2)).embedding.content.weight[1].any()
    anew = calibrated_hook(teacher, [batch] * 2, dict(images=3))
    assert all(
        anew.embedding.content.weight[label].any() for label in torch.cat([x["instances"].gt_classes for x in batch])
    )


def test_a_file_without_a_calibration_is_refused(tmp_path):
    teacher = save_teacher(tmp_path, "deformable_detr")
    torch.save({"model": {}}, tmp_path / "teacher.targets.pth")
    with pytest.raises(UserError, match=r"teacher\.targets\.pth does not contain calibrated target queries"):
        calibrated_hook(teacher, None)


def test_a_calibration_that_cannot_be_saved_is_still_used(tmp_path, caplog):
    teacher = save_teacher(tmp_path, "deformable_detr")
    (tmp_path / f"teacher.targets.pth.{os.getpid()}.tmp").mkdir()
    hook = calibrated_hook(teacher, [random_batch()] * 2)
    assert "could not be saved" in caplog.text
    assert hook.embedding.content.weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, r"distillation\.calibration must have the keys batches, steps, lr"),
        (dict(batches=1, steps=1), r"distillation\.calibration must have the keys batches, steps, lr"),
        (CALIBRATION | dict(epochs=1), r"distillation\.calibration must have the keys batches, steps, lr"),
        (
            CALIBRATION | dict(steps=0),
            r"distillation\.calibration\.steps cannot be 0: it must be a whole number of at least 1",
        ),
        (CALIBRATION | dict(lr=float("nan")), r"distillation\.calibration\.lr cannot be nan"),
    ],
    ids=str,
)
def test_calibration_requires_its_settings(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        make_hook(tiny("dab_detr"), save_teacher(tmp_path, "dab_detr"), embedding="calibrated", calibration=settings)


def fit(rank, world, folder, batch):
    """An embedding fitted to this rank's share of the batch, saved by every rank."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
        torch.set_num_threads(1)
    teacher = add_noise(tiny("deformable_detr")).eval().requires_grad_(False)
    torch.manual_seed(rank)
    embedding = TargetEmbedding(teacher)
    share = len(batch) // world
    calibrate(embedding, teacher, [batch[rank * share : (rank + 1) * share]], batches=1, steps=3, lr=1e-2)
    torch.save(embedding.state_dict(), f"{folder}/{world}_{rank}.pth")
    if world > 1:
        dist.destroy_process_group()


def test_two_processes_fit_one_embedding_to_the_joint_batch(tmp_path):
    batch = random_batch(counts=(3, 1))
    fit(0, 1, str(tmp_path), batch)
    mp.spawn(fit, (2, str(tmp_path), batch), nprocs=2)
    joint, first, second = (torch.load(tmp_path / f"{n}.pth", weights_only=True) for n in ("1_0", "2_0", "2_1"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for name, value in joint.items():
        assert (first[name] - value).norm() <= 1e-2 * value.norm(), name
