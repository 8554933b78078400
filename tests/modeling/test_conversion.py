"""Checkpoints of detrex, of the models' authors and of torchvision, for every family and variant."""

import argparse
import logging
import os

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from omegaconf import OmegaConf

from clockdistill.engine import load_config
from clockdistill.errors import UserError
from clockdistill.modeling import build_resnet
from clockdistill.modeling.conversion import convert_state_dict
from clockdistill.modeling.weights import load_weights
from helpers.models import CONFIGS, VARIANTS, add_noise, model_config, random_batch, tiny
from helpers.reference_checkpoints import (
    LISTED_VARIANTS,
    SETTINGS,
    SOURCES,
    averaged_state_dict,
    family,
    reference_names,
    small_detector,
    source_state_dict,
)

OBJECTS = {"allow_objects": True}


def for_each_source(variants):
    pairs = [(source, variant) for source in SOURCES for variant in variants]
    return pytest.mark.parametrize(("source", "variant"), pairs)


each_family = for_each_source(["dino", "deformable_detr.two_stage", "dab_detr"])


@pytest.fixture(autouse=True)
def log_mismatches(monkeypatch):
    """Let caplog see fvcore's warnings of what did not match."""
    monkeypatch.setattr(logging.getLogger("fvcore"), "propagate", True)


def uninitialized(config):
    """A model with all of its memory but none of its values: initialization would take most of the time."""
    with torch.device("meta"):
        model = instantiate(config)
    return model.to_empty(device="cpu")


def assert_all_matched(report):
    assert report.unexpected == []
    assert report.fault() is None


def assert_same_weights(model, reference):
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=0, atol=0)


@for_each_source(LISTED_VARIANTS)
def test_reference_names_and_shapes_fit_the_full_size_models(tmp_path, source, variant):
    model = uninitialized(model_config(variant))
    # a number for each parameter, the same one if it has several names
    numbers = {name: value.data_ptr() for name, value in model.state_dict().items()}
    order = list(dict.fromkeys(numbers.values()))
    numbers = {name: float(order.index(number)) for name, number in numbers.items()}
    names = reference_names(source, variant)
    # expanded tensors take no space in the file
    weights = {name: torch.tensor(numbers[model_name]).expand(shape) for name, shape, model_name in names}
    torch.save({"model": weights}, tmp_path / "full_size.pth")
    assert_all_matched(load_weights(model, str(tmp_path / "full_size.pth"), strict=True))
    for name, value in model.state_dict().items():
        assert (value == numbers[name]).all(), name


@for_each_source(VARIANTS)
def test_checkpoint_is_loaded_in_full(tmp_path, source, variant):
    reference = small_detector(source, variant, seed=1)
    path = tmp_path / "checkpoint.pth"
    args = argparse.Namespace(backbone="resnet50", lr_drop_list=[33, 45])
    torch.save({"model": source_state_dict(source, variant, reference), "epoch": 11, "args": args}, path)
    model = small_detector(source, variant, seed=2)
    assert_all_matched(load_weights(model, str(path), strict=True))
    assert_same_weights(model, reference)

    # and from a checkpoint of this project
    torch.save({"model": model.state_dict()}, path)
    model = small_detector(source, variant, seed=3)
    assert_all_matched(load_weights(model, str(path), strict=True))
    assert_same_weights(model, reference)


@pytest.mark.parametrize("prefix", ["", "backbone.0.body."])
@pytest.mark.parametrize("depth", [18, 34, 101])
def test_torchvision_backbones_of_other_depths(depth, prefix):
    torchvision = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        resnet = getattr(torchvision, f"resnet{depth}")()
        model = torch.nn.ModuleDict({"backbone": build_resnet(depth)})
    source = {prefix + key: value for key, value in resnet.state_dict().items()}
    if prefix:
        source |= {name: None for name, *_ in reference_names("authors", "dino") if not name.startswith("backbone.")}
    converted = convert_state_dict(source, model)
    for name, value in model.state_dict().items():
        assert converted[name].shape == value.shape


@pytest.mark.parametrize("source", SOURCES)
def test_bare_weights_of_a_distributed_run(tmp_path, source):
    reference = small_detector(source, seed=1)
    weights = source_state_dict(source, "dino", reference)
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "bare.pth")
    model = small_detector(source, seed=2)
    assert_all_matched(load_weights(model, str(tmp_path / "bare.pth"), strict=True))
    assert_same_weights(model, reference)


@pytest.mark.parametrize(
    ("source", "variant"),
    [("authors", "dino"), *[("detrex", variant) for variant in VARIANTS]],
)
def test_averaged_weights_are_preferred(tmp_path, caplog, source, variant):
    caplog.set_level(logging.INFO)
    key = {"detrex": "ema_state", "authors": "ema_model"}[source]
    raw, averaged = small_detector(source, variant, seed=1), small_detector(source, variant, seed=2)
    content = {
        "model": source_state_dict(source, variant, raw),
        key: averaged_state_dict(source, variant, averaged),
    }
    torch.save(content, tmp_path / "averaged.pth")
    model = small_detector(source, variant, seed=3)
    assert_all_matched(load_weights(model, str(tmp_path / "averaged.pth"), strict=True))
    assert_same_weights(model, averaged)
    assert key in caplog.text


