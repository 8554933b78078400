"""Checkpoints in the names of detrex's and of the official DINO, written here from our own by lists of names.

The names are those of IDEA-Research/detrex (projects/dino) and of IDEA-Research/DINO.
"""

import argparse
import logging
import math
import os
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import instantiate
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import nn

from clockdistill.engine import load_config
from clockdistill.errors import UserError
from clockdistill.modeling.detector import padding_masks
from clockdistill.modeling.weights import load_weights
from tiny import CONFIGS, random_batch, roughen, tiny_dino_config

ENCODINGS = {"detrex": (10000, -0.5), "official": (20, 0.0)}
PARTS = ("weight", "bias")


def detector(origin, seed=0, depth=18, num_queries=20, **kwargs):
    """A small DINO with the origin's position encoding; frozen batch norms and zero initial values are random too."""
    config = tiny_dino_config(**kwargs)
    config.backbone.update(depth=depth, norm="FrozenBN")
    if depth == 50:
        config.neck.in_channels = [64, 128, 256]
    config.position_embedding.temperature, config.position_embedding.offset = ENCODINGS[origin]
    config.num_queries = num_queries
    torch.manual_seed(seed)
    model = roughen(instantiate(config), seed).eval()
    for name, buffer in model.named_buffers():
        if name.startswith("backbone."):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return model


def pairs(theirs, ours, parts=PARTS):
    return [(f"{theirs}.{part}", f"{ours}.{part}") for part in parts]


def common_names(layers):
    """Their name and ours of what both origins call the same; a list of heads is found in two places."""
    names = []
    for place in ("", "transformer.decoder."):
        for layer in range(layers):
            names += pairs(f"{place}class_embed.{layer}", f"class_heads.{layer}")
            for linear in range(3):
                names += pairs(f"{place}bbox_embed.{layer}.layers.{linear}", f"box_heads.{layer}.layers.{linear}")
    for linear in range(2):
        names += pairs(f"transformer.decoder.ref_point_head.layers.{linear}", f"decoder.reference_head.layers.{linear}")
    names += pairs("transformer.decoder.norm", "decoder.norm")
    names += pairs("transformer.enc_output", "proposal_proj")
    names += pairs("transformer.enc_output_norm", "proposal_norm")
    names += pairs("transformer.tgt_embed", "content", ["weight"])
    names += pairs("label_enc", "denoising.label_embedding", ["weight"])
    return names


def deformable(theirs, ours):
    names = []
    for linear in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
        names += pairs(f"{theirs}.{linear}", f"{ours}.{linear}")
    return names


def self_attention(theirs, ours):
    names = pairs(f"{theirs}.out_proj", f"{ours}.out_proj")
    return names + [(f"{theirs}.in_proj_{part}", f"{ours}.in_proj_{part}") for part in PARTS]


def detrex_names(model):
    layers = len(model.decoder.layers)
    names = common_names(layers + 1)
    names += [(name, name) for name in model.state_dict() if name.startswith("backbone.")]
    names += [("transformer.level_embeds", "encoder.level_embed")]
    for level, theirs in enumerate(["convs.0", "convs.1", "convs.2", "extra_convs.0"]):
        names += pairs(f"neck.{theirs}.conv", f"neck.convs.{level}.0")
        names += pairs(f"neck.{theirs}.norm", f"neck.convs.{level}.1")
    for layer in range(len(model.encoder.layers)):
        theirs, ours = f"transformer.encoder.layers.{layer}", f"encoder.layers.{layer}"
        names += deformable(f"{theirs}.attentions.0", f"{ours}.self_attn")
        names += pairs(f"{theirs}.ffns.0.layers.0.0", f"{ours}.ffn.0") + pairs(f"{theirs}.norms.0", f"{ours}.norm1")
        names += pairs(f"{theirs}.ffns.0.layers.1", f"{ours}.ffn.2") + pairs(f"{theirs}.norms.1", f"{ours}.norm2")
    for layer in range(layers):
        theirs, ours = f"transformer.decoder.layers.{layer}", f"decoder.layers.{layer}"
        names += self_attention(f"{theirs}.attentions.0.attn", f"{ours}.self_attn")
        names += deformable(f"{theirs}.attentions.1", f"{ours}.cross_attn")
        names += pairs(f"{theirs}.ffns.0.layers.0.0", f"{ours}.ffn.0")
        names += pairs(f"{theirs}.ffns.0.layers.1", f"{ours}.ffn.2")
        for norm in range(3):
            names += pairs(f"{theirs}.norms.{norm}", f"{ours}.norm{norm + 1}")
    return names


