import errno
import logging
import pickle
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from detectron2.config import LazyCall as L
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.layers import FrozenBatchNorm2d
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

import save_half
from clockdistill.engine import Checkpointer, EMAHook, PeriodicCheckpointer, load_config
from clockdistill.engine.checkpoint import inference_metadata, save_atomically
from clockdistill.errors import UserError
from clockdistill.modeling import build_resnet
from clockdistill.modeling.weights import load_weights
from helpers.models import CONFIGS, tiny
from helpers.toy import ToyDetector, run_toy, toy_config


def load(path):
    return torch.load(path, weights_only=True)


def test_model_file_has_no_training_state(tmp_path):
    run_toy(toy_config(tmp_path))
    saved = load(tmp_path / "model_final.pth")
    assert saved.keys() == {"model", "iteration", "metadata"}
    assert saved["iteration"] == 5
    assert saved["metadata"] == {}  # the toy has neither class names nor a mapper
    assert saved["model"].keys() == ToyDetector(channels=4).state_dict().keys()
    state = load(tmp_path / "model_0000005.resume.pth")
    assert state.keys() == {"trainer"}
    assert state["trainer"]["optimizer"]["state"]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("config", "resize"),
    [
        ("dino/dino_r50_coco_12ep.py", {"short_edge_length": 800, "max_size": 1333}),
        ("dino/dino_r50_kitti_12ep.py", None),
    ],
)
def test_metadata_survive_saving(tmp_path, config, resize):
    cfg = load_config(str(CONFIGS / config), ["dataloader.train.dataset.names=test_metadata"])
    MetadataCatalog.get("test_metadata").thing_classes = ["cat", "dog"]
    Checkpointer(ToyDetector(channels=4), str(tmp_path), metadata=inference_metadata(cfg)).save("model")
    MetadataCatalog.remove("test_metadata")
    assert load(tmp_path / "model.pth")["metadata"] == {"class_names": ["cat", "dog"], "resize": resize}


@pytest.mark.parametrize(
    "augmentations",
    [
        [L(T.ResizeShortestEdge)(short_edge_length=(600, 800))],
        [L(T.ResizeShortestEdge)(short_edge_length=800, interp=Image.NEAREST)],
        [L(T.Resize)(shape=(480, 640))],
        [L(T.ResizeShortestEdge)(short_edge_length=800), L(T.RandomFlip)()],
    ],
    ids=["random", "nearest", "resize", "flip"],
)
def test_other_test_augmentations_are_left_to_the_config(caplog, monkeypatch, augmentations):
    monkeypatch.setattr(logging.getLogger("clockdistill"), "propagate", True)
    mapper = {"augmentations": augmentations}
    cfg = OmegaConf.create({"dataloader": {"test": {"mapper": mapper}}}, flags={"allow_objects": True})
    assert inference_metadata(cfg) == {}
    assert "checkpoints and exported models can only store one" in caplog.text


@pytest.mark.parametrize("metadata", [{}, {"class_names": ["cat"], "resize": None}])
def test_half_precision_keeps_metadata(tmp_path, monkeypatch, metadata):
    model = ToyDetector(channels=4)
    Checkpointer(model, str(tmp_path), metadata=metadata).save("model")
    monkeypatch.setattr(sys, "argv", ["save_half.py", str(tmp_path / "model.pth"), str(tmp_path / "half.pth")])
    save_half.main()
    saved = load(tmp_path / "half.pth")
    assert saved["metadata"] == metadata
    expected = model.state_dict()
    assert saved["model"].keys() == expected.keys()
    for name, value in saved["model"].items():
        assert value.dtype == (torch.float16 if expected[name].is_floating_point() else expected[name].dtype)
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-6, check_dtype=False)


def test_old_checkpoints_are_deleted_with_their_training_state(tmp_path):
    run_toy(toy_config(tmp_path, "train.checkpointer.period=1", "train.checkpointer.max_to_keep=2"))
    names = ["model_0000004", "model_0000005"]
    expected = {name + suffix for name in names for suffix in (".pth", ".resume.pth")} | {"model_final.pth"}
    assert {p.name for p in tmp_path.glob("*.pth")} == expected


def test_checkpoints_of_interrupted_runs_count_as_old_ones(tmp_path):
    options = ["train.checkpointer.period=1", "train.checkpointer.max_to_keep=2"]
    run_toy(toy_config(tmp_path, *options, "train.max_iter=3"))
    run_toy(toy_config(tmp_path, *options, "dataloader.train.start=3"), resume=True)
    assert sorted(p.name for p in tmp_path.glob("model_0*[0-9].pth")) == ["model_0000004.pth", "model_0000005.pth"]


