"""Checkpoints in the names of detrex and of the official repositories, of every family and variant."""

import argparse
import logging
import os

import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from omegaconf import OmegaConf

from clockdistill.engine import load_config
from clockdistill.errors import UserError
from clockdistill.modeling.weights import load_weights
from helpers.foreign_names import (
    SETTINGS,
    SOURCES,
    averaged,
    detector,
    detrex_dab_detr,
    detrex_deformable_detr,
    written,
)
from helpers.models import CONFIGS, VARIANTS, random_batch

OBJECTS = {"allow_objects": True}
EVERY = pytest.mark.parametrize(
    ("source", "variant"), [(source, variant) for source in SOURCES for variant in VARIANTS]
)
FAMILIES = pytest.mark.parametrize(
    ("source", "variant"),
    [(source, variant) for source in SOURCES for variant in ("dino", "deformable_detr.two_stage", "dab_detr")],
)
LISTED_HEADS = pytest.mark.parametrize(
    ("source", "variant"),
    [(source, variant) for source in SOURCES for variant in ("dino", "deformable_detr.two_stage")],
)


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """fvcore's warnings of what did not match."""
    monkeypatch.setattr(logging.getLogger("fvcore"), "propagate", True)


@torch.no_grad()
def detect(model):
    """Predictions of all decoder layers on images of two sizes."""
    images = model.preprocess(random_batch(sizes=((64, 96), (96, 70))))
    memory = model.encode(images)
    return model.decode(memory, model.propose(memory))


def same(model, source):
    torch.testing.assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)


@EVERY
def test_a_checkpoint_is_loaded_in_full(tmp_path, source, variant):
    theirs = detector(source, variant, seed=1)
    path = tmp_path / "checkpoint.pth"
    args = argparse.Namespace(backbone="resnet50", lr_drop_list=[33, 45])
    torch.save({"model": written(source, variant, theirs), "epoch": 11, "args": args}, path)
    model = detector(source, variant, seed=2)
    expected = detect(theirs)
    assert not torch.equal(detect(model).logits, expected.logits)
    assert load_weights(model, str(path), strict=True) == ([], [], [])
    same(model, theirs)
    torch.testing.assert_close(detect(model), expected, rtol=0, atol=0)

    # and as a file of our own
    torch.save({"model": model.state_dict()}, path)
    again = detector(source, variant, seed=3)
    assert load_weights(again, str(path), strict=True) == ([], [], [])
    torch.testing.assert_close(detect(again), expected, rtol=0, atol=0)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("depth", [50, 101])
def test_deeper_backbones_have_the_same_names(tmp_path, source, depth):
    theirs = detector(source, seed=1, depth=depth)
    torch.save({"model": written(source, "dino", theirs)}, tmp_path / "deep.pth")
    model = detector(source, seed=2, depth=depth)
    assert load_weights(model, str(tmp_path / "deep.pth"), strict=True) == ([], [], [])
    same(model, theirs)


@pytest.mark.parametrize("source", SOURCES)
def test_bare_weights_of_a_distributed_run_load_too(tmp_path, source):
    theirs = detector(source, seed=1)
    weights = written(source, "dino", theirs)
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "bare.pth")
    model = detector(source, seed=2)
    assert load_weights(model, str(tmp_path / "bare.pth"), strict=True) == ([], [], [])
    same(model, theirs)


@pytest.mark.parametrize(
    ("source", "variant"),
    [("official", "dino"), *[("detrex", variant) for variant in VARIANTS]],
)
def test_averaged_weights_are_preferred(tmp_path, caplog, source, variant):
    caplog.set_level(logging.INFO)
    key = {"detrex": "ema_state", "official": "ema_model"}[source]
    raw, mean = detector(source, variant, seed=1), detector(source, variant, seed=2)
    content = {"model": written(source, variant, raw), key: averaged(source, variant, mean)}
    torch.save(content, tmp_path / "averaged.pth")
    model = detector(source, variant, seed=3)
    assert load_weights(model, str(tmp_path / "averaged.pth"), strict=True) == ([], [], [])
    same(model, mean)
    assert key in caplog.text


