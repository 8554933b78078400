"""LazyConfig files and their overrides on the command line, checked before anything is built."""

import difflib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.utils.registry import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..config_file import execute_config
from ..data import register_by_name
from ..errors import UserError

SECTIONS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")


def load_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A training config from a file, with overrides applied; data sets whose names say where they are are registered.

    Args:
        path: of a LazyConfig file, `.py` or `.yaml`.
        overrides: `key=value`, as `apply_overrides` takes them.

    Raises:
        UserError: no such file, one that does not execute or lacks a section, or a wrong override.
    """
    cfg = execute_config(path)
    for section in SECTIONS:
        if cfg.get(section) is None:
            raise UserError(f"config file {path} has no `{section}`: import one from configs/common")
    apply_overrides(cfg, overrides)
    for loader in cfg.dataloader.values():
        names = OmegaConf.select(loader, "dataset.names") if OmegaConf.is_config(loader) else None
        register_by_name(names or ())
    return cfg


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Change a config in place by hydra's `key=value`; `+key=value` adds a key that is not there.

    A key is known where the config has it, and where it is a parameter of the call that holds it.

    Raises:
        UserError: wrong syntax, an unknown key, or a value of another type than the one in the config.
    """
    for text in overrides:
        override, value = _parse(text)
        key = override.key_or_group
        is_new = override.is_add() or override.is_force_add()
        if not is_new and not _is_known(cfg, key):
            near = _nearest(key, list(_keys(cfg)))
            hint = f"the nearest is {' or '.join(near)}" if near else "nothing in the config has a name like it"
            raise UserError(f"unknown config key {key}: {hint} (a key that is really new is written +{key}=…)")
        try:
            old = OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
            OmegaConf.update(cfg, key, value if is_new else _cast(key, old, value, text), merge=True)
        except OmegaConfBaseException as error:
            raise UserError(f"cannot set {text}: {str(error).splitlines()[0]}") from error
    return cfg


def _parse(text: str) -> tuple[Override, Any]:
    if "=" not in text:
        raise UserError(f"cannot read {text!r} on the command line: overrides of the config are written key=value")
    try:
        override = OverridesParser.create().parse_override(text)
        if override.is_delete() or override.is_sweep_override():
            raise UserError(f"cannot read the override {text!r}: it may neither delete a key nor list several values")
        return override, override.value()
    except HydraException as error:
        raise UserError(
            f"cannot read the override {text!r}: write key=value, with quotes around special characters"
        ) from error


def _is_known(cfg: DictConfig, key: str) -> bool:
    *parents, last = key.split(".")
    node = cfg
    for part in parents:
        node = _child(node, part)
        if not OmegaConf.is_config(node):
            return False
    if isinstance(node, ListConfig):
        return last.isdigit() and int(last) < len(node)
    return last in node or last in _parameters(node)


def _child(node: DictConfig | ListConfig, part: str) -> Any:
    if isinstance(node, ListConfig):
        return node[int(part)] if part.isdigit() and int(part) < len(node) else None
    return node.get(part)


def _parameters(node: DictConfig) -> list[str]:
    """Names that the call in a LazyCall takes; none where it cannot be told."""
    target = node.get("_target_")
    try:
        parameters = inspect.signature(locate(target) if isinstance(target, str) else target).parameters
    except (TypeError, ValueError, ImportError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, parameter in parameters.items() if parameter.kind in named]


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all that an override may set."""
    if isinstance(node, DictConfig):
        for name in dict.fromkeys([*node, *_parameters(node)]):
            yield prefix + str(name)
            if name in node and not OmegaConf.is_missing(node, name) and not OmegaConf.is_interpolation(node, name):
                yield from _keys(node[name], f"{prefix}{name}.")
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            if not OmegaConf.is_interpolation(node, index):
                yield from _keys(node[index], f"{prefix}{index}.")


def _nearest(key: str, keys: list[str]) -> list[str]:
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [known for known in keys if known.rsplit(".", 1)[-1] == leaf]
    return same_leaf[:3] or difflib.get_close_matches(key, keys)


def _cast(key: str, old: Any, value: Any, text: str) -> Any:
    """The value in the type of the one it replaces. None and references fit everywhere."""
    is_reference = isinstance(value, str) and value.startswith("${")
    if old is None or value is None or is_reference:
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits, wanted = True, ""
    if isinstance(old, bool):
        fits, wanted = isinstance(value, bool), "True or False"
    elif isinstance(old, int):
        fits, wanted = is_number and float(value).is_integer(), "a whole number"
        value = int(value) if fits else value
    elif isinstance(old, float):
        fits, wanted = is_number, "a number"
        value = float(value) if fits else value
    elif isinstance(old, str):
        fits, wanted = not isinstance(value, dict | list), "text"
        # hydra takes a name of digits for a number
        value = value if isinstance(value, str) else text.partition("=")[2]
    elif isinstance(old, ListConfig):
        fits, wanted = isinstance(value, list), "a list, as in [1,2]"
    elif isinstance(old, DictConfig):
        fits, wanted = isinstance(value, dict), "a group of keys: set one of them, or null"
    if not fits:
        raise UserError(f"config key {key} cannot be {value!r}: it must be {wanted}")
    return value