def test_failed_save_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    save_atomically({"a": torch.ones(2)}, str(path))

    def fail(data, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match=r"cannot write .*model\.pth: No space left on device; free some space, or "):
        save_atomically({"a": torch.zeros(2)}, str(path))
    monkeypatch.undo()
    assert load(path)["a"].tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("is_new", [True, False])
def test_a_model_file_that_cannot_be_written_leaves_no_half_pair(tmp_path, monkeypatch, is_new):
    checkpointer = Checkpointer(ToyDetector(channels=4), str(tmp_path), trainer=nn.Linear(1, 1))
    if not is_new:
        checkpointer.save("model_0000001", iteration=1)

    def fail(name, **kwargs):
        raise UserError("cannot write")

    monkeypatch.setattr(checkpointer, "save_model", fail)
    with pytest.raises(UserError, match="cannot write"):
        checkpointer.save("model_0000001", iteration=1)
    names = {"model_0000001.pth", "model_0000001.resume.pth", "last_checkpoint"}
    assert {path.name for path in tmp_path.iterdir()} == (set() if is_new else names)


def test_the_checkpoint_of_this_iteration_is_not_written_again(tmp_path):
    checkpointer = Checkpointer(ToyDetector(channels=4), str(tmp_path), trainer=nn.Linear(1, 1))
    hook = PeriodicCheckpointer(checkpointer, period=1)
    hook.trainer = SimpleNamespace(iter=3)
    path = Path(hook.save())
    before = path.stat().st_mtime_ns
    assert Path(hook.save()) == path == tmp_path / "model_0000003.pth"
    assert path.stat().st_mtime_ns == before
    hook.trainer.iter = 4
    hook.save()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000004.pth")


def test_model_file_has_averaged_weights(tmp_path):
    run_toy(toy_config(tmp_path, "train.ema.enabled=True", "train.ema.decay=0.15", "train.checkpointer.period=1"))
    weights = []
    for iteration in range(1, 6):
        saved = load(tmp_path / f"model_{iteration:07d}.pth")["model"]["head.weight"]
        raw = load(tmp_path / f"model_{iteration:07d}.resume.pth")["model"]["head.weight"]
        weights.append((saved, raw))
    for (previous, _), (saved, raw) in pairwise(weights):
        torch.testing.assert_close(saved, 0.15 * previous + 0.85 * raw)
        assert not torch.equal(saved, raw)


def test_average_of_weights_and_buffers():
    model = nn.BatchNorm1d(1)
    hook = EMAHook(model, decay=0.2)
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(model.weight, value)
        model.running_mean.fill_(10 * value)
        hook.after_step()
    # the decay is 2/11 in the second step, and its final value from the third
    expected = 0.2 * (2 / 11 * 1 + 9 / 11 * 2) + 0.8 * 4
    assert hook.model.weight.item() == pytest.approx(expected)
    assert hook.model.running_mean.item() == pytest.approx(10 * expected)


def test_average_forgets_the_initial_weights():
    """With the default decay, in as few steps as a short training has."""
    model = nn.Linear(1, 1)
    hook = EMAHook(model, decay=0.9998)
    for value in [100.0] + [1.0] * 300:
        nn.init.constant_(model.weight, value)
        hook.after_step()
    assert hook.model.weight.item() == pytest.approx(1, abs=0.01)


def test_resume_needs_both_files(tmp_path):
    run_toy(toy_config(tmp_path))
    (tmp_path / "model_0000005.resume.pth").unlink()
    with pytest.raises(UserError, match=r"model_0000005\.resume\.pth does not exist"):
        run_toy(toy_config(tmp_path), resume=True)


def test_resume_with_another_config_is_refused(tmp_path):
    run_toy(toy_config(tmp_path))
    with pytest.raises(UserError, match=r"model_0000005\.pth does not set"):
        run_toy(toy_config(tmp_path, "model.channels=5"), resume=True)
    cfg = toy_config(tmp_path, "optimizer.params.backbone_lr_factor=1")
    with pytest.raises(UserError, match=r"model_0000005\.resume\.pth does not match this config"):
        run_toy(cfg, resume=True)


