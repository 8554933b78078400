"""Checkpoints: a file with the plain model, and a second one with the training state for `--resume`."""

import logging
import os
import re
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.engine import HookBase
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import nn

from ..errors import UserError
from ..files import replaced
from ..modeling.weights import WeightLoader
from .datasets import dataset_names

NUMBERED = re.compile(r"model_(\d{7,})\.pth")

logger = logging.getLogger(__name__)


def inference_metadata(cfg: DictConfig) -> dict[str, Any]:
    """What inference needs besides the model, so that it works without the dataset.

    Args:
        cfg: a training config, after its training dataset was loaded.

    Returns:
        Plain values:
            class_names: list of str, by class id;
            resize: the arguments `short_edge_length` and `max_size` of the test mapper's `ResizeShortestEdge`, or None
                if images keep their size.
        A key is left out if the config does not determine it, and `resize` if test images are augmented in another way.
    """
    metadata = {}
    names = dataset_names(cfg, "train")
    if names:
        class_names = MetadataCatalog.get(names[0]).get("thing_classes")
        if class_names:
            metadata["class_names"] = list(class_names)
    augmentations = OmegaConf.select(cfg, "dataloader.test.mapper.augmentations")
    if augmentations is not None:
        try:
            metadata["resize"] = resize_rule(instantiate(augmentations))
        except UserError as error:
            logger.warning(f"{error}; until then, predict.py uses those of its config")
    return metadata


def resize_rule(augmentations: Sequence[T.Augmentation]) -> dict[str, int] | None:
    """Return `short_edge_length` and `max_size` of the only augmentation, or None if images keep their size.

    Raises:
        UserError: there are others than one bilinear `ResizeShortestEdge` of a fixed size.
    """
    if not augmentations:
        return None
    (resize, *others) = augmentations
    if (
        others
        or not isinstance(resize, T.ResizeShortestEdge)
        or len(set(resize.short_edge_length)) > 1
        or resize.interp != Image.BILINEAR
    ):
        raise UserError(
            "checkpoints and exported models can only store one bilinear ResizeShortestEdge of a fixed size, or no "
            "augmentation: change dataloader.test.mapper.augmentations"
        )
    return dict(short_edge_length=int(resize.short_edge_length[0]), max_size=int(min(resize.max_size, 2**31 - 1)))


def resume_path(path: str) -> str:
    """Path of the training state that belongs to a model file: `model_0004999.resume.pth`."""
    return path.removesuffix(".pth") + ".resume.pth"


class Checkpointer(WeightLoader):
    """Saves `NAME.pth` for inference and `NAME.resume.pth` with the training state.

    `NAME.pth` is `{"model": state_dict, "iteration": int, "metadata": dict}`, which `torch.load(weights_only=True)`
    reads.

    Args:
        model: the student, with or without DistributedDataParallel.
        save_dir: output folder; with "" nothing is saved.
        ema: the averaged model. Its weights are then saved in `NAME.pth`, and the raw ones in `NAME.resume.pth`.
        metadata: of `inference_metadata`.
        checkpointables: objects with a state dict to resume from, by name: the trainer.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        ema: nn.Module | None = None,
        metadata: dict[str, Any] | None = None,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.ema = ema
        self.metadata = metadata or {}

    def save(self, name: str, **kwargs: Any) -> None:
        """Save `NAME.pth` and `NAME.resume.pth`, and make them the checkpoint to resume from.

        Raises:
            UserError: a file cannot be written; the previous checkpoint is then left as it was.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: value.state_dict() for key, value in self.checkpointables.items()}
        if self.ema is not None:
            state["model"] = self.model.state_dict()
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        # the model comes last: if its file exists, the other one is complete
        is_new = not os.path.exists(path)
        save_atomically(state, resume_path(path))
        try:
            self.save_model(name, **kwargs)
        except UserError:
            if is_new:
                os.remove(resume_path(path))
            raise
        self.tag_last_checkpoint(os.path.basename(path))

    def save_model(self, name: str, **kwargs: Any) -> None:
        """Save only `NAME.pth`."""
        model = self.model if self.ema is None else self.ema
        contents = {"model": model.state_dict(), "metadata": self.metadata, **kwargs}
        save_atomically(contents, os.path.join(self.save_dir, f"{name}.pth"))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        try:
            with replaced(path) as file:
                file.write(last_filename_basename.encode())
        except OSError as error:
            raise not_written(path, error) from error

    def numbered(self) -> list[str]:
        """Return the paths of the model files that can be resumed from, oldest first."""
        names = [name for name in os.listdir(self.save_dir) if NUMBERED.fullmatch(name)]
        paths = [os.path.join(self.save_dir, name) for name in sorted(names, key=lambda n: int(NUMBERED.match(n)[1]))]
        return [path for path in paths if os.path.isfile(resume_path(path))]

    def get_checkpoint_file(self) -> str:
        """Return the path of the model file to resume from: the tagged one, or else the newest; "" if there is none."""
        try:
            with open(os.path.join(self.save_dir, "last_checkpoint"), encoding="utf-8") as file:
                path = os.path.join(self.save_dir, os.path.basename(file.read().strip()))
        except (OSError, UnicodeDecodeError):
            path = ""
        if os.path.isfile(path):
            return path
        return next(reversed(self.numbered()), "") if os.path.isdir(self.save_dir) else ""

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def is_finished(self) -> bool:
        """Return whether `save_dir` has a final model, from which a training cannot be continued."""
        return os.path.isfile(os.path.join(self.save_dir, "model_final.pth")) and not self.has_checkpoint()

    def resume(self) -> dict[str, Any]:
        """Load the last checkpoint in `save_dir`, with the training state, and return the model file's other entries.

        Raises:
            UserError: a file does not exist, cannot be read, or belongs to another config.
        """
        path = self.get_checkpoint_file()
        state_path = resume_path(path)
        if not os.path.isfile(state_path):
            raise UserError(
                f"{state_path} does not exist, but --resume needs it: put it back next to {os.path.basename(path)}, "
                f"or start a new run with train.init_checkpoint={path}"
            )
        extra = self.load(path, checkpointables=[], strict=True)
        try:
            state = torch.load(state_path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle raises almost anything
            raise UserError(
                f"{state_path} cannot be read: start a new run with train.init_checkpoint={path}, without --resume"
            ) from error
        if self.ema is not None:
            self.ema.load_state_dict(self.model.state_dict())
        try:
            if "model" in state:
                self.model.load_state_dict(state["model"])
            for key, value in self.checkpointables.items():
                value.load_state_dict(state[key])
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{state_path} does not match this config: resume with the config that wrote it, or start a new run "
                f"with train.init_checkpoint={path}, without --resume"
            ) from error
        return extra


