"""Deformable DETR and DAB-DETR against Hugging Face's implementations of them, which have no DINO.

Not among the tests that run by default, since they need a package that the project does not:

    pip install transformers
    python -m pytest tests/reference
"""

from functools import partial

import pytest
import torch
from detectron2.config import instantiate
from transformers import (
    DabDetrConfig,
    DabDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    ResNetConfig,
)
from transformers.models.dab_detr import modeling_dab_detr

from clockdistill.layers import inverse_sigmoid
from clockdistill.modeling.backbone import BLOCKS
from helpers.foreign_names import detector, mlp, pairs
from helpers.models import VARIANTS, model_config, random_batch, roughen

NORM = ("weight", "bias", "running_mean", "running_var")
CLOSE = dict(rtol=0, atol=1e-4)


def backbone_config(model, depth):
    stages = ["res2", "res3", "res4", "res5"]
    return ResNetConfig(
        embedding_size=model.backbone.stem.out_channels,
        hidden_sizes=[getattr(model.backbone, stage)[-1].out_channels for stage in stages],
        depths=list(BLOCKS[depth]),
        layer_type="bottleneck" if depth >= 50 else "basic",
        out_features=[f"stage{stages.index(name) + 1}" for name in model.neck.in_features],
    )


def backbone_names(model, prefix):
    names = pairs(f"{prefix}embedder.embedder.convolution", "backbone.stem.conv1", ["weight"])
    names += pairs(f"{prefix}embedder.embedder.normalization", "backbone.stem.conv1.norm", NORM)
    for stage in range(4):
        for index, block in enumerate(getattr(model.backbone, f"res{stage + 2}")):
            theirs, ours = f"{prefix}encoder.stages.{stage}.layers.{index}", f"backbone.res{stage + 2}.{index}"
            convs = [(f"layer.{i}", f"conv{i + 1}") for i in range(3 if hasattr(block, "conv3") else 2)]
            for layer, conv in convs + ([("shortcut", "shortcut")] if block.shortcut is not None else []):
                names += pairs(f"{theirs}.{layer}.convolution", f"{ours}.{conv}", ["weight"])
                names += pairs(f"{theirs}.{layer}.normalization", f"{ours}.{conv}.norm", NORM)
    return names


def deformable(theirs, ours):
    linears = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    return [name for linear in linears for name in pairs(f"{theirs}.{linear}", f"{ours}.{linear}")]


def deformable_detr_names(model):
    names = [*backbone_names(model, "model.backbone.model."), ("model.level_embed", "encoder.level_embed")]
    for level in range(model.num_levels):
        names += pairs(f"model.input_proj.{level}.0", f"neck.convs.{level}.0")
        names += pairs(f"model.input_proj.{level}.1", f"neck.convs.{level}.1")
    for layer in range(len(model.encoder.layers)):
        theirs, ours = f"model.encoder.layers.{layer}", f"encoder.layers.{layer}"
        names += deformable(f"{theirs}.self_attn", f"{ours}.self_attn")
        names += pairs(f"{theirs}.self_attn_layer_norm", f"{ours}.norm1")
        names += pairs(f"{theirs}.mlp.fc1", f"{ours}.ffn.0") + pairs(f"{theirs}.mlp.fc2", f"{ours}.ffn.2")
        names += pairs(f"{theirs}.final_layer_norm", f"{ours}.norm2")
    for layer in range(len(model.decoder.layers)):
        theirs, ours = f"model.decoder.layers.{layer}", f"decoder.layers.{layer}"
        names += pairs(f"{theirs}.self_attn.o_proj", f"{ours}.self_attn.out_proj")
        names += pairs(f"{theirs}.self_attn_layer_norm", f"{ours}.norm1")
        names += deformable(f"{theirs}.encoder_attn", f"{ours}.cross_attn")
        names += pairs(f"{theirs}.encoder_attn_layer_norm", f"{ours}.norm2")
        names += pairs(f"{theirs}.mlp.fc1", f"{ours}.ffn.0") + pairs(f"{theirs}.mlp.fc2", f"{ours}.ffn.2")
        names += pairs(f"{theirs}.final_layer_norm", f"{ours}.norm3")
    for layer in range(len(model.class_heads)):
        names += pairs(f"class_embed.{layer}", f"class_heads.{layer}")
        names += mlp(f"bbox_embed.{layer}", f"box_heads.{layer}", 3)
    if not model.two_stage:
        names += pairs("model.query_position_embeddings", "query_embedding", ["weight"])
        return names + pairs("model.reference_points", "reference_points")
    for theirs, ours in {
        "enc_output": "proposal_proj",
        "enc_output_norm": "proposal_norm",
        "pos_trans": "query_proj",
        "pos_trans_norm": "query_norm",
    }.items():
        names += pairs(f"model.{theirs}", ours)
    return names


