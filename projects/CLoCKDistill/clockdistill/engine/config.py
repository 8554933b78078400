"""LazyConfig files and command-line overrides, checked before anything is built."""

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

from ..checks import Rule, above, boolean, check, count, is_number, not_negative, one_of, optional
from ..config_file import execute_config
from ..data import register_by_name
from ..errors import UserError

MISSING = object()  # of a key that a config does not have
SECTIONS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
# of `train`, whose values go to no constructor
RULES = {
    "train.output_dir": Rule(bool, "the path of a folder"),
    "train.seed": Rule(lambda seed: is_number(seed) and seed < 2**32, "less than 2^32; negative for a random seed"),
    "train.max_iter": count,
    "train.device": Rule(lambda name: name in ("cpu", "cuda"), "cpu or cuda; CUDA_VISIBLE_DEVICES chooses the GPUs"),
    "train.clip_grad": optional(above(0)),
    "train.max_nonfinite_steps": count,
    "train.accumulate": count,
    **dict.fromkeys(
        ("train.amp", "train.ema", "train.ddp", "train.checkpointer"), Rule(OmegaConf.is_dict, "a group of keys")
    ),
    "train.amp.dtype": one_of("bfloat16", "float16"),
    "train.compile": boolean,
    "train.ema.decay": Rule(lambda decay: is_number(decay) and 0 <= decay < 1, "at least 0 and less than 1"),
    "train.checkpointer.period": count,
    "train.checkpointer.max_to_keep": optional(count),
    "train.eval_period": not_negative,
    "train.log_period": count,
    "train.benchmark.images": count,
    "train.benchmark.rounds": count,
}


def load_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a training config, apply overrides and register datasets given by path (`coco:…`, `kitti:…`).

    Args:
        path: path of a LazyConfig file, `.py` or `.yaml`.
        overrides: `key=value`, see `apply_overrides`.

    Raises:
        UserError: the file does not exist, fails to execute or lacks a section, or an override is wrong.
    """
    cfg = execute_config(path)
    for section in SECTIONS:
        if cfg.get(section) is None:
            raise UserError(f"config file {path} has no `{section}`: import one from configs/common")
    apply_overrides(cfg, overrides)
    try:
        values = {key: OmegaConf.select(cfg, key, default=MISSING) for key in RULES}
    except OmegaConfBaseException as error:
        raise UserError(f"config file {path}: {str(error).splitlines()[0]}") from error
    check({key: value for key, value in values.items() if value is not MISSING}, RULES)
    for loader in cfg.dataloader.values():
        names = OmegaConf.select(loader, "dataset.names") if OmegaConf.is_config(loader) else None
        register_by_name(names or ())
    return cfg


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Apply hydra's `key=value` overrides to a config in place; `+key=value` adds a new key.

    A key is known if the config has it or if it is a parameter of the LazyCall that contains it.

    Raises:
        UserError: wrong syntax, an unknown key, or a value of the wrong type.
    """
    for text in overrides:
        override, value = _parse(text)
        key = override.key_or_group
        is_new = override.is_add() or override.is_force_add()
        if not is_new and not _is_known(cfg, key):
            near = _nearest(key, list(_keys(cfg)))
            hint = f"did you mean {' or '.join(near)}?" if near else "no key of the config is similar"
            raise UserError(f"unknown config key {key}: {hint} (to add a new key, write +{key}=…)")
        try:
            old = OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
            OmegaConf.update(cfg, key, value if is_new else _cast(key, old, value, text), merge=True)
        except OmegaConfBaseException as error:
            raise UserError(f"cannot set {text}: {str(error).splitlines()[0]}") from error
    return cfg


def _parse(text: str) -> tuple[Override, Any]:
    if text.startswith("--"):
        raise UserError(f"{text} comes too late: write flags before the config overrides")
    if "=" not in text:
        raise UserError(f"cannot parse {text!r} on the command line: write config overrides as key=value")
    try:
        override = OverridesParser.create().parse_override(text)
        if override.is_delete() or override.is_sweep_override():
            raise UserError(f"cannot apply the override {text!r}: deleting keys and sweeps are not supported")
        return override, override.value()
    except HydraException as error:
        raise UserError(
            f"cannot parse the override {text!r}: write key=value, with quotes around special characters"
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
    """Return the names of a LazyCall's parameters; none if its target has no signature."""
    target = node.get("_target_")
    try:
        parameters = inspect.signature(locate(target) if isinstance(target, str) else target).parameters
    except (TypeError, ValueError, ImportError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, parameter in parameters.items() if parameter.kind in named]


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all keys that an override may set."""
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
    """Convert a value to the type of the one it replaces. None and interpolations are always allowed."""
    is_reference = isinstance(value, str) and value.startswith("${")
    if old is None or value is None or is_reference:
        return value
    if key.endswith("dataset.names") and value and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits, expected = True, ""
    if isinstance(old, bool):
        fits, expected = isinstance(value, bool), "True or False"
    elif isinstance(old, int):
        fits, expected = is_number and float(value).is_integer(), "an integer"
        value = int(value) if fits else value
    elif isinstance(old, float):
        fits, expected = is_number, "a number"
        value = float(value) if fits else value
    elif isinstance(old, str):
        fits, expected = not isinstance(value, dict | list), "text"
        # hydra parses a name of digits as a number
        value = value if isinstance(value, str) else text.partition("=")[2]
    elif isinstance(old, ListConfig):
        fits, expected = isinstance(value, list), "a list, as in [1,2]"
    elif isinstance(old, DictConfig):
        fits, expected = isinstance(value, dict), "a group of keys; set a key inside it, or null"
    if not fits:
        raise UserError(f"config key {key} cannot be {value!r}: it must be {expected}")
    return value