class PeriodicCheckpointer(HookBase):
    """Saves checkpoints `model_0004999` periodically and after the last iteration, which is also `model_final.pth`.

    If a periodic checkpoint cannot be written, the training goes on until the next one. None is saved while steps are
    skipped because they are not finite.

    Args:
        checkpointer: of the main process.
        period: number of iterations.
        max_to_keep: number of checkpoints to keep, those of interrupted runs included; None keeps all.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, max_to_keep: int | None = None):
        self.checkpointer = checkpointer
        self.period = period
        self.max_to_keep = max_to_keep

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            try:
                self.save()
            except UserError as error:
                raise UserError(f"{error}; {self.last()}") from error
        elif done % self.period == 0 and not self.trainer.nonfinite_steps:
            try:
                self.save()
            except UserError as error:
                logger.error(f"{error}; the training goes on until the next checkpoint")

    def after_train(self) -> None:
        # it is smaller after an interruption
        if self.trainer.iter >= self.trainer.max_iter:
            done = max(self.trainer.start_iter, self.trainer.max_iter)
            self.checkpointer.save_model("model_final", iteration=done - 1)

    def last(self) -> str:
        """Say which checkpoint --resume continues from."""
        path = self.checkpointer.get_checkpoint_file()
        return f"--resume continues from {path}" if path else "there is no checkpoint to resume from"

    def save(self) -> str:
        """Save the state after the trainer's current iteration, delete old checkpoints, and return the model's path."""
        name = f"model_{self.trainer.iter:07d}"
        saved = os.path.join(self.checkpointer.save_dir, f"{name}.pth")
        # a signal may come just after a periodic checkpoint
        if self.checkpointer.get_checkpoint_file() != saved:
            self.checkpointer.save(name, iteration=self.trainer.iter)
        paths = self.checkpointer.numbered()
        for path in paths[: -self.max_to_keep] if self.max_to_keep else ():
            if path != saved:
                # a training state that is left alone is removed when the training is resumed
                os.remove(path)
                os.remove(resume_path(path))
        return saved


def save_atomically(data: Any, path: str) -> None:
    """`torch.save`, which is on the disk when this returns.

    Raises:
        UserError: the file cannot be written; the previous one is then left as it was.
    """
    try:
        with replaced(path) as file:
            torch.save(data, file)
    except (OSError, RuntimeError) as error:
        # torch's writer fails once more when it closes the file
        cause = error
        while cause.__context__ is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if not isinstance(cause, OSError):
            raise
        raise not_written(path, cause, size_in_bytes(data)) from error


def not_written(path: str, error: OSError, needed: int = 0) -> UserError:
    """Return the error for a file that cannot be written, perhaps because the disk lacks the needed bytes."""
    free, mib = shutil.disk_usage(os.path.dirname(path) or ".").free, 2**20
    reason = error.strerror or str(error)
    if free < needed:
        reason = f"it needs {needed / mib:.1f} MiB, and {free / mib:.1f} MiB are free"
    return UserError(f"cannot write {path}: {reason}; free some space, or set train.output_dir to another disk")


def size_in_bytes(data: Any) -> int:
    """Return the size of all tensors in nested dictionaries and lists."""
    if isinstance(data, torch.Tensor):
        return data.nbytes
    values = data.values() if isinstance(data, dict) else data if isinstance(data, list | tuple) else ()
    return sum(map(size_in_bytes, values))
