"""Several models on one command line: NAME=CONFIG:CHECKPOINT."""

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import UserError


class NamedModel(NamedTuple):
    """A title for tables and pictures, the path of a LazyConfig file, and the path of its weights."""

    name: str
    config: str
    checkpoint: str


def parse_models(texts: Sequence[str], flag: str) -> list[NamedModel]:
    """Models as they are written on the command line, `"Distilled student=config.py:model_final.pth"`.

    Args:
        texts: NAME=CONFIG:CHECKPOINT each. The name ends at the first =, and the config at the first colon after it.
        flag: under which they were given, for the errors.

    Raises:
        UserError: another syntax, or two models of one name.
    """
    models = []
    for text in texts:
        name, _, rest = text.partition("=")
        config, _, checkpoint = rest.partition(":")
        model = NamedModel(name.strip(), config, checkpoint)
        if not all(model):
            raise UserError(f"cannot read {flag} {text!r}: write NAME=config.py:checkpoint.pth")
        if model.name in [other.name for other in models]:
            raise UserError(f"two models of {flag} are called {model.name}: give each a name of its own")
        models.append(model)
    return models
