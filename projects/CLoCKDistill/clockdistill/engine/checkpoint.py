"""Checkpoints: a file with the plain model, and a second one with the training state for `--resume`."""

import logging
import os
import pickle
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.engine import hooks
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import nn

from ..errors import UserError
from ..modeling.weights import WeightLoader

logger = logging.getLogger(__name__)


def inference_metadata(cfg: DictConfig) -> dict[str, Any]:
    """What inference needs besides the model, so that it works without the data set.

    Args:
        cfg: a training config, after its training data set was loaded.

    Returns:
        Plain values:
            class_names: list of str, by class id;
            resize: the arguments `short_edge_length` and `max_size` of the test mapper's `ResizeShortestEdge`, or None
                if images keep their size.
        A key is left out if the config does not determine it, and `resize` if test images are augmented in another way.
    """
    metadata = {}
    names = OmegaConf.select(cfg, "dataloader.train.dataset.names")
    if names:
        class_names = MetadataCatalog.get(names if isinstance(names, str) else names[0]).get("thing_classes")
        if class_names:
            metadata["class_names"] = list(class_names)
    augmentations = OmegaConf.select(cfg, "dataloader.test.mapper.augmentations")
    if augmentations is not None:
        augmentations = list(instantiate(augmentations))
        if not augmentations:
            metadata["resize"] = None
        elif len(augmentations) == 1 and is_fixed_resize(augmentations[0]):
            (resize,) = augmentations
            metadata["resize"] = dict(short_edge_length=int(resize.short_edge_length[0]), max_size=int(resize.max_size))
        else:
            logger.warning(
                "checkpoints cannot store test-time augmentations other than one ResizeShortestEdge of a fixed size: "
                "predict.py will use dataloader.test.mapper.augmentations of its config"
            )
    return metadata


def is_fixed_resize(augmentation: T.Augmentation) -> bool:
    return (
        isinstance(augmentation, T.ResizeShortestEdge)
        and len(set(augmentation.short_edge_length)) == 1
        and augmentation.interp == Image.BILINEAR
    )


def resume_path(path: str) -> str:
    """Path of the training state that belongs to a model file: `model_final.resume.pth`."""
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
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: value.state_dict() for key, value in self.checkpointables.items()}
        if self.ema is not None:
            state["model"] = self.model.state_dict()
        model = self.model if self.ema is None else self.ema
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        # the model comes last: if its file exists, the other one is complete
        save_atomically(state, resume_path(path))
        save_atomically({"model": model.state_dict(), "metadata": self.metadata, **kwargs}, path)
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            file.write(last_filename_basename)
        os.replace(path + ".tmp", path)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the last checkpoint in `save_dir` if `resume` and there is one, else load weights from `path`."""
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
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
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
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


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which also deletes the training state of the checkpoints that it deletes."""

    def step(self, iteration: int, **kwargs: Any) -> None:
        super().step(iteration, **kwargs)
        if (iteration + 1) % self.period and iteration + 1 < self.max_iter:
            return
        folder = self.checkpointer.save_dir
        for name in os.listdir(folder):
            if name.endswith(".resume.pth"):
                path = os.path.join(folder, name)
                if not os.path.isfile(path.removesuffix(".resume.pth") + ".pth"):
                    os.remove(path)


def save_atomically(data: Any, path: str) -> None:
    """`torch.save`, but when it fails, the previous file is left as it was."""
    temporary = path + ".tmp"
    try:
        torch.save(data, temporary)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
