"""Load LazyConfig files and build what they describe, with readable errors."""

import os
import re
import traceback
from collections.abc import Mapping
from typing import Any

from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import InvalidValue, UserError


def execute_config(path: str) -> DictConfig:
    """Load all config objects from a LazyConfig file, `.py` or `.yaml`.

    Raises:
        UserError: the file does not exist or cannot be executed.
    """
    if not path:
        raise UserError("no config file: pass one with --config-file")
    if not os.path.isfile(path):
        raise UserError(f"config file {path} does not exist: see projects/CLoCKDistill/configs")
    try:
        return LazyConfig.load(path)
    except UserError:
        raise
    except SyntaxError as error:
        cause = error.__cause__ or error
        raise UserError(f"{error.msg} ({cause})") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        place = f"{path}, line {lines[-1]}," if lines else path
        reason = next(iter(str(error).splitlines()), "")  # omegaconf adds lines for debugging
        raise UserError(f"config file {place} does not execute: {type(error).__name__}: {reason}") from error


def build(node: Any, key: str) -> Any:
    """Call Detectron2's `instantiate`, and name the key if a constructor does not accept a value.

    Args:
        node: a LazyCall, a list of them, or a value, which is returned as it is.
        key: dotted key of the node in the config, for error messages.

    Raises:
        UserError: a constructor does not accept its arguments.
    """
    if isinstance(node, ListConfig):
        items = [build(item, f"{key}.{index}") for index, item in enumerate(node)]
        return ListConfig(items, flags={"allow_objects": True})
    if not (isinstance(node, Mapping) and "_target_" in node):
        return node
    try:
        values = {name: node[name] for name in node if name != "_target_"}
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
    arguments = {name: build(value, f"{key}.{name}") for name, value in values.items()}
    try:
        return instantiate(arguments | {"_target_": node["_target_"]})
    except InvalidValue as error:
        raise InvalidValue(origin(node, key, error.name), error.value, error.expected) from error
    except UserError:
        raise
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        reason = " ".join(str(error).split()) or f"{type(error).__name__} in {node['_target_']}"
        raise UserError(f"{key} cannot be built: {reason}") from error


def origin(node: Mapping, key: str, name: str) -> str:
    """Return the dotted key that a parameter of a LazyCall has its value from: its own, or the one it refers to.

    Args:
        node: the LazyCall.
        key: dotted key of the node.
        name: of the parameter.
    """
    if OmegaConf.is_config(node) and name in node and OmegaConf.is_interpolation(node, name):
        reference = re.fullmatch(r"\$\{(\.*)([\w.]+)\}", OmegaConf.to_container(node, resolve=False)[name])
        if reference:
            dots, path = reference.groups()
            # one dot is the node itself, each further one a level up
            parents = key.split(".")[: len(key.split(".")) - len(dots) + 1] if dots else []
            return ".".join([*parents, path])
    return f"{key}.{name}"
