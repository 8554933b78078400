"""Other programs' names for the parameters of our models: torchvision's ResNets, detrex's DINO and the official DINO.

Whose names a file has is seen from the names themselves. A table of regular expressions, applied in order to every
name, turns them into ours; few parameters need more than another name.
"""

import logging
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor, nn

from ..layers import PositionEmbeddingSine

logger = logging.getLogger(__name__)

# where checkpoints keep averaged weights, beside "model": the official DINO, detrex
AVERAGED = ("ema_model", "ema_state")

Weights = dict[str, Tensor]
Table = list[tuple[str, str | Callable[[re.Match], str]]]


class Origin(NamedTuple):
    """A program that writes checkpoints.

    Attributes:
        name: as people know it.
        marks: names of parameters that together are found in its files alone.
        table: from the file's weights and ours to pairs of a pattern and what replaces it.
        encoding: temperature and offset of the position encoding that its models are trained with, or None.
        adapt: what else the renamed weights need, or None.
    """

    name: str
    marks: frozenset[str]
    table: Callable[[Weights, Weights], Table]
    encoding: tuple[float, float] | None = None
    adapt: Callable[[Weights, Weights], None] | None = None


def translate(weights: Weights, model: nn.Module) -> Weights:
    """Weights under the model's names where their own are those of a known origin; others come back as they are.

    What has no counterpart in the model keeps the name that it has in the file.
    """
    plain = {name.removeprefix("module."): value for name, value in weights.items()}
    origin = next((origin for origin in ORIGINS if origin.marks <= plain.keys()), None)
    if origin is None:
        return weights
    logger.info(f"The checkpoint's parameters are named as in {origin.name}.")
    ours = model.state_dict()
    table = origin.table(plain, ours)
    renamed = {}
    for name, value in plain.items():
        new = name
        for pattern, replacement in table:
            new = re.sub(pattern, replacement, new)
        renamed[new if new in ours else name] = value
    if origin.adapt is not None:
        origin.adapt(renamed, ours)
    warn_of_encoding(origin, model)
    return renamed


def torchvision_resnet(weights: Weights, ours: Weights) -> Table:
    """Into the model's ResNet, which may have any name, `backbone` as a rule."""
    stems = [name for name in ours if re.search(r"(^|\.)stem\.conv1\.weight$", name)]
    return resnet("", stems[0].removesuffix("stem.conv1.weight")) if stems else []