@each_family
def test_heads_for_other_classes_keep_their_initial_values(tmp_path, caplog, source, variant):
    reference = small_detector(source, variant, seed=1, num_classes=5)
    torch.save({"model": source_state_dict(source, variant, reference)}, tmp_path / "five.pth")
    model = small_detector(source, variant, seed=2)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, str(tmp_path / "five.pth"))
    names = {name for name in initial if name.startswith(("class_head.", "class_heads.", "denoising.label_embedding."))}
    assert len(names) >= 2
    assert set(report.unset) == names
    assert report.unexpected == []
    expected = reference.state_dict() | {name: initial[name] for name in names}
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)
    assert all(name in caplog.text for name in names)
    with pytest.raises(UserError, match=rf"five\.pth does not set {len(names)} "):
        load_weights(model, str(tmp_path / "five.pth"), strict=True)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("dino.5scale", "dab_detr.dc5")])
def test_the_80_coco_classes_are_selected_from_the_authors_91(tmp_path, variant):
    reference = small_detector("authors", variant, seed=1, num_classes=91)
    torch.save({"model": source_state_dict("authors", variant, reference)}, tmp_path / "coco.pth")
    model = small_detector("authors", variant, seed=2, num_classes=80)
    assert_all_matched(load_weights(model, str(tmp_path / "coco.pth"), strict=True))
    ids = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
    assert (len(ids), ids[0], ids[-1]) == (80, 1, 90)
    with torch.no_grad():
        memory = reference.encode(reference.preprocess(random_batch()))
        queries = reference.propose(memory)
        expected, predictions = reference.decode(memory, queries), model.decode(memory, queries)
        torch.testing.assert_close(predictions.logits, expected.logits[..., ids])
        torch.testing.assert_close(predictions.boxes, expected.boxes)
        # DINO ranks proposals by their best class, which here may be one without a category
        if model.label_embedding is None:
            torch.testing.assert_close(model.propose(memory).reference, queries.reference)
            torch.testing.assert_close(model.propose(memory).content, queries.content)
    if model.label_embedding is not None:
        torch.testing.assert_close(model.label_embedding.weight, reference.label_embedding.weight[ids])


@for_each_source(["dino", "deformable_detr.two_stage"])
def test_a_shallower_decoder_keeps_the_proposals_heads(tmp_path, source, variant):
    reference = small_detector(source, variant, seed=1)
    # in reverse, the heads that must not replace the proposals' come last
    weights = dict(reversed(source_state_dict(source, variant, reference).items()))
    torch.save({"model": weights}, tmp_path / "deep.pth")
    model = small_detector(source, variant, seed=2, decoder_layers=1)
    report = load_weights(model, str(tmp_path / "deep.pth"))
    assert report.unset == []
    assert "transformer.decoder.layers.1." in str(report.unexpected)
    assert not any(name.startswith("transformer.decoder.layers.0.") for name in report.unexpected)
    for head, reference_head in ((0, 0), (1, 6)):
        assert torch.equal(model.class_heads[head].weight, reference.class_heads[reference_head].weight)
        assert torch.equal(model.box_heads[head].layers[2].bias, reference.box_heads[reference_head].layers[2].bias)


@each_family
def test_unknown_parameters_are_reported_by_their_names_in_the_file(tmp_path, caplog, source, variant):
    model = small_detector(source, variant)
    weights = source_state_dict(source, variant, model)
    weights["transformer.two_stage_wh_embedding.weight"] = torch.zeros(1, 2)
    lost = next(name for name in weights if name.startswith("transformer.encoder.layers.0.") and "norm" in name)
    del weights[lost]
    torch.save({"model": weights}, tmp_path / "odd.pth")
    report = load_weights(model, str(tmp_path / "odd.pth"))
    assert report.missing == ["encoder.layers.0.norm1.weight"]
    assert report.unexpected == ["transformer.two_stage_wh_embedding.weight"]
    assert report.mismatched == []
    assert "two_stage_wh_embedding" in caplog.text
    assert "encoder.layers.0.norm1.weight" in caplog.text


@pytest.mark.parametrize(
    ("variant", "other", "fault"),
    [
        ("deformable_detr.refine", dict(variant="deformable_detr"), "has different values for .* the model shares"),
        ("dino", dict(variant="dino", decoder_layers=1), "has .* that the model does not have, such as decoder"),
        ("dino", dict(variant="dino", decoder_layers=3), "does not set .* of the model, such as "),
    ],
    ids=["heads that are not shared", "deeper", "shallower"],
)
def test_own_weights_of_another_architecture_are_refused(tmp_path, variant, other, fault):
    path = str(tmp_path / "model_final.pth")
    torch.save({"model": add_noise(tiny(variant)).state_dict()}, path)
    with pytest.raises(UserError, match=rf"model_final\.pth {fault}"):
        load_weights(tiny(**other), path, strict=True)
    load_weights(tiny(variant), path, strict=True)


