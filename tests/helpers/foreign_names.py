"""Checkpoints of our detectors in other programs' names, written by lists of names.

The names are those of IDEA-Research/detrex (projects/dino, deformable_detr, dab_detr) and of the papers' own
repositories, IDEA-Research/DINO, IDEA-Research/DAB-DETR and fundamentalvision/Deformable-DETR.
"""

from collections import OrderedDict

import torch
from detectron2.config import instantiate
from torch import nn

from helpers.models import roughen, tiny_config

SOURCES = ("detrex", "official")
PARTS = ("weight", "bias")
# of what has no parameter, by source and family
SETTINGS = {
    ("detrex", "dino"): {"position_embedding": (10000, -0.5)},
    ("official", "dino"): {"position_embedding": (20, 0.0)},
    ("detrex", "deformable_detr"): {"position_embedding": (10000, -0.5), "eps": 1e-3},
    ("official", "deformable_detr"): {"position_embedding": (10000, -0.5), "eps": 1e-5},
    ("detrex", "dab_detr"): {"position_embedding": (20, 0.0)},
    ("official", "dab_detr"): {"position_embedding": (20, 0.0)},
}


def family(variant):
    return variant.split(".")[0]


def detector(source, variant="dino", seed=0, depth=None, num_queries=None, **kwargs):
    """A small detector with the source's settings; frozen batch norms and zero initial values are random too."""
    config = tiny_config(variant, **kwargs)
    if depth is not None:
        expansion = (4 if depth >= 50 else 1) / (4 if config.backbone.depth >= 50 else 1)
        config.neck.in_channels = [int(c * expansion) for c in config.neck.in_channels]
        config.backbone.depth = depth
    config.backbone.norm = "FrozenBN"
    settings = SETTINGS[source, family(variant)]
    config.position_embedding.temperature, config.position_embedding.offset = settings["position_embedding"]
    if "eps" in settings:
        config.decoder.eps = settings["eps"]
    if num_queries is not None:
        config.num_queries = num_queries
    torch.manual_seed(seed)
    model = roughen(instantiate(config), seed).eval()
    for name, buffer in model.named_buffers():
        if name.startswith("backbone."):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return model


def written(source, variant, model):
    """The state dict as the source would have it."""
    state = model.state_dict()
    names = {
        ("detrex", "dino"): detrex_dino,
        ("official", "dino"): official_dino,
        ("detrex", "deformable_detr"): detrex_deformable_detr,
        ("official", "deformable_detr"): official_deformable_detr,
        ("detrex", "dab_detr"): detrex_dab_detr,
        ("official", "dab_detr"): official_dab_detr,
    }[source, family(variant)](model)
    assert {ours for _, ours in names} == state.keys(), "the list of names is complete"
    weights = OrderedDict((theirs, state[ours]) for theirs, ours in names)
    if (source, family(variant)) == ("official", "dino"):
        # a row that no class uses
        embedding = weights["label_enc.weight"]
        weights["label_enc.weight"] = torch.cat((embedding, torch.full_like(embedding[:1], 7.0)))
    return weights


def averaged(source, variant, model):
    """The averaged weights as the source would have them: detrex's are those of parameters, under their first names."""
    weights = written(source, variant, model)
    if source == "official":
        return weights
    # the transformer comes first and may hold the heads too; of shared heads, the first of the list comes first
    again = ("class_embed.1.", "bbox_embed.1.") if variant == "deformable_detr" else ()
    return {
        name: value
        for name, value in weights.items()
        if f"transformer.decoder.{name}" not in weights and not name.startswith(again)
    }


def pairs(theirs, ours, parts=PARTS):
    return [(f"{theirs}.{part}", f"{ours}.{part}") for part in parts]


def mlp(theirs, ours, depth):
    return [name for layer in range(depth) for name in pairs(f"{theirs}.layers.{layer}", f"{ours}.layers.{layer}")]