def detrex_dino(weights: Weights, ours: Weights) -> Table:
    """detrex's backbone is Detectron2's, as ours is."""
    num_features = count(r"neck\.convs\.(\d+)\.", weights)
    num_layers = count(r"transformer\.decoder\.layers\.(\d+)\.", weights)
    return [
        (r"^neck\.extra_convs\.(\d+)\.", lambda match: f"neck.convs.{num_features + int(match[1])}."),
        (r"^(neck\.convs\.\d+)\.conv\.", r"\1.0."),
        (r"^(neck\.convs\.\d+)\.norm\.", r"\1.1."),
        (r"^transformer\.level_embeds$", "encoder.level_embed"),
        # of the heads, the last ones are the proposals'
        (rf"^(transformer\.decoder\.)?(class|bbox)_embed\.{num_layers}\.", r"transformer.enc_out_\2_embed."),
        *dino_heads(ours),
        (r"^transformer\.(encoder|decoder)\.", r"\1."),
        (r"^(encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
        (r"^(decoder\.layers\.\d+)\.attentions\.0\.attn\.", r"\1.self_attn."),
        (r"^(decoder\.layers\.\d+)\.attentions\.1\.", r"\1.cross_attn."),
        (r"\.ffns\.0\.layers\.0\.0\.", ".ffn.0."),
        (r"\.ffns\.0\.layers\.1\.", ".ffn.2."),
        (r"\.norms\.(\d)\.", lambda match: f".norm{int(match[1]) + 1}."),
    ]


def official_dino(weights: Weights, ours: Weights) -> Table:
    """The official DINO's backbone is torchvision's; a head that all layers share is listed once a layer."""
    return [
        *resnet("backbone.0.body.", "backbone."),
        (r"^input_proj\.", "neck.convs."),
        (r"^transformer\.level_embed$", "encoder.level_embed"),
        *dino_heads(ours),
        (r"^transformer\.(encoder|decoder)\.", r"\1."),
        (r"\.linear1\.", ".ffn.0."),
        (r"\.linear2\.", ".ffn.2."),
        # a decoder layer's first norm is the one after cross-attention, which comes second
        (r"^(decoder\.layers\.\d+)\.norm([12])\.", lambda match: f"{match[1]}.norm{3 - int(match[2])}."),
    ]


def dino_heads(ours: Weights) -> Table:
    """What detrex took over from the official DINO. Both list heads twice, as the detector's and as the decoder's.

    The proposals' heads are the last of ours, also where our decoder has another depth than the file's.
    """
    depth = count(r"decoder\.layers\.(\d+)\.", ours)
    layers = "|".join(str(layer) for layer in range(depth))
    return [
        (r"^transformer\.enc_out_class_embed\.", f"class_heads.{depth}."),
        (r"^transformer\.enc_out_bbox_embed\.", f"box_heads.{depth}."),
        (rf"^(transformer\.decoder\.)?class_embed\.(?=({layers})\.)", "class_heads."),
        (rf"^(transformer\.decoder\.)?bbox_embed\.(?=({layers})\.)", "box_heads."),
        (r"^transformer\.decoder\.ref_point_head\.", "decoder.reference_head."),
        (r"^transformer\.tgt_embed\.", "content."),
        (r"^transformer\.enc_output\.", "proposal_proj."),
        (r"^transformer\.enc_output_norm\.", "proposal_norm."),
        (r"^label_enc\.", "denoising.label_embedding."),
    ]


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


def count(pattern: str, names: Iterable[str]) -> int:
    """How many modules of a list have names that begin with the pattern, whose group is the index in the list."""
    return len({match[1] for match in map(re.compile(pattern).match, names) if match})


def pick_classes(weights: Weights, ours: Weights) -> None:
    """Rows of our classes, where the file has a row for every number up to the highest category id.

    The official repositories do not renumber COCO's 80 categories, whose ids go up to 90, and label embeddings have
    one row or more at the end that no class uses. Another difference in the number of classes is left as it is.
    """
    head = "class_heads.0.weight"
    if head not in weights or head not in ours:
        return
    theirs, wanted = len(weights[head]), len(ours[head])
    rows = torch.arange(theirs)
    coco = torch.tensor([category["id"] for category in COCO_CATEGORIES if category["isthing"]])
    if theirs == coco.max() + 1 and wanted == len(coco):
        logger.info(f"The checkpoint's {theirs} classes are COCO's category ids: the {wanted} in use are taken.")
        rows = coco
    for name, value in weights.items():
        if name.startswith(("class_heads.", "denoising.label_embedding.")) and len(value) >= theirs:
            weights[name] = value[rows]


def warn_of_encoding(origin: Origin, model: nn.Module) -> None:
    """Position encodings have no parameters: that one is another than in training would show in the results alone."""
    for module in model.modules():
        if not isinstance(module, PositionEmbeddingSine) or origin.encoding is None:
            continue
        if (module.temperature, module.offset) != origin.encoding:
            temperature, offset = origin.encoding
            logger.warning(
                f"{origin.name} encodes positions with temperature {temperature} and offset {offset}, the model with "
                f"{module.temperature} and {module.offset}: unless the checkpoint was trained so, set "
                f"model.position_embedding.temperature={temperature} model.position_embedding.offset={offset}"
            )


ORIGINS = (
    Origin(
        "torchvision's ResNet",
        frozenset({"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"}),
        torchvision_resnet,
    ),
    Origin(
        "detrex's DINO",
        frozenset({"transformer.level_embeds", "transformer.tgt_embed.weight", "label_enc.weight"}),
        detrex_dino,
        encoding=(10000, -0.5),
    ),
    Origin(
        "the official DINO",
        frozenset({"transformer.level_embed", "transformer.tgt_embed.weight", "label_enc.weight"}),
        official_dino,
        encoding=(20, 0.0),
        adapt=pick_classes,
    ),
)
