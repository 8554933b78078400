"""What is known of a program whose checkpoints are read, and what several of their tables of names have in common."""

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]
Table = list[tuple[str, str | Callable[[re.Match], str]]]


class Origin(NamedTuple):
    """A program that writes checkpoints, and a family of its models.

    Attributes:
        name: as people know it.
        marks: sets of names of parameters, of which any is found as a whole in these files alone.
        table: from the file's weights and ours to pairs of a pattern and what replaces it.
        settings: from the file's weights to what the model must be like, as config keys under `model.`.
        adapt: what else the renamed weights need, given ours, or None.
    """

    name: str
    marks: tuple[frozenset[str], ...]
    table: Callable[[Weights, Weights], Table]
    settings: Callable[[Weights], dict[str, Any]] = lambda weights: {}
    adapt: Callable[[Weights, Weights], None] | None = None


def encoding(temperature: float, offset: float) -> dict[str, float]:
    """Settings of the position encoding."""
    return {"position_embedding.temperature": temperature, "position_embedding.offset": offset}


def refines(weights: Weights) -> bool:
    """Whether a Deformable DETR's decoder refines boxes: it then has the heads too, beside the detector."""
    return any(name.startswith("transformer.decoder.bbox_embed.") for name in weights)


def count(pattern: str, names: Iterable[str]) -> int:
    """How many modules of a list have names that begin with the pattern, whose group is the index in the list."""
    return len({match[1] for match in map(re.compile(pattern).match, names) if match})


def resnet(theirs: str, ours: str) -> Table:
    """From torchvision's ResNet under the prefix `theirs` to Detectron2's under the prefix `ours`."""
    return [
        (rf"^{re.escape(theirs)}(?=layer\d\.)", ours),
        (rf"^{re.escape(theirs)}(?=(conv1|bn1)\.)", f"{ours}stem."),
        (r"\blayer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
        (r"\bbn(\d)\.", r"conv\1.norm."),
        (r"\bdownsample\.0\.", "shortcut."),
        (r"\bdownsample\.1\.", "shortcut.norm."),
    ]


def head_lists(weights: Weights, ours: Weights) -> Table:
    """A head a decoder layer, listed twice, as the detector's and as the decoder's; the proposals' may be the last one.

    The proposals' heads are the last of ours too, also where our decoder has another depth than the file's.
    """
    theirs = count(r"transformer\.decoder\.layers\.(\d+)\.", weights)
    depth = decoder_depth(ours)
    layers = "|".join(str(layer) for layer in range(depth))
    return [
        (rf"^(transformer\.decoder\.)?(class|bbox)_embed\.{theirs}\.", r"transformer.enc_out_\2_embed."),
        (r"^transformer\.enc_out_class_embed\.", f"class_heads.{depth}."),
        (r"^transformer\.enc_out_bbox_embed\.", f"box_heads.{depth}."),
        (rf"^(transformer\.decoder\.)?class_embed\.(?=({layers})\.)", "class_heads."),
        (rf"^(transformer\.decoder\.)?bbox_embed\.(?=({layers})\.)", "box_heads."),
    ]


def decoder_depth(ours: Weights) -> int:
    return count(r"decoder\.layers\.(\d+)\.", ours)


# what both programs call the same
DINO: Table = [
    (r"^transformer\.decoder\.ref_point_head\.", "decoder.reference_head."),
    (r"^transformer\.tgt_embed\.", "content."),
    (r"^transformer\.enc_output\.", "proposal_proj."),
    (r"^transformer\.enc_output_norm\.", "proposal_norm."),
    (r"^label_enc\.", "denoising.label_embedding."),
]
DEFORMABLE_DETR: Table = [
    (r"^query_embed(ding)?\.", "query_embedding."),
    (r"^transformer\.reference_points\.", "reference_points."),
    (r"^transformer\.enc_output\.", "proposal_proj."),
    # detrex once spelt it otherwise
    (r"^transformer\.enc_outp(o?)ut_norm\.", "proposal_norm."),
    (r"^transformer\.pos_trans\.", "query_proj."),
    (r"^transformer\.pos_trans_norm\.", "query_norm."),
]
DAB_DETR: Table = [
    (r"^input_proj\.", "neck.convs.0.0."),
    (r"^(refpoint|anchor_box)_embed\.", "anchors."),
    (r"^transformer\.patterns\.", "patterns."),
    (r"^class_embed\.", "class_head."),
    (r"^(transformer\.decoder\.)?bbox_embed\.", "box_head."),
    (r"^transformer\.(encoder|decoder)\.query_scale\.", r"\1.position_scale."),
    (r"^transformer\.decoder\.ref_point_head\.", "decoder.reference_head."),
    (r"^transformer\.decoder\.ref_anchor_head\.", "decoder.extent_head."),
]


def pick_classes(weights: Weights, ours: Weights) -> None:
    """Rows of our classes, where the file has a row for every number up to the highest category id.

    The official repositories do not renumber COCO's 80 categories, whose ids go up to 90, and label embeddings have
    one row or more at the end that no class uses. Another difference in the number of classes is left as it is.
    """
    head = next((name for name in ours if re.match(r"class_heads?\..*weight$", name)), None)
    if head not in weights:
        return
    theirs, wanted = len(weights[head]), len(ours[head])
    rows = torch.arange(theirs)
    coco = torch.tensor([category["id"] for category in COCO_CATEGORIES if category["isthing"]])
    if theirs == coco.max() + 1 and wanted == len(coco):
        logger.info(f"The checkpoint's {theirs} classes are COCO's category ids: the {wanted} in use are taken.")
        rows = coco
    for name, value in weights.items():
        if name.startswith(("class_head.", "class_heads.", "denoising.label_embedding.")) and len(value) >= theirs:
            weights[name] = value[rows]
