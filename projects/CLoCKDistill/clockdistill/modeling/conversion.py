"""Convert the state dicts of other implementations to the parameter names of the models here.

Supported are torchvision's ResNets, for the backbone, and DINO, Deformable DETR and DAB-DETR from

* detrex, https://github.com/IDEA-Research/detrex, and
* their authors, https://github.com/IDEA-Research/DINO, https://github.com/fundamentalvision/Deformable-DETR and
  https://github.com/IDEA-Research/DAB-DETR.

The format is recognized by its parameter names. Regular expressions, applied in order, then rename the parameters;
few need more than another name.
"""

import logging
import re
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor, nn

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]
# (pattern, replacement) as for `re.sub`
Replacements = list[tuple[str, str | Callable[[re.Match], str]]]


class CheckpointFormat(NamedTuple):
    """The parameter names of one model family in one implementation.

    Attributes:
        name: name of the format in messages.
        key_patterns: regular expressions; a state dict has this format if each of them matches one of its keys.
        replacements: function of the source's and the model's state dict that returns how to rename the keys.
        settings: function of the source's state dict that returns the settings of its training, as keys below `model.`.
        has_category_ids: whether classes are numbered by COCO's category ids.
    """

    name: str
    key_patterns: tuple[str, ...]
    replacements: Callable[[StateDict, StateDict], Replacements]
    settings: Callable[[StateDict], dict[str, Any]] = lambda source: {}
    has_category_ids: bool = False


def convert_state_dict(source: StateDict, model: nn.Module) -> StateDict:
    """Rename the parameters of a state dict in a known format to the model's names.

    Args:
        source: a state dict of any format.
        model: the model that the state dict is for. A warning names its settings that differ from the format's.

    Returns:
        A new state dict, or `source` if its format is not known. Keys without a counterpart in the model are kept.
    """
    stripped = {key.removeprefix("module."): value for key, value in source.items()}
    source_format = next((known for known in FORMATS if has_format(stripped, known)), None)
    if source_format is None:
        return source
    logger.info(f"The checkpoint has the parameter names of {source_format.name}.")
    target = model.state_dict()
    replacements = source_format.replacements(stripped, target)
    converted = {}
    for key, value in stripped.items():
        new_key = key
        for pattern, replacement in replacements:
            new_key = re.sub(pattern, replacement, new_key)
        converted[new_key if new_key in target else key] = value
    fill_shared_parameters(converted, model)
    if source_format.has_category_ids:
        select_coco_classes(converted, target)
    warn_about_settings(source_format.name, source_format.settings(stripped), model)
    return converted


def has_format(source: StateDict, known: CheckpointFormat) -> bool:
    return all(any(re.fullmatch(pattern, key) for key in source) for pattern in known.key_patterns)


def fill_shared_parameters(converted: StateDict, model: nn.Module) -> None:
    """Add the missing names of parameters that have several in the model, as shared heads have.

    detrex's averaged weights contain each parameter once.
    """
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.state_dict(keep_vars=True).items():
        names_of.setdefault(id(parameter), []).append(name)
    for names in names_of.values():
        value = next((converted[name] for name in names if name in converted), None)
        if value is not None:
            for name in names:
                converted.setdefault(name, value)


def select_coco_classes(converted: StateDict, target: StateDict) -> None:
    """Select the rows of COCO's 80 categories where the source numbers classes by category ids, which go up to 90.

    Label embeddings also lose the rows after the last class, which stand for "no object". Any other difference in the
    number of classes is left for the caller to report.
    """
    head = next((key for key in target if re.match(r"class_heads?\..*weight$", key)), None)
    if head not in converted:
        return
    num_source, num_target = len(converted[head]), len(target[head])
    rows = torch.arange(num_source)
    category_ids = torch.tensor([category["id"] for category in COCO_CATEGORIES if category["isthing"]])
    if num_source == category_ids.max() + 1 and num_target == len(category_ids):
        logger.info(f"Of the checkpoint's {num_source} classes, the {num_target} with a COCO category are loaded.")
        rows = category_ids
    # the first class of a two-stage Deformable DETR's proposals is objectness, whatever its number
    objectness_head = f"class_heads.{decoder_depth(target)}." if "query_proj.weight" in target else None
    for key, value in converted.items():
        if key.startswith(("class_head.", "class_heads.", "denoising.label_embedding.")) and len(value) >= num_source:
            is_objectness = objectness_head is not None and key.startswith(objectness_head)
            converted[key] = value[torch.cat((rows.new_zeros(1), rows[1:]))] if is_objectness else value[rows]


