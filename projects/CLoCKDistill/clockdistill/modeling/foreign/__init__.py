"""Other programs' names for our models' parameters: those of torchvision, detrex and the official repositories.

Whose names a file has is seen from the names themselves. A table of regular expressions, applied in order to every
name, turns them into ours; few parameters need more than another name.
"""

import logging
import re
from operator import attrgetter
from typing import Any

from torch import nn

from . import detrex, official, torchvision
from .origin import Weights

logger = logging.getLogger(__name__)

# where checkpoints keep averaged weights, beside "model": the official DINO, detrex
AVERAGED = ("ema_model", "ema_state")

ORIGINS = (*torchvision.ORIGINS, *detrex.ORIGINS, *official.ORIGINS)


def translate(weights: Weights, model: nn.Module) -> Weights:
    """Weights under the model's names where their own are those of a known origin; others come back as they are.

    What has no counterpart in the model keeps the name that it has in the file.
    """
    plain = {name.removeprefix("module."): value for name, value in weights.items()}
    origin = next((origin for origin in ORIGINS if any(marks <= plain.keys() for marks in origin.marks)), None)
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
    share(renamed, model)
    if origin.adapt is not None:
        origin.adapt(renamed, ours)
    warn_of_settings(origin.name, origin.settings(plain), model)
    return renamed


def share(weights: Weights, model: nn.Module) -> None:
    """Give parameters that have several names in the model, as shared heads do, all of them, where the file has one."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.state_dict(keep_vars=True).items():
        names.setdefault(id(parameter), []).append(name)
    for same in names.values():
        known = next((weights[name] for name in same if name in weights), None)
        if known is not None:
            for name in same:
                weights.setdefault(name, known)


def warn_of_settings(origin: str, settings: dict[str, Any], model: nn.Module) -> None:
    """What has no parameters, as position encodings have none, would show in the results alone if it differed."""
    for path, theirs in settings.items():
        try:
            ours = attrgetter(path)(model)
        except AttributeError:
            continue
        if ours != theirs:
            logger.warning(
                f"The checkpoint's names are those of {origin}, which goes with model.{path}={theirs}, and the model "
                f"has {ours}: unless the checkpoint was trained so, set model.{path}={theirs}"
            )