def heads(model, proposals, in_decoder):
    """Lists of heads, the detector's and, of the kinds named, the decoder's too; the proposals' is the last one."""
    depth = len(model.decoder.layers) + proposals
    names = []
    for kind, ours in (("class", "class_heads"), ("bbox", "box_heads")):
        for place in ("", "transformer.decoder.") if kind in in_decoder else ("",):
            for layer in range(depth):
                theirs = f"{place}{kind}_embed.{layer}"
                names += pairs(theirs, f"{ours}.{layer}") if kind == "class" else mlp(theirs, f"{ours}.{layer}", 3)
    return names


def deformable(theirs, ours):
    names = []
    for linear in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
        names += pairs(f"{theirs}.{linear}", f"{ours}.{linear}")
    return names


def self_attention(theirs, ours):
    names = pairs(f"{theirs}.out_proj", f"{ours}.out_proj")
    return names + [(f"{theirs}.in_proj_{part}", f"{ours}.in_proj_{part}") for part in PARTS]


def dino_alone():
    return [
        *mlp("transformer.decoder.ref_point_head", "decoder.reference_head", 2),
        *pairs("transformer.decoder.norm", "decoder.norm"),
        *pairs("transformer.enc_output", "proposal_proj"),
        *pairs("transformer.enc_output_norm", "proposal_norm"),
        *pairs("transformer.tgt_embed", "content", ["weight"]),
        *pairs("label_enc", "denoising.label_embedding", ["weight"]),
    ]


def deformable_detr_alone(model, queries, proposal_norm):
    names = heads(model, model.two_stage, ["class"] * model.two_stage + ["bbox"] * model.decoder.refine)
    if not model.two_stage:
        names += pairs(queries, "query_embedding", ["weight"])
        return names + pairs("transformer.reference_points", "reference_points")
    names += pairs("transformer.enc_output", "proposal_proj") + pairs(f"transformer.{proposal_norm}", "proposal_norm")
    return names + pairs("transformer.pos_trans", "query_proj") + pairs("transformer.pos_trans_norm", "query_norm")


def detrex_dino(model):
    return [*detrex_deformable(model), *dino_alone(), *heads(model, True, ["class", "bbox"])]


def official_dino(model):
    layers = len(model.decoder.layers)
    return [
        *official_deformable(model),
        *dino_alone(),
        *heads(model, False, ["class", "bbox"]),
        *pairs("transformer.enc_out_class_embed", f"class_heads.{layers}"),
        *mlp("transformer.enc_out_bbox_embed", f"box_heads.{layers}", 3),
    ]


def detrex_deformable_detr(model, proposal_norm="enc_output_norm"):
    return [*detrex_deformable(model), *deformable_detr_alone(model, "query_embedding", proposal_norm)]


def official_deformable_detr(model):
    return [*official_deformable(model), *deformable_detr_alone(model, "query_embed", "enc_output_norm")]


def detrex_deformable(model):
    """Backbone, neck and layers of the families with deformable attention."""
    names = [(name, name) for name in model.state_dict() if name.startswith("backbone.")]
    names += [("transformer.level_embeds", "encoder.level_embed")]
    features = len(model.neck.in_features)
    for level in range(model.num_levels):
        theirs = f"convs.{level}" if level < features else f"extra_convs.{level - features}"
        names += pairs(f"neck.{theirs}.conv", f"neck.convs.{level}.0")
        names += pairs(f"neck.{theirs}.norm", f"neck.convs.{level}.1")
    for layer in range(len(model.encoder.layers)):
        theirs, ours = f"transformer.encoder.layers.{layer}", f"encoder.layers.{layer}"
        names += deformable(f"{theirs}.attentions.0", f"{ours}.self_attn")
        names += pairs(f"{theirs}.ffns.0.layers.0.0", f"{ours}.ffn.0") + pairs(f"{theirs}.norms.0", f"{ours}.norm1")
        names += pairs(f"{theirs}.ffns.0.layers.1", f"{ours}.ffn.2") + pairs(f"{theirs}.norms.1", f"{ours}.norm2")
    for layer in range(len(model.decoder.layers)):
        theirs, ours = f"transformer.decoder.layers.{layer}", f"decoder.layers.{layer}"
        names += self_attention(f"{theirs}.attentions.0.attn", f"{ours}.self_attn")
        names += deformable(f"{theirs}.attentions.1", f"{ours}.cross_attn")
        names += pairs(f"{theirs}.ffns.0.layers.0.0", f"{ours}.ffn.0")
        names += pairs(f"{theirs}.ffns.0.layers.1", f"{ours}.ffn.2")
        for norm in range(3):
            names += pairs(f"{theirs}.norms.{norm}", f"{ours}.norm{norm + 1}")
    return names


