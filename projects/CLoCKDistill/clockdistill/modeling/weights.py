"""Load weights of our models, Detectron2's model zoo and other implementations, and report what did not match."""

import argparse
import os
import pickle
import re
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from detectron2.checkpoint import DetectionCheckpointer
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


# the authors' repositories save their command line next to the weights; a Namespace only holds plain values
torch.serialization.add_safe_globals([argparse.Namespace])
torch.serialization.add_safe_globals(
    [type(name, (PlaceholderClass,), {"__module__": module}) for module, name in PlaceholderClass.NAMES]
)


class LoadReport(NamedTuple):
    """The parameters and buffers that did not match when weights were loaded.

    Attributes:
        missing: names in the model but not in the file.
        unexpected: names in the file but not in the model.
        mismatched: (name, shape in the file, shape in the model) of those that differ in shape.
    """

    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def unset(self) -> list[str]:
        """Names in the model that the file did not set."""
        return self.missing + [name for name, *_ in self.mismatched]


class WeightLoader(DetectionCheckpointer):
    """Detectron2's checkpointer, extended to the formats of other implementations and a report.

    Loading a `.pth` file runs no code from it. Detectron2's `.pkl` files are pickles: only load those you trust.

    Attributes:
        report: what did not match in the last `load`, or None.
    """

    report: LoadReport | None = None

    def load(self, path: str, checkpointables: list[str] | None = None, strict: bool = False) -> dict[str, Any]:
        """Load the model's weights, log a warning of what did not match, and keep it in `report`.

        Args:
            path: a file or a URL that Detectron2 can open (`detectron2://`, `https://`). "" loads nothing.
            checkpointables: names of other objects to load, by default all; see Detectron2.
            strict: raise a `UserError` if a parameter or buffer of the model is not set.

        Returns:
            The file's other entries, such as the iteration.
        """
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise UserError(f"checkpoint {path} does not exist: check the path")
        self.report = None
        try:
            extra = super().load(path, checkpointables)
        except URLError as error:
            raise UserError(
                f"checkpoint {path} cannot be downloaded ({error.reason}): give the path of a local file"
            ) from error
        if strict and self.report is not None and self.report.unset:
            unset = self.report.unset
            names = ", ".join(unset[:3]) + (", …" if len(unset) > 3 else "")
            raise UserError(
                f"checkpoint {path} leaves {len(unset)} of {len(self.model.state_dict())} parameters and buffers of "
                f"the model unset ({names}): use a checkpoint that was trained with this model config"
            )
        return extra

    def _torch_load(self, f: str) -> dict[str, Any]:
        try:
            loaded = torch.load(f, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            if refused := re.search(r"GLOBAL (\S+)", str(error)):
                raise UserError(
                    f"{f} is not safe to load, since it contains {refused[1]} and could run code: save only its "
                    'weights, with torch.save({"model": model.state_dict()}, PATH)'
                ) from error
            raise UserError(f"{f} cannot be read as a checkpoint: use a file saved by torch.save") from error
        averaged = next((key for key in AVERAGED_WEIGHTS if isinstance(loaded, dict) and loaded.get(key)), None)
        if averaged is not None:
            self.logger.info(f"Loading the averaged weights in {f}, {averaged}.")
            loaded["model"] = loaded.pop(averaged)
        weights = loaded.get("model", loaded) if isinstance(loaded, dict) else None
        if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
            raise UserError(f"{f} contains no model weights: use a checkpoint such as model_final.pth")
        return loaded

    def _load_model(self, checkpoint: dict[str, Any]):
        checkpoint["model"] = convert_state_dict(checkpoint["model"], self.model)
        incompatible = super()._load_model(checkpoint)
        mismatched = incompatible.incorrect_shapes
        names = {name for name, *_ in mismatched}
        # frozen batch norms have no such counter
        unexpected = [k for k in incompatible.unexpected_keys if not k.endswith("num_batches_tracked")]
        incompatible.unexpected_keys[:] = unexpected
        incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if k not in names]
        self.report = LoadReport(list(incompatible.missing_keys), unexpected, list(mismatched))
        return incompatible


def load_weights(model: nn.Module, path: str, strict: bool = False) -> LoadReport:
    """Load a file's weights into a model and log a warning that lists what did not match.

    For the file's other entries, use `WeightLoader(model).load(path, checkpointables=[])`.

    Args:
        model: any module that is not wrapped in DistributedDataParallel.
        path: a checkpoint of this project, of Detectron2's model zoo (`.pkl`), of a torchvision ResNet, or of a DINO,
            Deformable DETR or DAB-DETR from detrex or its authors. If it has averaged weights, they are loaded.
        strict: raise a `UserError` if a parameter or buffer of the model is not set.

    Raises:
        UserError: the file does not exist or is not a checkpoint.
    """
    if not path:
        raise UserError("no checkpoint is given: set the path of a file with weights")
    loader = WeightLoader(model)
    loader.load(path, checkpointables=[], strict=strict)
    return loader.report
