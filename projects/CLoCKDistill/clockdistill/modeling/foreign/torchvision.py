"""torchvision's ResNets, for the backbone alone."""

import re

from .origin import Origin, Table, Weights, resnet


def table(weights: Weights, ours: Weights) -> Table:
    """Into the model's ResNet, which may have any name, `backbone` as a rule."""
    stems = [name for name in ours if re.search(r"(^|\.)stem\.conv1\.weight$", name)]
    return resnet("", stems[0].removesuffix("stem.conv1.weight")) if stems else []


ORIGINS = (
    Origin("torchvision's ResNet", (frozenset({"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"}),), table),
)