def official_names(model):
    layers = len(model.decoder.layers)
    names = common_names(layers)
    names += torchvision_names(model)
    names += [("transformer.level_embed", "encoder.level_embed")]
    names += pairs("transformer.enc_out_class_embed", f"class_heads.{layers}")
    for linear in range(3):
        names += pairs(f"transformer.enc_out_bbox_embed.layers.{linear}", f"box_heads.{layers}.layers.{linear}")
    for level in range(4):
        names += pairs(f"input_proj.{level}.0", f"neck.convs.{level}.0")
        names += pairs(f"input_proj.{level}.1", f"neck.convs.{level}.1")
    for layer in range(len(model.encoder.layers)):
        theirs, ours = f"transformer.encoder.layers.{layer}", f"encoder.layers.{layer}"
        names += deformable(f"{theirs}.self_attn", f"{ours}.self_attn")
        names += pairs(f"{theirs}.linear1", f"{ours}.ffn.0") + pairs(f"{theirs}.norm1", f"{ours}.norm1")
        names += pairs(f"{theirs}.linear2", f"{ours}.ffn.2") + pairs(f"{theirs}.norm2", f"{ours}.norm2")
    for layer in range(layers):
        theirs, ours = f"transformer.decoder.layers.{layer}", f"decoder.layers.{layer}"
        names += self_attention(f"{theirs}.self_attn", f"{ours}.self_attn") + pairs(f"{theirs}.norm2", f"{ours}.norm1")
        names += deformable(f"{theirs}.cross_attn", f"{ours}.cross_attn") + pairs(f"{theirs}.norm1", f"{ours}.norm2")
        names += pairs(f"{theirs}.linear1", f"{ours}.ffn.0") + pairs(f"{theirs}.linear2", f"{ours}.ffn.2")
        names += pairs(f"{theirs}.norm3", f"{ours}.norm3")
    return names


def torchvision_names(model):
    norm = (*PARTS, "running_mean", "running_var")
    names = pairs("backbone.0.body.conv1", "backbone.stem.conv1", ["weight"])
    names += pairs("backbone.0.body.bn1", "backbone.stem.conv1.norm", norm)
    for stage in (2, 3, 4, 5):
        for index, block in enumerate(getattr(model.backbone, f"res{stage}")):
            theirs, ours = f"backbone.0.body.layer{stage - 1}.{index}", f"backbone.res{stage}.{index}"
            for conv in (1, 2, 3) if hasattr(block, "conv3") else (1, 2):
                names += pairs(f"{theirs}.conv{conv}", f"{ours}.conv{conv}", ["weight"])
                names += pairs(f"{theirs}.bn{conv}", f"{ours}.conv{conv}.norm", norm)
            if block.shortcut is not None:
                names += pairs(f"{theirs}.downsample.0", f"{ours}.shortcut", ["weight"])
                names += pairs(f"{theirs}.downsample.1", f"{ours}.shortcut.norm", norm)
    return names


def written(origin, model):
    """The state dict as the origin would have it."""
    state = model.state_dict()
    names = {"detrex": detrex_names, "official": official_names}[origin](model)
    assert {ours for _, ours in names} == state.keys(), "the list of names is complete"
    weights = OrderedDict((theirs, state[ours]) for theirs, ours in names)
    if origin == "official":
        # a row that no class uses
        embedding = weights["label_enc.weight"]
        weights["label_enc.weight"] = torch.cat((embedding, torch.full_like(embedding[:1], 7.0)))
    return weights


