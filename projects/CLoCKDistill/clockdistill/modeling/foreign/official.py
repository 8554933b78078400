"""The repositories of the papers' authors, whose backbone is torchvision's: github.com/IDEA-Research/DINO and DAB-DETR,
github.com/fundamentalvision/Deformable-DETR."""

import torch

from .origin import (
    DAB_DETR,
    DEFORMABLE_DETR,
    DINO,
    Origin,
    Table,
    Weights,
    decoder_depth,
    encoding,
    head_lists,
    pick_classes,
    refines,
    resnet,
)


def dino(weights: Weights, ours: Weights) -> Table:
    return deformable(weights, ours, DINO)


def deformable_detr(weights: Weights, ours: Weights) -> Table:
    return deformable(weights, ours, DEFORMABLE_DETR)


def deformable(weights: Weights, ours: Weights, family: Table) -> Table:
    """What the two families with deformable attention share, around the table that the family has for itself."""
    return [
        *resnet("backbone.0.body.", "backbone."),
        (r"^input_proj\.", "neck.convs."),
        (r"^transformer\.level_embed$", "encoder.level_embed"),
        *head_lists(weights, ours),
        *family,
        *LAYERS,
        # a decoder layer's first norm is the one after cross-attention, which comes second
        (r"^(decoder\.layers\.\d+)\.norm([12])\.", lambda match: f"{match[1]}.norm{3 - int(match[2])}."),
    ]


def dab_detr(weights: Weights, ours: Weights) -> Table:
    return [
        *resnet("backbone.0.body.", "backbone."),
        *DAB_DETR,
        *LAYERS,
        (r"\.activation\.", ".ffn.1."),
        (r"\.sa_(?=\w+_proj\.)", ".self_attn."),
        (r"\.ca_qpos_sine_proj\.", ".cross_attn.query_centre_proj."),
        (r"\.ca_(?=\w+_proj\.)", ".cross_attn."),
        (r"_attn\.v_proj\.", "_attn.value_proj."),
        (r"_attn\.q(?=(content|pos)_proj\.)", "_attn.query_"),
        (r"_attn\.k(?=(content|pos)_proj\.)", "_attn.key_"),
    ]


def pick_classes_but_objectness(weights: Weights, ours: Weights) -> None:
    """The same for Deformable DETR, in whose proposals the first class stands for any object and keeps its row."""
    proposals = f"class_heads.{decoder_depth(ours)}."
    first = {name: value[:1] for name, value in weights.items() if name.startswith(proposals)}
    pick_classes(weights, ours)
    for name, row in first.items():
        weights[name] = torch.cat((row, weights[name][1:]))


LAYERS: Table = [
    (r"^transformer\.(encoder|decoder)\.", r"\1."),
    (r"\.linear1\.", ".ffn.0."),
    (r"\.linear2\.", ".ffn.2."),
]

ORIGINS = (
    Origin(
        "the official DINO",
        (frozenset({"transformer.level_embed", "transformer.tgt_embed.weight", "label_enc.weight"}),),
        dino,
        lambda weights: encoding(20, 0.0),
        adapt=pick_classes,
    ),
    Origin(
        "the official Deformable DETR",
        (
            frozenset({"transformer.level_embed", "transformer.reference_points.weight", "query_embed.weight"}),
            frozenset({"transformer.level_embed", "transformer.pos_trans.weight"}),
        ),
        deformable_detr,
        lambda weights: {**encoding(10000, -0.5), "decoder.eps": 1e-5, "decoder.refine": refines(weights)},
        adapt=pick_classes_but_objectness,
    ),
    Origin(
        "the official DAB-DETR",
        (
            frozenset(
                {
                    "transformer.decoder.ref_anchor_head.layers.0.weight",
                    "transformer.decoder.layers.0.ca_qpos_sine_proj.weight",
                }
            ),
        ),
        dab_detr,
        lambda weights: encoding(20, 0.0),
        adapt=pick_classes,
    ),
)
