"""Weights from files: ours, Detectron2's model zoo, and those of `foreign`. What did not match is said."""

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
from .foreign import AVERAGED, translate


class Inert:
    """Stands for classes whose objects are found beside weights: holds what the file says of them, and does nothing.

    detrex's training checkpoints have config lists among the optimizer's settings.
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


# the official repositories save their command line beside the weights; it is a record of plain values
torch.serialization.add_safe_globals([argparse.Namespace])
torch.serialization.add_safe_globals([type(name, (Inert,), {"__module__": module}) for module, name in Inert.NAMES])


class LoadReport(NamedTuple):
    """What did not match when weights were loaded: parameters and buffers by name.

    Attributes:
        missing: in the model, not in the file.
        unexpected: in the file, not in the model.
        mismatched: (name, shape in the file, shape in the model) where the two differ.
    """

    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def unset(self) -> list[str]:
        """What the model did not get from the file."""
        return self.missing + [name for name, *_ in self.mismatched]


class WeightLoader(DetectionCheckpointer):
    """Detectron2's checkpointer that also reads what other programs wrote, and keeps a report.

    No code is run from `.pth` files; Detectron2's `.pkl` files are pickles, and as trustworthy as their source.

    Attributes:
        report: of the last `load`, or None.
    """

    report: LoadReport | None = None

    def load(self, path: str, checkpointables: list[str] | None = None, strict: bool = False) -> dict[str, Any]:
        """Load the model's weights, warn of what did not match, and keep it in `report`.

        Args:
            path: a file, or an address that Detectron2 knows (`detectron2://`, `https://`); nothing is loaded from "".
            strict: raise a `UserError` where a parameter or buffer of the model is left unset.

        Returns:
            What else the file holds.
        """
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise UserError(f"checkpoint {path} does not exist: give the path of a file that was saved by training")
        self.report = None
        try:
            extra = super().load(path, checkpointables)
        except URLError as error:
            raise UserError(f"checkpoint {path} cannot be fetched ({error.reason}): give a local file") from error
        if strict and self.report is not None and self.report.unset:
            unset = self.report.unset
            names = ", ".join(unset[:3]) + (", …" if len(unset) > 3 else "")
            raise UserError(
                f"checkpoint {path} leaves {len(unset)} of {len(self.model.state_dict())} parameters and buffers of "
                f"the model unset ({names}): give a checkpoint that was trained with this model config"
            )
        return extra

    def _torch_load(self, f: str) -> dict[str, Any]:
        try:
            loaded = torch.load(f, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            if refused := re.search(r"GLOBAL (\S+)", str(error)):
                raise UserError(
                    f"{f} is not read, since it holds more than tensors ({refused[1]}) and could run code: save its "
                    'weights alone, as torch.save({"model": model.state_dict()}, PATH)'
                ) from error
            raise UserError(f"{f} cannot be read as a checkpoint: give a file of tensors saved by PyTorch") from error
        averaged = next((key for key in AVERAGED if isinstance(loaded, dict) and loaded.get(key)), None)
        if averaged is not None:
            self.logger.info(f"Of the weights in {f} the averaged ones are taken, {averaged}.")
            loaded["model"] = loaded.pop(averaged)
        weights = loaded.get("model", loaded) if isinstance(loaded, dict) else None
        if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
            raise UserError(f"{f} holds no model weights: give a checkpoint, such as model_final.pth")
        return loaded

    def _load_model(self, checkpoint: dict[str, Any]):
        checkpoint["model"] = translate(checkpoint["model"], self.model)
        incompatible = super()._load_model(checkpoint)
        mismatched = incompatible.incorrect_shapes
        names = {name for name, *_ in mismatched}
        # a frozen batch norm does not count its batches
        unexpected = [k for k in incompatible.unexpected_keys if not k.endswith("num_batches_tracked")]
        incompatible.unexpected_keys[:] = unexpected
        incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if k not in names]
        self.report = LoadReport(list(incompatible.missing_keys), unexpected, list(mismatched))
        return incompatible


def load_weights(model: nn.Module, path: str, strict: bool = False) -> LoadReport:
    """Load a file's weights into a model, with a warning that lists what did not match.

    Args:
        model: of any kind, without a DistributedDataParallel around it.
        path: of our own checkpoints, of Detectron2's model zoo (`.pkl`), of a torchvision ResNet, or of a DINO,
            Deformable DETR or DAB-DETR from detrex or the official repositories. Averaged weights are preferred.
        strict: raise a `UserError` where a parameter or buffer of the model is left unset.

    Raises:
        UserError: the file is absent or no checkpoint.
    """
    if not path:
        raise UserError("no checkpoint is given: an empty path has no weights to load")
    loader = WeightLoader(model)
    loader.load(path, checkpointables=[], strict=strict)
    return loader.report