@FAMILIES
def test_heads_of_another_number_of_classes_stay_fresh(tmp_path, caplog, source, variant):
    theirs = detector(source, variant, seed=1, num_classes=5)
    torch.save({"model": written(source, variant, theirs)}, tmp_path / "five.pth")
    model = detector(source, variant, seed=2)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, str(tmp_path / "five.pth"))
    names = {name for name in fresh if name.startswith(("class_head.", "class_heads.", "denoising.label_embedding."))}
    assert len(names) >= 2
    assert set(report.unset) == names
    assert report.unexpected == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh[name] if name in names else theirs.state_dict()[name]), name
    assert all(name in caplog.text for name in names)
    with pytest.raises(UserError, match=rf"five\.pth leaves {len(names)} of"):
        load_weights(model, str(tmp_path / "five.pth"), strict=True)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("dino.5scale", "dab_detr.dc5")])
def test_of_the_official_91_classes_cocos_80_are_taken(tmp_path, variant):
    theirs = detector("official", variant, seed=1, num_classes=91)
    torch.save({"model": written("official", variant, theirs)}, tmp_path / "coco.pth")
    model = detector("official", variant, seed=2, num_classes=80)
    assert load_weights(model, str(tmp_path / "coco.pth"), strict=True) == ([], [], [])
    ids = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
    assert (len(ids), ids[0], ids[-1]) == (80, 1, 90)
    with torch.no_grad():
        memory = theirs.encode(theirs.preprocess(random_batch()))
        queries = theirs.propose(memory)
        expected, predictions = theirs.decode(memory, queries), model.decode(memory, queries)
        torch.testing.assert_close(predictions.logits, expected.logits[..., ids])
        torch.testing.assert_close(predictions.boxes, expected.boxes)
        # DINO chooses cells by their best class, and here by one that no category has; the others choose the same ones
        if model.label_embedding is None:
            torch.testing.assert_close(model.propose(memory).reference, queries.reference)
            torch.testing.assert_close(model.propose(memory).content, queries.content)
    if model.label_embedding is not None:
        torch.testing.assert_close(model.label_embedding.weight, theirs.label_embedding.weight[ids])


@LISTED_HEADS
def test_a_shallower_decoder_keeps_the_proposals_heads(tmp_path, source, variant):
    theirs = detector(source, variant, seed=1, decoder_layers=3)
    # last comes what must not take the place of the proposals' heads
    weights = dict(sorted(written(source, variant, theirs).items(), reverse=True))
    torch.save({"model": weights}, tmp_path / "deep.pth")
    model = detector(source, variant, seed=2, decoder_layers=1)
    report = load_weights(model, str(tmp_path / "deep.pth"))
    assert report.unset == []
    assert "transformer.decoder.layers.1." in str(report.unexpected)
    assert not any(name.startswith("transformer.decoder.layers.0.") for name in report.unexpected)
    for ours, head in ((0, 0), (1, 3)):
        assert torch.equal(model.class_heads[ours].weight, theirs.class_heads[head].weight)
        assert torch.equal(model.box_heads[ours].layers[2].bias, theirs.box_heads[head].layers[2].bias)


@FAMILIES
def test_what_is_unknown_is_said_by_the_files_name_for_it(tmp_path, caplog, source, variant):
    model = detector(source, variant)
    weights = written(source, variant, model)
    weights["transformer.two_stage_wh_embedding.weight"] = torch.zeros(1, 2)
    lost = next(name for name in weights if name.startswith("transformer.encoder.layers.0.") and "norm" in name)
    del weights[lost]
    torch.save({"model": weights}, tmp_path / "odd.pth")
    report = load_weights(model, str(tmp_path / "odd.pth"))
    assert report == (["encoder.layers.0.norm1.weight"], ["transformer.two_stage_wh_embedding.weight"], [])
    assert "two_stage_wh_embedding" in caplog.text
    assert "encoder.layers.0.norm1.weight" in caplog.text