def official_deformable(model):
    """Backbone, neck and layers of the families with deformable attention."""
    names = torchvision(model, "backbone.0.body.")
    names += [("transformer.level_embed", "encoder.level_embed")]
    for level in range(model.num_levels):
        names += pairs(f"input_proj.{level}.0", f"neck.convs.{level}.0")
        names += pairs(f"input_proj.{level}.1", f"neck.convs.{level}.1")
    for layer in range(len(model.encoder.layers)):
        theirs, ours = f"transformer.encoder.layers.{layer}", f"encoder.layers.{layer}"
        names += deformable(f"{theirs}.self_attn", f"{ours}.self_attn")
        names += pairs(f"{theirs}.linear1", f"{ours}.ffn.0") + pairs(f"{theirs}.norm1", f"{ours}.norm1")
        names += pairs(f"{theirs}.linear2", f"{ours}.ffn.2") + pairs(f"{theirs}.norm2", f"{ours}.norm2")
    for layer in range(len(model.decoder.layers)):
        theirs, ours = f"transformer.decoder.layers.{layer}", f"decoder.layers.{layer}"
        names += self_attention(f"{theirs}.self_attn", f"{ours}.self_attn") + pairs(f"{theirs}.norm2", f"{ours}.norm1")
        names += deformable(f"{theirs}.cross_attn", f"{ours}.cross_attn") + pairs(f"{theirs}.norm1", f"{ours}.norm2")
        names += pairs(f"{theirs}.linear1", f"{ours}.ffn.0") + pairs(f"{theirs}.linear2", f"{ours}.ffn.2")
        names += pairs(f"{theirs}.norm3", f"{ours}.norm3")
    return names


def dab_detr_alone(model, anchors, norm):
    names = pairs("input_proj", "neck.convs.0.0") + pairs(anchors, "anchors", ["weight"])
    if model.patterns is not None:
        names += pairs("transformer.patterns", "patterns", ["weight"])
    return [
        *names,
        *pairs("class_embed", "class_head"),
        *mlp("bbox_embed", "box_head", 3),
        *mlp("transformer.decoder.bbox_embed", "box_head", 3),
        *mlp("transformer.encoder.query_scale", "encoder.position_scale", 2),
        *mlp("transformer.decoder.query_scale", "decoder.position_scale", 2),
        *mlp("transformer.decoder.ref_point_head", "decoder.reference_head", 2),
        *mlp("transformer.decoder.ref_anchor_head", "decoder.extent_head", 2),
        *pairs(f"transformer.decoder.{norm}", "decoder.norm"),
    ]


def detrex_dab_detr(model, anchors="anchor_box_embed"):
    names = dab_detr_alone(model, anchors, "post_norm_layer")
    dilated = model.backbone.output_shape()["res5"].stride == 16
    names += (
        torchvision(model, "backbone.body.")
        if dilated
        else [(name, name) for name in model.state_dict() if name.startswith("backbone.")]
    )
    content = ("query_content_proj", "key_content_proj", "key_pos_proj", "value_proj", "out_proj")
    for layer in range(len(model.encoder.layers)):
        theirs, ours = f"transformer.encoder.layers.{layer}", f"encoder.layers.{layer}"
        names += self_attention(f"{theirs}.attentions.0.attn", f"{ours}.self_attn")
        for norm in range(2):
            names += pairs(f"{theirs}.norms.{norm}", f"{ours}.norm{norm + 1}")
        names += detrex_ffn(theirs, ours)
    for layer in range(len(model.decoder.layers)):
        theirs, ours = f"transformer.decoder.layers.{layer}", f"decoder.layers.{layer}"
        for linear in (*content, "query_pos_proj"):
            names += pairs(f"{theirs}.attentions.0.{linear}", f"{ours}.self_attn.{linear}")
        for linear in (*content, "query_pos_proj") if layer == 0 else content:
            names += pairs(f"{theirs}.attentions.1.{linear}", f"{ours}.cross_attn.{linear}")
        names += pairs(f"{theirs}.attentions.1.query_pos_sine_proj", f"{ours}.cross_attn.query_centre_proj")
        for norm in range(3):
            names += pairs(f"{theirs}.norms.{norm}", f"{ours}.norm{norm + 1}")
        names += detrex_ffn(theirs, ours)
    return names


