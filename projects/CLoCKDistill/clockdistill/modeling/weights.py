"""Load weights of our models, Detectron2's model zoo and other implementations, and report what did not match."""

import argparse
import codecs
import collections
import contextlib
import io
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from ..errors import UserError
from .conversion import convert_state_dict

# where DINO's authors and detrex keep averaged weights, next to "model"
AVERAGED_WEIGHTS = ("ema_model", "ema_state")


class PlaceholderClass:
    """Stands in for classes that checkpoints contain in addition to weights: keeps the attributes and does nothing.

    detrex's training checkpoints have omegaconf's containers among the optimizer's settings.
    """

    NAMES = (
        ("omegaconf.listconfig", "ListConfig"),
        ("omegaconf.dictconfig", "DictConfig"),
        ("omegaconf.base", "ContainerMetadata"),
        ("omegaconf.base", "Metadata"),
        ("omegaconf.nodes", "AnyNode"),
        ("typing", "Any"),
        ("collections", "defaultdict"),
        ("builtins", "dict"),
        ("builtins", "list"),
        ("builtins", "tuple"),
        ("builtins", "int"),
        ("builtins", "float"),
    )

    def __init__(self, *args: Any):
        pass


SAFE_CLASSES = [
    # the authors' repositories save their command line next to the weights; a Namespace only holds plain values
    argparse.Namespace,
    *(type(name, (PlaceholderClass,), {"__module__": module}) for module, name in PlaceholderClass.NAMES),
]


@contextlib.contextmanager
def allowing(classes: Sequence[type]) -> Iterator[None]:
    """Let `torch.load` read objects of these classes too, instead of others with the same names."""
    before = torch.serialization.get_safe_globals()
    names = {(c.__module__, c.__name__) for c in classes}
    # safe_globals of torch 2.5 and later would keep both classes of a name
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(
        [*classes, *(c for c in before if (getattr(c, "__module__", ""), getattr(c, "__name__", "")) not in names)]
    )
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


class PlainUnpickler(pickle.Unpickler):
    """Reads arrays, tensors and plain values, and refuses everything else, which could run code."""

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 2 renamed numpy.core
        key = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if key not in PICKLED:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return PICKLED[key]


def _load_storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


PICKLED = {
    "collections.OrderedDict": collections.OrderedDict,
    "_codecs.encode": codecs.encode,
    "numpy.dtype": np.dtype,
    "numpy.ndarray": np.ndarray,
    "numpy.core.multiarray._reconstruct": np.array(0).__reduce__()[0],
    "numpy.core.multiarray.scalar": np.float32(0).__reduce__()[0],
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    # torch's own version runs code
    "torch.storage._load_from_bytes": _load_storage,
}


class LoadReport(NamedTuple):
    """The parameters and buffers that did not match when weights were loaded.

    Attributes:
        missing: names in the model but not in the file.
        unexpected: names in the file but not in the model.
        mismatched: (name, shape in the file, shape in the model) of those that differ in shape.
        conflicting: names of one parameter in the model, such as shared heads have, with different values in the file.
        converted: whether the names in the file were those of another implementation, which may have more parameters.
    """

    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    conflicting: list[str]
    converted: bool

    @property
    def unset(self) -> list[str]:
        """Names in the model that the file did not set."""
        return self.missing + [name for name, *_ in self.mismatched]

    def fault(self) -> str | None:
        """Return what a file that belongs to another model does, to complete "checkpoint …"; None if all matched."""
        for names, fault in (
            (self.unset, "does not set {} parameters or buffers of the model"),
            (
                [] if self.converted else self.unexpected,
                "has {} parameters or buffers that the model does not have",
            ),
            (self.conflicting, "has different values for {} parameters that the model shares"),
        ):
            if names:
                return f"{fault.format(len(names))}, such as {names[0]}"
        return None