def dab_detr_names(model):
    names = backbone_names(model, "model.backbone.conv_encoder.model.")
    names += pairs("model.input_projection", "neck.convs.0.0")
    names += pairs("model.query_refpoint_embeddings", "anchors", ["weight"])
    if model.patterns is not None:
        names += pairs("model.patterns", "patterns", ["weight"])
    names += mlp("model.encoder.query_scale", "encoder.position_scale", 2)
    names += mlp("model.decoder.query_scale", "decoder.position_scale", 2)
    names += mlp("model.decoder.ref_point_head", "decoder.reference_head", 2)
    names += mlp("model.decoder.ref_anchor_head", "decoder.extent_head", 2)
    names += pairs("model.decoder.layernorm", "decoder.norm")
    names += pairs("class_embed", "class_head") + mlp("bbox_predictor", "box_head", 3)
    names += mlp("model.decoder.bbox_embed", "box_head", 3)
    for layer in range(len(model.encoder.layers)):
        theirs, ours = f"model.encoder.layers.{layer}", f"encoder.layers.{layer}"
        names += pairs(f"{theirs}.self_attn.out_proj", f"{ours}.self_attn.out_proj")
        names += pairs(f"{theirs}.self_attn_layer_norm", f"{ours}.norm1")
        names += feed_forward(theirs, ours) + pairs(f"{theirs}.final_layer_norm", f"{ours}.norm2")
    linears = ("query_content_proj", "key_content_proj", "key_pos_proj", "value_proj")
    for layer in range(len(model.decoder.layers)):
        theirs, ours = f"model.decoder.layers.{layer}", f"decoder.layers.{layer}"
        for kind, norm in (("self_attn", "norm1"), ("cross_attn", "norm2")):
            has_position = kind == "self_attn" or layer == 0
            for linear in (*linears, "query_pos_proj") if has_position else linears:
                names += pairs(f"{theirs}.{kind}.{kind}_{linear}", f"{ours}.{kind}.{linear}")
            names += pairs(f"{theirs}.{kind}.{kind}.output_proj", f"{ours}.{kind}.out_proj")
            names += pairs(f"{theirs}.{kind}.{kind}_layer_norm", f"{ours}.{norm}")
        names += pairs(f"{theirs}.cross_attn.cross_attn_query_pos_sine_proj", f"{ours}.cross_attn.query_centre_proj")
        names += feed_forward(f"{theirs}.mlp", ours) + pairs(f"{theirs}.mlp.final_layer_norm", f"{ours}.norm3")
    return names


def feed_forward(theirs, ours):
    names = pairs(f"{theirs}.fc1", f"{ours}.ffn.0") + pairs(f"{theirs}.fc2", f"{ours}.ffn.2")
    return names + pairs(f"{theirs}.activation_fn", f"{ours}.ffn.1", ["weight"])


def fused_attention(model):
    """Parts of torch's multi-head attention that Hugging Face keeps apart, by their names for them."""
    stacks = {"encoder": model.encoder.layers, "decoder": model.decoder.layers}
    weights = {}
    for stack, layers in stacks.items():
        for index, layer in enumerate(layers):
            if not isinstance(layer.self_attn, torch.nn.MultiheadAttention):
                continue
            for part in ("weight", "bias"):
                fused = getattr(layer.self_attn, f"in_proj_{part}")
                for name, value in zip(("q_proj", "k_proj", "v_proj"), fused.chunk(3), strict=True):
                    weights[f"model.{stack}.layers.{index}.self_attn.{name}.{part}"] = value
    return weights


def deformable_detr(model, depth):
    config = DeformableDetrConfig(
        backbone_config=backbone_config(model, depth),
        d_model=model.embed_dim,
        num_labels=model.num_classes,
        num_queries=model.num_queries,
        two_stage_num_proposals=model.num_queries,
        two_stage=model.two_stage,
        with_box_refine=model.decoder.refine,
        num_feature_levels=model.num_levels,
        encoder_n_points=model.encoder.layers[0].self_attn.num_points,
        decoder_n_points=model.decoder.layers[0].cross_attn.num_points,
        **depths_and_widths(model),
    )
    other = DeformableDetrForObjectDetection(config)
    untie(other.class_embed)
    untie(other.bbox_embed)
    if model.decoder.refine:
        other.model.decoder.bbox_embed = other.bbox_embed
    if model.two_stage:
        other.model.decoder.class_embed = other.class_embed
    return other, deformable_detr_names(model)