def test_classes_that_others_allowed_torch_to_load_are_kept(tmp_path):
    mine = type("ListConfig", (), {"__module__": "omegaconf.listconfig"})
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([mine])
    try:
        torch.save({"model": tiny().state_dict()}, tmp_path / "model.pth")
        load_weights(tiny(), str(tmp_path / "model.pth"))
        assert set(torch.serialization.get_safe_globals()) == {*before, mine}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


@each_family
def test_settings_that_differ_are_warned_of(tmp_path, caplog, source, variant):
    path = str(tmp_path / "checkpoint.pth")
    torch.save({"model": source_state_dict(source, variant, small_detector(source, variant))}, path)
    model = small_detector(source, variant)
    load_weights(model, path)
    assert "unless the checkpoint was trained with another value" not in caplog.text
    model.position_embedding.temperature, model.position_embedding.offset = 7, -0.25
    (temperature, offset), *eps = SETTINGS[source, family(variant)].values()
    expected = {"position_embedding.temperature": temperature, "position_embedding.offset": offset}
    if eps:
        model.decoder.eps = 0.5
        expected["decoder.eps"] = eps[0]
    load_weights(model, path)
    for key, value in expected.items():
        assert f"set model.{key}={value}, unless the checkpoint was trained with another value" in caplog.text


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("refine", [False, True])
def test_box_refinement_that_differs_is_warned_of(tmp_path, caplog, source, refine):
    """The two variants' parameters have the same names and shapes in our models."""
    variants = {False: "deformable_detr", True: "deformable_detr.refine"}
    path = str(tmp_path / "checkpoint.pth")
    model = small_detector(source, variants[refine])
    torch.save({"model": source_state_dict(source, variants[refine], model)}, path)
    load_weights(model, path)
    assert "set model.decoder.refine" not in caplog.text
    load_weights(small_detector(source, variants[not refine]), path)
    assert f"set model.decoder.refine={refine}" in caplog.text


@pytest.mark.parametrize(
    ("variant", "name", "early_name"),
    [
        ("deformable_detr.two_stage", "transformer.enc_output_norm.", "transformer.enc_outpout_norm."),
        ("dab_detr", "anchor_box_embed.", "refpoint_embed."),
    ],
)
def test_early_names_of_detrex(tmp_path, variant, name, early_name):
    reference = small_detector("detrex", variant, seed=1)
    weights = source_state_dict("detrex", variant, reference)
    early = {key.replace(name, early_name): value for key, value in weights.items()}
    assert early.keys() != weights.keys()
    torch.save({"model": early}, tmp_path / "early.pth")
    model = small_detector("detrex", variant, seed=2)
    assert_all_matched(load_weights(model, str(tmp_path / "early.pth"), strict=True))
    assert_same_weights(model, reference)


def test_the_documented_overrides_are_the_position_encoding_of_detrex():
    overrides = ["model.position_embedding.temperature=10000", "model.position_embedding.offset=-0.5"]
    encoding = load_config(str(CONFIGS / "dino" / "dino_r50_coco_12ep.py"), overrides).model.position_embedding
    assert (encoding.temperature, encoding.offset) == SETTINGS["detrex", "dino"]["position_embedding"]


@pytest.mark.parametrize("name", ["dino", "deformable_detr", "dab_detr"])
def test_demo_checkpoints_fit_their_configs(name):
    model = uninitialized(load_config(str(CONFIGS / name / f"{name}_r18_small_street.py")).model)
    path = CONFIGS.parent / "demo" / f"{name}_r18_small_street.pth"
    assert_all_matched(load_weights(model, str(path), strict=True))


def test_a_training_checkpoint_with_omegaconf_containers(tmp_path):
    """detrex's configs pass AdamW's betas as a list of omegaconf's, which its optimizer then saves."""
    reference = small_detector("detrex", seed=1)
    config = OmegaConf.create({"betas": (0.9, 0.999), "eps": [1e-8], "params": {"lr": 1e-4}}, flags=OBJECTS)
    group = {"lr": 1e-4, "betas": config.betas, "defaults": config, "params": [0]}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [group]}
    content = {"model": source_state_dict("detrex", "dino", reference), "optimizer": optimizer, "iteration": 3}
    torch.save(content, tmp_path / "training.pth")
    model = small_detector("detrex", seed=2)
    assert_all_matched(load_weights(model, str(tmp_path / "training.pth"), strict=True))
    assert_same_weights(model, reference)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path):
    weights = source_state_dict("authors", "dino", small_detector("authors"))
    for key, content in {
        "next to weights": {"model": weights, "args": Malicious(str(tmp_path / "ran"))},
        "inside": {"model": weights, "args": argparse.Namespace(hook=Malicious(str(tmp_path / "ran")))},
        "config": {"model": weights, "betas": OmegaConf.create([Malicious(str(tmp_path / "ran"))], flags=OBJECTS)},
    }.items():
        torch.save(content, tmp_path / f"{key}.pth")
        with pytest.raises(UserError, match=rf"{key}\.pth is not safe to load, since it contains \w+\.mkdir"):
            load_weights(small_detector("authors"), str(tmp_path / f"{key}.pth"))
    assert not (tmp_path / "ran").exists()