def detrex_ffn(theirs, ours):
    return [
        *pairs(f"{theirs}.ffns.0.layers.0.0", f"{ours}.ffn.0"),
        *pairs(f"{theirs}.ffns.0.layers.0.1", f"{ours}.ffn.1", ["weight"]),
        *pairs(f"{theirs}.ffns.0.layers.1", f"{ours}.ffn.2"),
    ]


def official_dab_detr(model):
    names = torchvision(model, "backbone.0.body.") + dab_detr_alone(model, "refpoint_embed", "norm")
    content = {
        "qcontent_proj": "query_content_proj",
        "kcontent_proj": "key_content_proj",
        "kpos_proj": "key_pos_proj",
        "v_proj": "value_proj",
    }
    position = {"qpos_proj": "query_pos_proj"}
    for layer in range(len(model.encoder.layers)):
        theirs, ours = f"transformer.encoder.layers.{layer}", f"encoder.layers.{layer}"
        names += self_attention(f"{theirs}.self_attn", f"{ours}.self_attn")
        for norm in ("norm1", "norm2"):
            names += pairs(f"{theirs}.{norm}", f"{ours}.{norm}")
        names += official_ffn(theirs, ours)
    for layer in range(len(model.decoder.layers)):
        theirs, ours = f"transformer.decoder.layers.{layer}", f"decoder.layers.{layer}"
        for linear, name in (content | position).items():
            names += pairs(f"{theirs}.sa_{linear}", f"{ours}.self_attn.{name}")
        for linear, name in (content | position if layer == 0 else content).items():
            names += pairs(f"{theirs}.ca_{linear}", f"{ours}.cross_attn.{name}")
        names += pairs(f"{theirs}.ca_qpos_sine_proj", f"{ours}.cross_attn.query_centre_proj")
        for attention in ("self_attn", "cross_attn"):
            names += pairs(f"{theirs}.{attention}.out_proj", f"{ours}.{attention}.out_proj")
        for norm in ("norm1", "norm2", "norm3"):
            names += pairs(f"{theirs}.{norm}", f"{ours}.{norm}")
        names += official_ffn(theirs, ours)
    return names


def official_ffn(theirs, ours):
    return [
        *pairs(f"{theirs}.linear1", f"{ours}.ffn.0"),
        *pairs(f"{theirs}.activation", f"{ours}.ffn.1", ["weight"]),
        *pairs(f"{theirs}.linear2", f"{ours}.ffn.2"),
    ]


def torchvision(model, prefix):
    norm = (*PARTS, "running_mean", "running_var")
    names = pairs(f"{prefix}conv1", "backbone.stem.conv1", ["weight"])
    names += pairs(f"{prefix}bn1", "backbone.stem.conv1.norm", norm)
    for stage in (2, 3, 4, 5):
        for index, block in enumerate(getattr(model.backbone, f"res{stage}")):
            theirs, ours = f"{prefix}layer{stage - 1}.{index}", f"backbone.res{stage}.{index}"
            for conv in (1, 2, 3) if hasattr(block, "conv3") else (1, 2):
                names += pairs(f"{theirs}.conv{conv}", f"{ours}.conv{conv}", ["weight"])
                names += pairs(f"{theirs}.bn{conv}", f"{ours}.conv{conv}.norm", norm)
            if block.shortcut is not None:
                names += pairs(f"{theirs}.downsample.0", f"{ours}.shortcut", ["weight"])
                names += pairs(f"{theirs}.downsample.1", f"{ours}.shortcut.norm", norm)
    return names