class WeightLoader(DetectionCheckpointer):
    """Detectron2's checkpointer, extended to the formats of other implementations and a report.

    Loading a file runs no code from it.

    Attributes:
        report: what did not match in the last `load`, or None.
    """

    report: LoadReport | None = None

    def load(self, path: str, checkpointables: list[str] | None = None, strict: bool = False) -> dict[str, Any]:
        """Load the model's weights, log a warning of what did not match, and keep it in `report`.

        Args:
            path: a file or a URL that Detectron2 can open (`detectron2://`, `https://`). "" loads nothing.
            checkpointables: names of other objects to load, by default all; see Detectron2.
            strict: raise a `UserError` if the file and the model do not have the same parameters and buffers. Files of
                other implementations may have more.

        Returns:
            The file's other entries, such as the iteration.
        """
        if path and is_missing(path):
            raise UserError(f"checkpoint {path} does not exist: check the path")
        self.report = None
        try:
            extra = super().load(path, checkpointables)
        except URLError as error:
            raise UserError(
                f"checkpoint {path} cannot be downloaded ({error.reason}): give the path of a local file"
            ) from error
        values = self.model.state_dict().items() if path else ()
        broken = [name for name, value in values if value.is_floating_point() and not value.isfinite().all()]
        if broken:
            raise UserError(
                f"checkpoint {path} has NaN or infinite values in {len(broken)} parameters or buffers, such as "
                f"{broken[0]}: use a checkpoint from before the training diverged"
            )
        if strict and self.report is not None and (fault := self.report.fault()):
            names, count = metadata_of(extra).get("class_names"), getattr(self.model, "num_classes", None)
            if names and count is not None and len(names) != count:
                some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
                raise UserError(
                    f"checkpoint {path} has {len(names)} classes ({some}) and the model {count}: set "
                    f"model.num_classes={len(names)}"
                )
            raise UserError(f"checkpoint {path} {fault}: use a checkpoint that was trained with this model config")
        return extra

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pyth"):  # Detectron2 would unpickle it with older versions of torch
            return {"model": self._torch_load(filename)}
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        try:
            with PathManager.open(filename, "rb") as file:
                data = PlainUnpickler(file, encoding="latin1").load()
        except Exception as error:  # see _torch_load
            raise self._load_error(filename, error) from error
        is_detectron2 = isinstance(data, dict) and "model" in data and "__author__" in data
        # the rest is Caffe2's, as in Detectron2's checkpointer
        weights = data["model"] if is_detectron2 else data.get("blobs", data) if isinstance(data, dict) else None
        if not (weights and isinstance(weights, dict)) or not all(
            isinstance(v, np.ndarray | Tensor) for v in weights.values()
        ):
            raise UserError(f"{filename} contains no model weights: use a file of Detectron2's model zoo")
        if is_detectron2:
            self.logger.info(f"Reading a file from '{data['__author__']}'")
            return data
        weights = {name: value for name, value in weights.items() if not name.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _load_error(self, filename: str, error: Exception) -> UserError:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            return UserError(
                f"{filename} is not safe to load, since it contains {refused[1]} and could run code: save only its "
                'weights, with torch.save({"model": model.state_dict()}, PATH)'
            )
        return UserError(f"{filename} cannot be read as a checkpoint: use a file saved by torch.save")

    def _torch_load(self, f: str) -> dict[str, Any]:
        try:
            with allowing(SAFE_CLASSES):
                loaded = torch.load(f, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle raises almost anything
            raise self._load_error(f, error) from error
        averaged = next((key for key in AVERAGED_WEIGHTS if isinstance(loaded, dict) and loaded.get(key)), None)
        if averaged is not None:
            self.logger.info(f"Loading the averaged weights in {f}, {averaged}.")
            loaded["model"] = loaded.pop(averaged)
        weights = loaded.get("model", loaded) if isinstance(loaded, dict) else None
        if not (weights and isinstance(weights, dict)) or not all(isinstance(v, Tensor) for v in weights.values()):
            raise UserError(f"{f} contains no model weights: use a checkpoint such as model_final.pth")
        return loaded

    def _load_model(self, checkpoint: dict[str, Any]):
        source = checkpoint["model"]
        checkpoint["model"] = weights = convert_state_dict(source, self.model)
        conflicting = conflicting_names(weights, self.model)
        if conflicting:
            self.logger.warning(
                f"The model shares parameters that differ in the checkpoint, such as {conflicting[0]}, and gets the "
                "last of them. Use the model config that the checkpoint was trained with."
            )
        incompatible = super()._load_model(checkpoint)
        mismatched = incompatible.incorrect_shapes
        names = {name for name, *_ in mismatched}
        # frozen batch norms have no such counter
        unexpected = [k for k in incompatible.unexpected_keys if not k.endswith("num_batches_tracked")]
        incompatible.unexpected_keys[:] = unexpected
        incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if k not in names]
        self.report = LoadReport(
            list(incompatible.missing_keys), unexpected, list(mismatched), conflicting, weights is not source
        )
        return incompatible


def is_missing(path: str) -> bool:
    """Return whether a checkpoint is neither a URL nor a file; a query, as in Detectron2's paths, is not part of it."""
    return "://" not in path and not os.path.isfile(path.partition("?")[0])


def conflicting_names(state: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Return the names whose values differ from those of another name of the same parameter."""
    first: dict[int, Any] = {}
    conflicting = []
    for name, parameter in model.state_dict(keep_vars=True).items():
        if name in state:
            value = torch.as_tensor(state[name])
            if not torch.equal(first.setdefault(id(parameter), value), value):
                conflicting.append(name)
    return conflicting


def metadata_of(contents: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata for inference in what `WeightLoader.load` returned; {} if there are none."""
    metadata = contents.get("metadata")  # in files of other projects, it may be anything
    return metadata if isinstance(metadata, dict) else {}


def load_weights(model: nn.Module, path: str, strict: bool = False) -> LoadReport:
    """Load a file's weights into a model and log a warning that lists what did not match.

    For the file's other entries, use `WeightLoader(model).load(path, checkpointables=[])`.

    Args:
        model: any module that is not wrapped in DistributedDataParallel.
        path: a checkpoint of this project, of Detectron2's model zoo (`.pkl`), of a torchvision ResNet, or of a DINO,
            Deformable DETR or DAB-DETR from detrex or its authors. If it has averaged weights, they are loaded.
        strict: raise a `UserError` if the file and the model do not have the same parameters and buffers, or if the
            file has different values for one that the model shares. Files of other implementations may have more.

    Raises:
        UserError: the file does not exist or is not a checkpoint.
    """
    if not path:
        raise UserError("no checkpoint is given: set the path of a file with weights")
    loader = WeightLoader(model)
    loader.load(path, checkpointables=[], strict=strict)
    return loader.report
