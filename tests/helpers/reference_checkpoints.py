"""Checkpoints with the parameter names of other implementations, from the lists in tests/reference_names."""

import itertools
import re
from pathlib import Path

import torch
from detectron2.config import instantiate
from torch import nn

from helpers.models import add_noise, tiny_config

NAMES = Path(__file__).parents[1] / "reference_names"
SOURCES = ("detrex", "authors")
LISTED_VARIANTS = (
    "dino",
    "deformable_detr",
    "deformable_detr.refine",
    "deformable_detr.two_stage",
    "dab_detr",
)
# settings without parameters, by source and family
SETTINGS = {
    ("detrex", "dino"): {"position_embedding": (10000, -0.5)},
    ("authors", "dino"): {"position_embedding": (20, 0.0)},
    ("detrex", "deformable_detr"): {"position_embedding": (10000, -0.5), "eps": 1e-3},
    ("authors", "deformable_detr"): {"position_embedding": (10000, -0.5), "eps": 1e-5},
    ("detrex", "dab_detr"): {"position_embedding": (20, 0.0)},
    ("authors", "dab_detr"): {"position_embedding": (20, 0.0)},
}


def family(variant):
    return variant.split(".")[0]


def reference_names(source, variant):
    """(name in the source, shape, name in our model) of every parameter and buffer, with a ResNet-50."""
    names = []
    for line in (NAMES / f"{source}_{variant}.txt").read_text().splitlines():
        source_names, shape, model_names = line.split()
        shape = tuple(int(size) for size in shape.split("x"))
        names += [
            (name, shape, model_name)
            for name, model_name in zip(expand(source_names), expand(model_names), strict=True)
        ]
    return names


def expand(pattern):
    """Every name of a pattern with alternatives in braces: a{1,2} is a1 and a2."""
    parts = re.split(r"[{}]", pattern)
    return ["".join(choice) for choice in itertools.product(*(part.split(",") for part in parts))]


def name_pairs(source, variant):
    """(name in the source, name in our model), also for the variants without a list."""
    listed = variant if variant in LISTED_VARIANTS else family(variant)
    pairs = [(name, model_name) for name, _, model_name in reference_names(source, listed)]
    if variant == "dino.5scale" and source == "detrex":
        pairs = [(name, model_name.replace("neck.convs.3", "neck.convs.4")) for name, model_name in pairs]
        pairs += zip(expand("neck.convs.3.{conv,norm}.{weight,bias}"), expand("neck.convs.3.{0,1}.{weight,bias}"))
    elif variant == "dino.5scale":
        pairs += zip(expand("input_proj.4.{0,1}.{weight,bias}"), expand("neck.convs.4.{0,1}.{weight,bias}"))
    elif variant == "dab_detr.patterns":
        transformer = "model" if source == "hugging_face" else "transformer"
        pairs.append((f"{transformer}.patterns.weight", "patterns.weight"))
    elif variant == "dab_detr.dc5" and source == "detrex":
        # detrex then uses torchvision's backbone, as the authors do
        pairs = [(name, model_name) for name, model_name in pairs if not name.startswith("backbone.")]
        for name, model_name in name_pairs("authors", "dab_detr"):
            if name.startswith("backbone."):
                pairs.append((name.replace("backbone.0.body.", "backbone.body."), model_name))
    return pairs


def small_detector(source, variant="dino", seed=0, num_queries=None, decoder_layers=6, **kwargs):
    """A narrow detector with the listed depths and the source's settings, all of its values random."""
    config = tiny_config(variant, decoder_layers=decoder_layers, **kwargs)
    if config.backbone.depth == 18:
        config.backbone.depth = 50
        config.neck.in_channels = [4 * channels for channels in config.neck.in_channels]
    config.backbone.norm = "FrozenBN"
    config.encoder.num_layers = 6
    settings = SETTINGS[source, family(variant)]
    config.position_embedding.temperature, config.position_embedding.offset = settings["position_embedding"]
    if "eps" in settings:
        config.decoder.eps = settings["eps"]
    if num_queries is not None:
        config.num_queries = num_queries
    torch.manual_seed(seed)
    model = add_noise(instantiate(config), seed).eval()
    for name, buffer in model.named_buffers():
        if name.startswith("backbone."):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return model


def source_state_dict(source, variant, model):
    """The state dict of a `small_detector` with the source's names."""
    state = model.state_dict()
    pairs = name_pairs(source, variant)
    assert {model_name for _, model_name in pairs} == state.keys(), "the list of names is complete"
    converted = {name: state[model_name] for name, model_name in pairs}
    if (source, family(variant)) == ("authors", "dino"):
        # a row that no class uses
        embedding = converted["label_enc.weight"]
        converted["label_enc.weight"] = torch.cat((embedding, torch.full_like(embedding[:1], 7.0)))
    return converted


def averaged_state_dict(source, variant, model):
    """The averaged weights with the source's names; detrex averages parameters, by the first name of each."""
    weights = source_state_dict(source, variant, model)
    if source == "authors":
        return weights
    first_names = {}
    for name, value in weights.items():
        first_names.setdefault(value.data_ptr(), name)
    return {name: weights[name] for name in first_names.values()}