@torch.no_grad()
def detect(model):
    """Predictions of all decoder layers on images of two sizes."""
    images = model.preprocess(random_batch(sizes=((64, 96), (96, 70))))
    memory = model.encode(images)
    return model.decode(memory, model.propose(memory))


ORIGINS = pytest.mark.parametrize("origin", ["detrex", "official"])


@ORIGINS
@pytest.mark.parametrize("depth", [18, 50])
def test_a_checkpoint_is_loaded_in_full(tmp_path, origin, depth):
    source = detector(origin, seed=1, depth=depth)
    path = tmp_path / "checkpoint.pth"
    args = argparse.Namespace(backbone="resnet50", lr_drop_list=[33, 45])
    torch.save({"model": written(origin, source), "epoch": 11, "args": args}, path)
    model = detector(origin, seed=2, depth=depth)
    assert not torch.equal(detect(model).logits, detect(source).logits)
    report = load_weights(model, str(path), strict=True)
    assert report == ([], [], [])
    torch.testing.assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(detect(model), detect(source), rtol=0, atol=0)

    # and as a file of our own
    torch.save({"model": model.state_dict()}, path)
    again = detector(origin, seed=3, depth=depth)
    assert load_weights(again, str(path), strict=True) == ([], [], [])
    torch.testing.assert_close(detect(again), detect(source), rtol=0, atol=0)


@ORIGINS
def test_bare_weights_of_a_distributed_run_load_too(tmp_path, origin):
    source = detector(origin, seed=1)
    torch.save({f"module.{name}": value for name, value in written(origin, source).items()}, tmp_path / "bare.pth")
    model = detector(origin, seed=2)
    assert load_weights(model, str(tmp_path / "bare.pth"), strict=True) == ([], [], [])
    torch.testing.assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("origin", "key"), [("detrex", "ema_state"), ("official", "ema_model")])
def test_averaged_weights_are_preferred(tmp_path, caplog, monkeypatch, origin, key):
    monkeypatch.setattr(logging.getLogger("fvcore"), "propagate", True)
    caplog.set_level(logging.INFO)
    raw, averaged = detector(origin, seed=1), detector(origin, seed=2)
    weights = written(origin, averaged)
    if origin == "detrex":
        # its average goes over parameters, each under the first of its names
        weights = {k: v for k, v in weights.items() if not k.startswith(("class_embed", "bbox_embed"))}
    torch.save({"model": written(origin, raw), key: weights}, tmp_path / "averaged.pth")
    model = detector(origin, seed=3)
    assert load_weights(model, str(tmp_path / "averaged.pth"), strict=True) == ([], [], [])
    torch.testing.assert_close(model.state_dict(), averaged.state_dict(), rtol=0, atol=0)
    assert key in caplog.text


@ORIGINS
def test_heads_of_another_number_of_classes_stay_fresh(tmp_path, caplog, monkeypatch, origin):
    monkeypatch.setattr(logging.getLogger("fvcore"), "propagate", True)
    source = detector(origin, seed=1, num_classes=5)
    torch.save({"model": written(origin, source)}, tmp_path / "five.pth")
    model = detector(origin, seed=2)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, str(tmp_path / "five.pth"))
    names = {f"class_heads.{layer}.{part}" for layer in range(3) for part in PARTS}
    names.add("denoising.label_embedding.weight")
    assert set(report.unset) == names
    assert report.unexpected == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh[name] if name in names else source.state_dict()[name]), name
    assert "class_heads.0.weight" in caplog.text
    with pytest.raises(UserError, match=r"five\.pth leaves 7 of"):
        load_weights(model, str(tmp_path / "five.pth"), strict=True)