def test_missing_and_invalid_files(tmp_path):
    model = ToyDetector(channels=4)
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist"):
        run_toy(toy_config(tmp_path, "train.init_checkpoint=nowhere.pth"))
    (tmp_path / "text.pth").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match=r"text\.pth cannot be read"):
        load_weights(model, str(tmp_path / "text.pth"))
    torch.save({"trainer": {"iteration": 3}}, tmp_path / "state.pth")
    with pytest.raises(UserError, match=r"state\.pth contains no model weights"):
        load_weights(model, str(tmp_path / "state.pth"))
    torch.save({"model": model.state_dict(), "args": tmp_path}, tmp_path / "code.pth")
    with pytest.raises(UserError, match=r"code\.pth is not safe to load, since it contains pathlib"):
        load_weights(model, str(tmp_path / "code.pth"))
    with pytest.raises(UserError, match="no checkpoint is given"):
        load_weights(model, "")


def test_mismatches_are_reported(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fvcore"), "propagate", True)
    model = ToyDetector(channels=4)
    weights = ToyDetector(channels=4).state_dict()
    del weights["head.bias"]
    weights["head.weight"] = torch.zeros(2, 4, 1, 1)
    weights["tail.weight"] = torch.zeros(1)
    torch.save({"model": weights}, tmp_path / "other.pth")
    report = load_weights(model, str(tmp_path / "other.pth"))
    assert report.missing == ["head.bias"]
    assert report.unexpected == ["tail.weight"]
    assert report.mismatched == [("head.weight", (2, 4, 1, 1), (1, 4, 1, 1))]
    assert sorted(report.unset) == ["head.bias", "head.weight"]
    assert "head.bias" in caplog.text
    assert "tail.weight" in caplog.text
    assert "(2, 4, 1, 1)" in caplog.text
    torch.testing.assert_close(model.backbone[0].weight.data, weights["backbone.0.weight"])
    with pytest.raises(UserError, match="does not set 2 parameters"):
        load_weights(model, str(tmp_path / "other.pth"), strict=True)


def test_the_number_of_classes_in_the_checkpoint_is_named(tmp_path):
    names = ["car", "van", "bus", "tram", "bike", "dog"]
    torch.save({"model": tiny(num_classes=6).state_dict(), "metadata": {"class_names": names}}, tmp_path / "six.pth")
    with pytest.raises(
        UserError, match=r"six\.pth has 6 classes \(car, van, bus, tram, bike, …\) and the model 3: set"
    ):
        load_weights(tiny(num_classes=3), str(tmp_path / "six.pth"), strict=True)


class WithBackbone(nn.Module):
    def __init__(self, depth, norm):
        super().__init__()
        self.backbone = build_resnet(depth, norm=norm, freeze_at=0, out_features=["res2", "res5"])


def randomize_batch_norm(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)


@pytest.mark.parametrize(
    ("depth", "norm"), [(18, "FrozenBN"), (18, "BN"), (50, "FrozenBN")], ids=["r18-frozen", "r18-bn", "r50-frozen"]
)
def test_torchvision_weights_give_torchvision_features(tmp_path, depth, norm):
    torch.manual_seed(0)
    reference = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    randomize_batch_norm(reference)
    torch.save(reference.state_dict(), tmp_path / "resnet.pth")
    model = WithBackbone(depth, norm).eval()
    report = load_weights(model, str(tmp_path / "resnet.pth"))
    assert not report.unset
    assert report.unexpected == ["fc.weight", "fc.bias"]

    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        res2 = reference.layer1(reference.maxpool(reference.relu(reference.bn1(reference.conv1(image)))))
        res5 = reference.layer4(reference.layer3(reference.layer2(res2)))
        features = model.backbone(image)
    torch.testing.assert_close(features["res2"], res2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features["res5"], res5, rtol=1e-4, atol=1e-4)


def test_model_zoo_pickle_loads_by_name_matching(tmp_path):
    torch.manual_seed(0)
    source = WithBackbone(18, "FrozenBN")
    weights = {name.removeprefix("backbone."): value.numpy() for name, value in source.state_dict().items()}
    data = {"model": weights, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(data))
    model = WithBackbone(18, "FrozenBN")
    assert not load_weights(model, str(tmp_path / "R-18.pkl")).unset
    torch.testing.assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_distributed_checkpoint_loads(tmp_path):
    model = ToyDetector(channels=4)
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "ddp.pth")
    assert not load_weights(ToyDetector(channels=4), str(tmp_path / "ddp.pth")).unset


def test_last_checkpoint_file_names_the_latest(tmp_path):
    checkpointer = Checkpointer(ToyDetector(channels=4), str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    checkpointer.save("model_0000002", iteration=2)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