def warn_about_settings(name: str, settings: dict[str, Any], model: nn.Module) -> None:
    """Warn of differences that no parameter's name or shape reveals, such as in the position encoding."""
    for key, expected in settings.items():
        try:
            value = attrgetter(key)(model)
        except AttributeError:
            continue
        if value != expected:
            logger.warning(
                f"The checkpoint has the parameter names of {name}, which uses model.{key}={expected}, but the model "
                f"has {value}: set model.{key}={expected}, unless the checkpoint was trained with another value"
            )


def count_modules(pattern: str, keys: Iterable[str]) -> int:
    """Count a list's modules; the pattern captures the index at the beginning of a key."""
    return len({match[1] for match in map(re.compile(pattern).match, keys) if match})


def decoder_depth(target: StateDict) -> int:
    return count_modules(r"decoder\.layers\.(\d+)\.", target)


def resnet(source_prefix: str, prefix: str) -> Replacements:
    """From torchvision's ResNet to Detectron2's; `source_prefix` is a regular expression."""
    return [
        (rf"^{source_prefix}(?=layer\d\.)", prefix),
        (rf"^{source_prefix}(?=(conv1|bn1)\.)", f"{prefix}stem."),
        (r"\blayer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
        (r"\bbn(\d)\.", r"conv\1.norm."),
        (r"\bdownsample\.0\.", "shortcut."),
        (r"\bdownsample\.1\.", "shortcut.norm."),
    ]


def torchvision_resnet(source: StateDict, target: StateDict) -> Replacements:
    stem = next((key for key in target if re.search(r"(^|\.)stem\.conv1\.weight$", key)), None)
    return resnet("", stem.removesuffix("stem.conv1.weight")) if stem else []


def prediction_heads(source: StateDict, target: StateDict) -> Replacements:
    """One head per decoder layer, listed in the detector or in its decoder or in both, then the proposals' head.

    The proposals' head remains the last one even if the model's decoder has fewer layers than the source's.
    """
    source_depth = count_modules(r"transformer\.decoder\.layers\.(\d+)\.", source)
    depth = decoder_depth(target)
    layers = "|".join(str(layer) for layer in range(depth))
    return [
        (rf"^(transformer\.decoder\.)?(class|bbox)_embed\.{source_depth}\.", r"transformer.enc_out_\2_embed."),
        (r"^transformer\.enc_out_class_embed\.", f"class_heads.{depth}."),
        (r"^transformer\.enc_out_bbox_embed\.", f"box_heads.{depth}."),
        (rf"^(transformer\.decoder\.)?class_embed\.(?=({layers})\.)", "class_heads."),
        (rf"^(transformer\.decoder\.)?bbox_embed\.(?=({layers})\.)", "box_heads."),
    ]


def deformable_attention(source: StateDict, target: StateDict) -> Replacements:
    """DINO's and Deformable DETR's names in both implementations."""
    num_convs = count_modules(r"neck\.convs\.(\d+)\.", source)
    return [
        *resnet(r"backbone\.0\.body\.", "backbone."),
        (r"^input_proj\.", "neck.convs."),
        (r"^neck\.extra_convs\.(\d+)\.", lambda match: f"neck.convs.{num_convs + int(match[1])}."),
        (r"^(neck\.convs\.\d+)\.conv\.", r"\1.0."),
        (r"^(neck\.convs\.\d+)\.norm\.", r"\1.1."),
        (r"^transformer\.level_embeds?$", "encoder.level_embed"),
        *prediction_heads(source, target),
        # DINO
        (r"^transformer\.tgt_embed\.", "content."),
        (r"^label_enc\.", "denoising.label_embedding."),
        (r"^transformer\.decoder\.ref_point_head\.", "decoder.reference_head."),
        # Deformable DETR
        (r"^query_embed(ding)?\.", "query_embedding."),
        (r"^transformer\.reference_points\.", "reference_points."),
        (r"^transformer\.pos_trans\.", "query_proj."),
        (r"^transformer\.pos_trans_norm\.", "query_norm."),
        # both; detrex once misspelled enc_output_norm
        (r"^transformer\.enc_output\.", "proposal_proj."),
        (r"^transformer\.enc_outpo?ut_norm\.", "proposal_norm."),
        # the authors call the norm after cross-attention norm1, although it is applied second
        (r"^(transformer\.decoder\.layers\.\d+)\.norm([12])\.", lambda match: f"{match[1]}.norm{3 - int(match[2])}."),
        *LAYERS,
    ]


def dab_detr(source: StateDict, target: StateDict) -> Replacements:
    """DAB-DETR's names in both implementations; detrex uses torchvision's backbone if it is dilated."""
    return [
        *resnet(r"backbone\.(0\.)?body\.", "backbone."),
        (r"^input_proj\.", "neck.convs.0.0."),
        (r"^(refpoint|anchor_box)_embed\.", "anchors."),
        (r"^transformer\.patterns\.", "patterns."),
        (r"^class_embed\.", "class_head."),
        (r"^(transformer\.decoder\.)?bbox_embed\.", "box_head."),
        (r"^transformer\.(encoder|decoder)\.query_scale\.", r"\1.position_scale."),
        (r"^transformer\.decoder\.ref_point_head\.", "decoder.reference_head."),
        (r"^transformer\.decoder\.ref_anchor_head\.", "decoder.extent_head."),
        (r"^transformer\.decoder\.post_norm_layer\.", "decoder.norm."),
        # detrex lists the activation twice
        (r"\.(activation|ffns\.0\.(activation|layers\.0\.1))\.", ".ffn.1."),
        (r"\.sa_(?=\w+_proj\.)", ".self_attn."),
        (r"\.ca_(?=\w+_proj\.)", ".cross_attn."),
        (r"_attn\.v_proj\.", "_attn.value_proj."),
        (r"_attn\.q(?=(content|pos|pos_sine)_proj\.)", "_attn.query_"),
        (r"_attn\.k(?=(content|pos)_proj\.)", "_attn.key_"),
        (r"\.query_pos_sine_proj\.", ".query_centre_proj."),
        *LAYERS,
    ]


LAYERS: Replacements = [
    (r"^transformer\.(encoder|decoder)\.", r"\1."),
    (r"^((en|de)coder\.layers\.\d+)\.attentions\.0\.(attn\.)?", r"\1.self_attn."),
    (r"^(decoder\.layers\.\d+)\.attentions\.1\.", r"\1.cross_attn."),
    (r"\.(linear1|ffns\.0\.layers\.0\.0)\.", ".ffn.0."),
    (r"\.(linear2|ffns\.0\.layers\.1)\.", ".ffn.2."),
    (r"\.norms\.(\d)\.", lambda match: f".norm{int(match[1]) + 1}."),
]


def position_encoding(temperature: float, offset: float) -> dict[str, float]:
    return {"position_embedding.temperature": temperature, "position_embedding.offset": offset}


def deformable_detr_settings(source: StateDict, eps: float) -> dict[str, Any]:
    # a decoder that refines boxes has the heads too, besides the detector
    refine = any(key.startswith("transformer.decoder.bbox_embed.") for key in source)
    return {**position_encoding(10000, -0.5), "decoder.eps": eps, "decoder.refine": refine}


DEFORMABLE_DETR_QUERIES = r"transformer\.(reference_points|pos_trans)\.weight"
ANCHOR_HEAD = r"transformer\.decoder\.ref_anchor_head\.layers\.0\.weight"
FORMATS = (
    CheckpointFormat(
        "torchvision's ResNet", (r"conv1\.weight", r"bn1\.weight", r"layer1\.0\.conv1\.weight"), torchvision_resnet
    ),
    CheckpointFormat(
        "detrex's DINO",
        (r"transformer\.level_embeds", r"transformer\.tgt_embed\.weight", r"label_enc\.weight"),
        deformable_attention,
        lambda source: position_encoding(10000, -0.5),
    ),
    CheckpointFormat(
        "detrex's Deformable DETR",
        (r"transformer\.level_embeds", DEFORMABLE_DETR_QUERIES),
        deformable_attention,
        lambda source: deformable_detr_settings(source, eps=1e-3),
    ),
    CheckpointFormat(
        "detrex's DAB-DETR",
        (ANCHOR_HEAD, r"transformer\.decoder\.layers\.0\.attentions\.1\.query_pos_sine_proj\.weight"),
        dab_detr,
        lambda source: position_encoding(20, 0.0),
    ),
    CheckpointFormat(
        "the authors' DINO",
        (r"transformer\.level_embed", r"transformer\.tgt_embed\.weight", r"label_enc\.weight"),
        deformable_attention,
        lambda source: position_encoding(20, 0.0),
        has_category_ids=True,
    ),
    CheckpointFormat(
        "the authors' Deformable DETR",
        (r"transformer\.level_embed", DEFORMABLE_DETR_QUERIES),
        deformable_attention,
        lambda source: deformable_detr_settings(source, eps=1e-5),
        has_category_ids=True,
    ),
    CheckpointFormat(
        "the authors' DAB-DETR",
        (ANCHOR_HEAD, r"transformer\.decoder\.layers\.0\.ca_qpos_sine_proj\.weight"),
        dab_detr,
        lambda source: position_encoding(20, 0.0),
        has_category_ids=True,
    ),
)
