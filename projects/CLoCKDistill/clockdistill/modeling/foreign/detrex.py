"""detrex (github.com/IDEA-Research/detrex), whose backbone is Detectron2's, as ours is."""

from .origin import (
    DAB_DETR,
    DEFORMABLE_DETR,
    DINO,
    Origin,
    Table,
    Weights,
    count,
    encoding,
    head_lists,
    refines,
    resnet,
)


def dino(weights: Weights, ours: Weights) -> Table:
    return deformable(weights, ours, DINO)


def deformable_detr(weights: Weights, ours: Weights) -> Table:
    return deformable(weights, ours, DEFORMABLE_DETR)


def deformable(weights: Weights, ours: Weights, family: Table) -> Table:
    """What the two families with deformable attention share, around the table that the family has for itself."""
    num_features = count(r"neck\.convs\.(\d+)\.", weights)
    return [
        (r"^neck\.extra_convs\.(\d+)\.", lambda match: f"neck.convs.{num_features + int(match[1])}."),
        (r"^(neck\.convs\.\d+)\.conv\.", r"\1.0."),
        (r"^(neck\.convs\.\d+)\.norm\.", r"\1.1."),
        (r"^transformer\.level_embeds$", "encoder.level_embed"),
        *head_lists(weights, ours),
        *family,
        *LAYERS,
    ]


def dab_detr(weights: Weights, ours: Weights) -> Table:
    return [
        # the variant with dilation has torchvision's backbone
        *resnet("backbone.body.", "backbone."),
        *DAB_DETR,
        (r"^transformer\.decoder\.post_norm_layer\.", "decoder.norm."),
        *LAYERS,
        (r"\.query_pos_sine_proj\.", ".query_centre_proj."),
        (r"\.ffns\.0\.layers\.0\.1\.", ".ffn.1."),
    ]


LAYERS: Table = [
    (r"^transformer\.(encoder|decoder)\.", r"\1."),
    (r"^((en|de)coder\.layers\.\d+)\.attentions\.0\.(attn\.)?", r"\1.self_attn."),
    (r"^(decoder\.layers\.\d+)\.attentions\.1\.", r"\1.cross_attn."),
    (r"\.ffns\.0\.layers\.0\.0\.", ".ffn.0."),
    (r"\.ffns\.0\.layers\.1\.", ".ffn.2."),
    (r"\.norms\.(\d)\.", lambda match: f".norm{int(match[1]) + 1}."),
]

ORIGINS = (
    Origin(
        "detrex's DINO",
        (frozenset({"transformer.level_embeds", "transformer.tgt_embed.weight", "label_enc.weight"}),),
        dino,
        lambda weights: encoding(10000, -0.5),
    ),
    Origin(
        "detrex's Deformable DETR",
        (
            frozenset({"transformer.level_embeds", "transformer.reference_points.weight", "query_embedding.weight"}),
            frozenset({"transformer.level_embeds", "transformer.pos_trans.weight"}),
        ),
        deformable_detr,
        lambda weights: {**encoding(10000, -0.5), "decoder.eps": 1e-3, "decoder.refine": refines(weights)},
    ),
    Origin(
        "detrex's DAB-DETR",
        (
            frozenset(
                {
                    "transformer.decoder.ref_anchor_head.layers.0.weight",
                    "transformer.decoder.layers.0.attentions.1.query_pos_sine_proj.weight",
                }
            ),
        ),
        dab_detr,
        lambda weights: encoding(20, 0.0),
    ),
)
