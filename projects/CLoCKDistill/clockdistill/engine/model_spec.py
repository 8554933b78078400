"""Models given on the command line as NAME=CONFIG:CHECKPOINT, or as NAME=FILE if they are exported."""

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import UserError
from ..export import SUFFIXES


class ModelSpec(NamedTuple):
    """A name for tables and pictures, the path of a LazyConfig file, and the path of a checkpoint.

    For an exported model, the config file is "" and the checkpoint is the model.
    """

    name: str
    config_file: str
    checkpoint: str


def parse_model_specs(texts: Sequence[str], flag: str, exported: bool = False) -> list[ModelSpec]:
    """Parse models such as `"Distilled student=config.py:model_final.pth"`.

    Args:
        texts: NAME=CONFIG:CHECKPOINT each. The name ends at the first =, the config at the first colon after it.
        flag: the command-line flag, for error messages.
        exported: allow exported models too, NAME=FILE.

    Raises:
        UserError: if the syntax is wrong or two models have the same name.
    """
    specs = []
    for text in texts:
        name, _, rest = text.partition("=")
        config_file, _, checkpoint = rest.partition(":")
        spec = ModelSpec(name.strip(), config_file, checkpoint)
        if exported and spec.name and not checkpoint and rest.endswith(SUFFIXES):
            spec = ModelSpec(spec.name, "", rest)
        elif not all(spec):
            raise UserError(f"cannot parse {flag} {text!r}: write NAME=config.py:checkpoint.pth")
        if spec.name in [other.name for other in specs]:
            raise UserError(f"two models of {flag} have the name {spec.name}: rename one of them")
        specs.append(spec)
    return specs
