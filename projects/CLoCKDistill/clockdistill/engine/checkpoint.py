"""Checkpoints: the plain model in one file, and what only `--resume` needs in another beside it."""

import os
import pickle
from typing import Any

import torch
from detectron2.engine import hooks
from torch import nn

from ..errors import UserError
from ..modeling.weights import WeightLoader


def resume_path(path: str) -> str:
    """The file with the training state that belongs to a model file: `model_final.resume.pth`."""
    return path.removesuffix(".pth") + ".resume.pth"


class Checkpointer(WeightLoader):
    """Saves `NAME.pth` with the model and the iteration alone, and `NAME.resume.pth` with the state of the training.

    Args:
        model: the student, perhaps in DistributedDataParallel.
        save_dir: where files go; nothing is saved to "".
        ema: the averaged model, whose weights then are the ones in `NAME.pth`; the raw ones go to the other file.
        checkpointables: what else a resumed training needs, by name: the trainer.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, ema: nn.Module | None = None, **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.ema = ema

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: value.state_dict() for key, value in self.checkpointables.items()}
        if self.ema is not None:
            state["model"] = self.model.state_dict()
        model = self.model if self.ema is None else self.ema
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        # the model comes last: where its file is, the other one is complete
        save_atomically(state, resume_path(path))
        save_atomically({"model": model.state_dict(), **kwargs}, path)
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            file.write(last_filename_basename)
        os.replace(path + ".tmp", path)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Go on from the last checkpoint of `save_dir` where `resume` and one exists; else load weights from `path`."""
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        path = self.get_checkpoint_file()
        state_path = resume_path(path)
        if not os.path.isfile(state_path):
            raise UserError(
                f"{state_path} does not exist, and --resume needs it: put it back beside {os.path.basename(path)}, "
                f"or start anew with train.init_checkpoint={path}"
            )
        extra = self.load(path, checkpointables=[], strict=True)
        try:
            state = torch.load(state_path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(
                f"{state_path} cannot be read: start anew with train.init_checkpoint={path}, without --resume"
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
                f"{state_path} does not fit this config: resume with the one that wrote it, or start anew with "
                f"train.init_checkpoint={path}, without --resume"
            ) from error
        return extra


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which deletes old checkpoints, for checkpoints of two files."""

    def step(self, iteration: int, **kwargs: Any) -> None:
        super().step(iteration, **kwargs)
        folder = self.checkpointer.save_dir
        for name in os.listdir(folder):
            if name.endswith(".resume.pth"):
                path = os.path.join(folder, name)
                if not os.path.isfile(path.removesuffix(".resume.pth") + ".pth"):
                    os.remove(path)


def save_atomically(data: Any, path: str) -> None:
    """`torch.save` that leaves the old file, or none, when it fails."""
    temporary = path + ".tmp"
    try:
        torch.save(data, temporary)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