def untie(heads):
    """Give every layer's head parameters of its own: Hugging Face may tie them, which is for `from_pretrained`."""
    for module in heads.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(parameter.detach().clone()))


def dab_detr(model, depth):
    config = DabDetrConfig(
        backbone_config=backbone_config(model, depth),
        hidden_size=model.embed_dim,
        num_labels=model.num_classes,
        num_queries=model.anchors.num_embeddings,
        num_patterns=0 if model.patterns is None else model.patterns.num_embeddings,
        auxiliary_loss=True,
        **depths_and_widths(model),
    )
    other = DabDetrForObjectDetection(config)
    if model.backbone.output_shape()["res5"].stride == 16:
        dilate(other.model.backbone.conv_encoder.model.encoder.stages[3])
    return other, dab_detr_names(model)


def dilate(stage):
    """torchvision's way to replace the last stage's stride, which Hugging Face's ResNet lacks."""
    first, *others = stage.layers
    first.shortcut.convolution.stride = first.layer[1].convolution.stride = (1, 1)
    for block in others:
        block.layer[1].convolution.dilation = block.layer[1].convolution.padding = (2, 2)


def depths_and_widths(model):
    names = {}
    for stack, layers in (("encoder", model.encoder.layers), ("decoder", model.decoder.layers)):
        names |= {
            f"{stack}_layers": len(layers),
            f"{stack}_attention_heads": layers[0].self_attn.num_heads,
            f"{stack}_ffn_dim": layers[0].ffn[0].out_features,
        }
    return names


def every_layer(other, images):
    """Logits and boxes of every decoder layer, which Hugging Face hands to its loss alone."""
    heard = []
    other.loss_function = lambda *args: heard.extend(args[-2:]) or (None, None, None)
    valid = torch.zeros(len(images), *images.tensor.shape[-2:], dtype=torch.long)
    for mask, (height, width) in zip(valid, images.image_sizes, strict=True):
        mask[:height, :width] = 1
    other(pixel_values=images.tensor, pixel_mask=valid, labels=[])
    return heard


@pytest.fixture(autouse=True)
def authors_eps(monkeypatch):
    """DAB-DETR's authors hold the logits of boxes by the border otherwise than Hugging Face."""
    monkeypatch.setattr(modeling_dab_detr, "inverse_sigmoid", partial(inverse_sigmoid, eps=1e-3))


def compare(variant, model, depth, sizes, seed=0):
    other, names = (dab_detr if variant.startswith("dab_detr") else deformable_detr)(model, depth)
    state = model.state_dict()
    weights = {theirs: state[ours] for theirs, ours in names}
    missing, unexpected = other.load_state_dict(weights | fused_attention(model), strict=False)
    assert unexpected == []
    # what is left is another name of a module that has its weights
    assert all(name.startswith(("model.decoder.bbox_embed.", "model.decoder.class_embed.")) for name in missing)
    assert {ours for _, ours in names} >= {name for name in state if "in_proj" not in name}

    images = model.preprocess(random_batch(sizes=sizes, seed=seed))
    with torch.no_grad():
        memory = model.encode(images)
        predictions = model.decode(memory, model.propose(memory))
        logits, boxes = every_layer(other.eval(), images)
    assert logits.shape == predictions.logits.shape
    assert len(logits) == len(model.decoder.layers)
    torch.testing.assert_close(predictions.logits, logits, **CLOSE)
    torch.testing.assert_close(predictions.boxes, boxes, **CLOSE)
    assert predictions.logits.std() > 0.1


VARIANT = pytest.mark.parametrize("variant", [variant for variant in VARIANTS if not variant.startswith("dino")])


@VARIANT
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_logits_and_boxes_of_every_layer_are_hugging_faces(variant, seed):
    model = detector("official", variant, seed=seed, decoder_layers=3)
    compare(variant, model, 50 if variant.endswith("dc5") else 18, ((128, 192), (160, 100)), seed)


@VARIANT
def test_so_are_those_of_the_full_size_models(variant):
    torch.manual_seed(0)
    model = roughen(instantiate(model_config(variant)), scale=0.02).eval()
    compare(variant, model, 50, ((320, 480), (400, 300)))