@FAMILIES
def test_what_has_no_parameter_is_warned_of_where_it_differs(tmp_path, caplog, source, variant):
    path = str(tmp_path / "checkpoint.pth")
    torch.save({"model": written(source, variant, detector(source, variant))}, path)
    model = detector(source, variant)
    load_weights(model, path)
    assert "unless the checkpoint was trained so" not in caplog.text
    model.position_embedding.temperature, model.position_embedding.offset = 7, -0.25
    (temperature, offset), *eps = SETTINGS[source, variant.split(".")[0]].values()
    expected = {"position_embedding.temperature": temperature, "position_embedding.offset": offset}
    if eps:
        model.decoder.eps = 0.5
        expected["decoder.eps"] = eps[0]
    load_weights(model, path)
    for key, value in expected.items():
        assert f"set model.{key}={value}" in caplog.text


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("refine", [False, True])
def test_refinement_that_the_config_lacks_is_warned_of(tmp_path, caplog, source, refine):
    """The two variants' parameters have the same names and shapes."""
    variants = {False: "deformable_detr", True: "deformable_detr.refine"}
    path = str(tmp_path / "checkpoint.pth")
    torch.save({"model": written(source, variants[refine], detector(source, variants[refine]))}, path)
    load_weights(detector(source, variants[refine]), path)
    assert "refine" not in caplog.text
    load_weights(detector(source, variants[not refine]), path)
    assert f"set model.decoder.refine={refine}" in caplog.text


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("deformable_detr.two_stage", lambda model: detrex_deformable_detr(model, proposal_norm="enc_outpout_norm")),
        ("dab_detr", lambda model: detrex_dab_detr(model, anchors="refpoint_embed")),
    ],
    ids=["enc_outpout_norm", "refpoint_embed"],
)
def test_detrexs_early_names_are_known_too(tmp_path, variant, names):
    theirs = detector("detrex", variant, seed=1)
    state = theirs.state_dict()
    torch.save({"model": {name: state[ours] for name, ours in names(theirs)}}, tmp_path / "early.pth")
    model = detector("detrex", variant, seed=2)
    assert load_weights(model, str(tmp_path / "early.pth"), strict=True) == ([], [], [])
    same(model, theirs)


def test_a_config_has_detrexs_position_encoding():
    overrides = ["model.position_embedding.temperature=10000", "model.position_embedding.offset=-0.5"]
    encoding = load_config(str(CONFIGS / "dino" / "dino_r50_coco_12ep.py"), overrides).model.position_embedding
    assert (encoding.temperature, encoding.offset) == SETTINGS["detrex", "dino"]["position_embedding"]


def test_a_training_checkpoint_with_config_lists_in_the_optimizer_is_read(tmp_path):
    """As detrex's are, whose configs give AdamW's betas by a list of omegaconf's."""
    theirs = detector("detrex", seed=1)
    config = OmegaConf.create({"betas": (0.9, 0.999), "eps": [1e-8], "params": {"lr": 1e-4}}, flags=OBJECTS)
    group = {"lr": 1e-4, "betas": config.betas, "defaults": config, "params": [0]}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [group]}
    content = {"model": written("detrex", "dino", theirs), "optimizer": optimizer, "iteration": 3}
    torch.save(content, tmp_path / "training.pth")
    model = detector("detrex", seed=2)
    assert load_weights(model, str(tmp_path / "training.pth"), strict=True) == ([], [], [])
    same(model, theirs)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path):
    weights = written("official", "dino", detector("official"))
    for key, content in {
        "beside": {"model": weights, "args": Malicious(str(tmp_path / "ran"))},
        "inside": {"model": weights, "args": argparse.Namespace(hook=Malicious(str(tmp_path / "ran")))},
        "config": {"model": weights, "betas": OmegaConf.create([Malicious(str(tmp_path / "ran"))], flags=OBJECTS)},
    }.items():
        torch.save(content, tmp_path / f"{key}.pth")
        with pytest.raises(
            UserError, match=rf"{key}\.pth is not read, since it holds more than tensors \(\w+\.mkdir\)"
        ):
            load_weights(detector("official"), str(tmp_path / f"{key}.pth"))
    assert not (tmp_path / "ran").exists()