def test_of_the_official_91_classes_cocos_80_are_taken(tmp_path):
    source = detector("official", seed=1, num_classes=91)
    torch.save({"model": written("official", source)}, tmp_path / "coco.pth")
    model = detector("official", seed=2, num_classes=80)
    assert load_weights(model, str(tmp_path / "coco.pth"), strict=True) == ([], [], [])
    ids = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
    assert (len(ids), ids[0], ids[-1]) == (80, 1, 90)
    with torch.no_grad():
        memory = source.encode(source.preprocess(random_batch()))
        queries = source.propose(memory)
        theirs, ours = source.decode(memory, queries), model.decode(memory, queries)
    torch.testing.assert_close(ours.logits, theirs.logits[..., ids])
    torch.testing.assert_close(ours.boxes, theirs.boxes)
    torch.testing.assert_close(model.label_embedding.weight, source.label_embedding.weight[ids])


@ORIGINS
def test_a_shallower_decoder_keeps_the_proposals_heads(tmp_path, origin):
    source = detector(origin, seed=1, decoder_layers=3)
    # last comes what must not take the place of the proposals' heads
    weights = dict(sorted(written(origin, source).items(), reverse=True))
    torch.save({"model": weights}, tmp_path / "deep.pth")
    model = detector(origin, seed=2, decoder_layers=1)
    report = load_weights(model, str(tmp_path / "deep.pth"))
    assert report.unset == []
    assert "transformer.decoder.layers.1." in str(report.unexpected)
    assert not any(name.startswith("transformer.decoder.layers.0.") for name in report.unexpected)
    for ours, theirs in ((0, 0), (1, 3)):
        assert torch.equal(model.class_heads[ours].weight, source.class_heads[theirs].weight)
        assert torch.equal(model.box_heads[ours].layers[2].bias, source.box_heads[theirs].layers[2].bias)


@ORIGINS
def test_what_is_unknown_is_said_by_the_files_name_for_it(tmp_path, caplog, monkeypatch, origin):
    monkeypatch.setattr(logging.getLogger("fvcore"), "propagate", True)
    model = detector(origin)
    weights = written(origin, model)
    weights["transformer.two_stage_wh_embedding.weight"] = torch.zeros(1, 2)
    del weights["transformer.decoder.norm.bias"]
    torch.save({"model": weights}, tmp_path / "odd.pth")
    report = load_weights(model, str(tmp_path / "odd.pth"))
    assert report == (["decoder.norm.bias"], ["transformer.two_stage_wh_embedding.weight"], [])
    assert "two_stage_wh_embedding" in caplog.text
    assert "decoder.norm.bias" in caplog.text


@pytest.mark.parametrize(("origin", "other"), [("detrex", "official"), ("official", "detrex")])
def test_another_position_encoding_than_the_origins_is_warned_of(tmp_path, caplog, origin, other):
    torch.save({"model": written(origin, detector(origin))}, tmp_path / "checkpoint.pth")
    load_weights(detector(origin), str(tmp_path / "checkpoint.pth"))
    assert "position" not in caplog.text
    load_weights(detector(other), str(tmp_path / "checkpoint.pth"))
    temperature, offset = ENCODINGS[origin]
    assert f"model.position_embedding.temperature={temperature}" in caplog.text
    assert f"model.position_embedding.offset={offset}" in caplog.text


def test_a_config_has_detrexs_position_encoding():
    encoding = load_config(str(CONFIGS / "dino" / "dino_r50_coco_12ep_detrex.py")).model.position_embedding
    assert (encoding.temperature, encoding.offset) == ENCODINGS["detrex"]


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path):
    weights = written("official", detector("official"))
    for key, content in {
        "beside": {"model": weights, "args": Malicious(str(tmp_path / "ran"))},
        "inside": {"model": weights, "args": argparse.Namespace(hook=Malicious(str(tmp_path / "ran")))},
    }.items():
        torch.save(content, tmp_path / f"{key}.pth")
        with pytest.raises(
            UserError, match=rf"{key}\.pth is not read, since it holds more than tensors \(\w+\.mkdir\)"
        ):
            load_weights(detector("official"), str(tmp_path / f"{key}.pth"))
    assert not (tmp_path / "ran").exists()


# DINO once more, from its paper and those it builds on: functions of a file's weights `w`, one image at a time


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w, name, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def mlp(w, name, x, depth):
    for index in range(depth):
        x = linear(w, f"{name}.layers.{index}", x)
        x = x.relu() if index < depth - 1 else x
    return x


def feed_forward(w, name, x):
    return linear(w, f"{name}.linear2", linear(w, f"{name}.linear1", x).relu())


def sines(angle, width, temperature):
    """Even channels are sines and odd ones cosines, two by two of the same wavelength."""
    phases = [angle / temperature ** (i // 2 * 2 / width) for i in range(width)]
    return torch.stack([phase.cos() if i % 2 else phase.sin() for i, phase in enumerate(phases)], -1)


def logit(x):
    return (x.clamp(1e-3, 1) / (1 - x).clamp(1e-3, 1)).log()


def deformable_attention(w, name, query, tokens, masks, reference, heads=4, points=2):
    """(Q, C) of queries (Q, C), tokens (N, C), a padding mask a level, and points or boxes (Q, levels, 2 or 4)."""
    num_queries, levels = len(query), len(masks)
    padding = torch.cat([mask.flatten() for mask in masks])
    value = linear(w, f"{name}.value_proj", tokens)
    value = torch.where(padding[:, None], 0, value).view(len(tokens), heads, -1)
    offsets = linear(w, f"{name}.sampling_offsets", query).view(num_queries, heads, levels, points, 2)
    weights = linear(w, f"{name}.attention_weights", query).view(num_queries, heads, levels * points).softmax(-1)
    weights = weights.view(num_queries, heads, levels, points)
    output = torch.zeros(num_queries, heads, value.shape[-1])
    start = 0
    for level, (height, width) in enumerate(mask.shape for mask in masks):
        cells = value[start : start + height * width].view(height, width, heads, -1)
        start += height * width
        for head in range(heads):
            for point in range(points):
                offset = offsets[:, head, level, point]
                if reference.shape[-1] == 2:
                    offset = offset / torch.tensor([width, height])
                else:
                    offset = offset / points * reference[:, level, 2:] / 2
                grid = 2 * (reference[:, level, :2] + offset) - 1
                seen = F.grid_sample(cells[:, :, head].permute(2, 0, 1)[None], grid[None, None], align_corners=False)
                output[:, head] += weights[:, head, level, point, None] * seen[0, :, 0].T
    return linear(w, f"{name}.output_proj", output.flatten(1))


def self_attention_of(w, name, query, value, heads=4):
    width = query.shape[1] // heads
    weight, bias = w[f"{name}.in_proj_weight"].chunk(3), w[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (x @ a.T + b for x, a, b in zip((query, query, value), weight, bias))
    output = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        output.append((q[:, part] @ k[:, part].T / math.sqrt(width)).softmax(-1) @ v[:, part])
    return linear(w, f"{name}.out_proj", torch.cat(output, 1))


def reference_dino(w, maps, masks, num_queries):
    """Memory (N, C) and every decoder layer's logits (Q, K) and boxes (Q, 4), from the neck's maps (C, H_l, W_l).

    Args:
        masks: (H_l, W_l), True on padding.
    """
    tokens = torch.cat([x.flatten(1).T for x in maps])
    channels = tokens.shape[1]
    position, centres, sizes, ratios = [], [], [], []
    for level, mask in enumerate(masks):
        rows, columns = mask.shape
        y, x = (~mask).cumsum(0), (~mask).cumsum(1)
        height, width = y[-1, 0].item(), x[0, -1].item()
        angles = y / (y[-1:] + 1e-6) * 2 * math.pi, x / (x[:, -1:] + 1e-6) * 2 * math.pi
        encoded = torch.cat([sines(angle, channels // 2, 20) for angle in angles], -1)
        position.append(encoded.view(-1, channels) + w["transformer.level_embed"][level])
        grid_y, grid_x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        centres.append(torch.stack((grid_x / width, grid_y / height), -1).view(-1, 2))
        sizes.append(torch.full((rows * columns, 2), 0.05 * 2**level))
        ratios.append([width / columns, height / rows])
    position, centres, ratios = torch.cat(position), torch.cat(centres), torch.tensor(ratios)

    name = "transformer.encoder.layers.0"
    reference = centres[:, None] * ratios
    seen = deformable_attention(w, f"{name}.self_attn", tokens + position, tokens, masks, reference)
    tokens = layer_norm(w, f"{name}.norm1", tokens + seen)
    memory = layer_norm(w, f"{name}.norm2", tokens + feed_forward(w, name, tokens))

    anchors = torch.cat((centres, torch.cat(sizes)), 1)
    fit = ((anchors > 0.01) & (anchors < 0.99)).all(1) & ~torch.cat([mask.flatten() for mask in masks])
    proposals = linear(w, "transformer.enc_output", torch.where(fit[:, None], memory, 0))
    proposals = layer_norm(w, "transformer.enc_output_norm", proposals)
    scores = linear(w, "transformer.enc_out_class_embed", proposals).amax(1)
    best = scores.argsort(descending=True)[:num_queries]
    start = torch.where(fit[:, None], (anchors / (1 - anchors)).log(), math.inf)
    boxes = (mlp(w, "transformer.enc_out_bbox_embed", proposals, 3) + start)[best].sigmoid()

    content, twice, logits, answers = w["transformer.tgt_embed.weight"], boxes, [], []
    for layer in range(2):
        name = f"transformer.decoder.layers.{layer}"
        reference = boxes[:, None] * torch.cat((ratios, ratios), 1)
        cx, cy, width, height = (reference[:, 0] * 2 * math.pi).unbind(1)
        encoded = torch.cat([sines(angle, channels // 2, 10000) for angle in (cy, cx, width, height)], 1)
        place = mlp(w, "transformer.decoder.ref_point_head", encoded, 2)
        seen = self_attention_of(w, f"{name}.self_attn", content + place, content)
        content = layer_norm(w, f"{name}.norm2", content + seen)
        seen = deformable_attention(w, f"{name}.cross_attn", content + place, memory, masks, reference)
        content = layer_norm(w, f"{name}.norm1", content + seen)
        content = layer_norm(w, f"{name}.norm3", content + feed_forward(w, name, content))

        normed = layer_norm(w, "transformer.decoder.norm", content)
        logits.append(linear(w, f"class_embed.{layer}", normed))
        # scored from the layer before's own boxes, looking forward twice, and refined before the norm
        answers.append((mlp(w, f"bbox_embed.{layer}", normed, 3) + logit(twice)).sigmoid())
        twice = (mlp(w, f"bbox_embed.{layer}", content, 3) + logit(boxes)).sigmoid()
        boxes = twice
    return memory, torch.stack(logits), torch.stack(answers)


def test_outputs_are_those_of_the_papers_formulas(tmp_path):
    source = detector("official", seed=1, num_queries=12)
    # the first layer makes boxes so narrow that their logits are clipped
    source.box_heads[0].layers[-1].bias.data[2] -= 8
    weights = written("official", source)
    torch.save({"model": weights}, tmp_path / "official.pth")
    model = detector("official", seed=2, num_queries=12)
    load_weights(model, str(tmp_path / "official.pth"), strict=True)
    images = model.preprocess(random_batch(sizes=((64, 96), (96, 70))))
    with torch.no_grad():
        maps = model.neck(model.backbone(images.tensor))
        masks = padding_masks(images, [x.shape[-2:] for x in maps])
        memory = model.encode(images)
        predictions = model.decode(memory, model.propose(memory))
        for i in range(2):
            tokens, logits, boxes = reference_dino(weights, [x[i] for x in maps], [mask[i] for mask in masks], 12)
            torch.testing.assert_close(memory.tokens[i], tokens, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(predictions.logits[:, i], logits, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(predictions.boxes[:, i], boxes, rtol=1e-5, atol=1e-5)
            assert boxes[0, :, 2].max() < 1e-3
