"""Calibration of target queries, for a teacher that was trained without denoising."""

import contextlib
import hashlib
import itertools
import logging
import os
import pickle
from collections.abc import Iterable

import torch
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checks import above, checked, count
from ..errors import UserError
from ..modeling import Detector
from .target_queries import TargetEmbedding

logger = logging.getLogger(__name__)


@checked(batches=count, steps=count, lr=above(0))
def calibrate(
    embedding: TargetEmbedding, teacher: Detector, data: Iterable[list[dict]], batches: int, steps: int, lr: float
) -> None:
    """Fit an embedding to a frozen teacher, so that each target query is decoded into its own object.

    The loss is the teacher's detection loss, with each query matched to its object (arXiv:2502.10683, Sec. 3.3). In
    distributed training, all processes fit one embedding together.

    Args:
        data: batches after augmentation.
        batches: number of batches to use; the teacher encodes each once.
        steps: number of Adam steps per batch.
        lr: learning rate.
    """
    embedding.requires_grad_(True)
    # a class that is not in the batches then has no content instead of random content
    nn.init.zeros_(embedding.content.weight)
    fitted = DistributedDataParallel(embedding) if comm.get_world_size() > 1 else embedding
    optimizer = torch.optim.Adam(embedding.parameters(), lr)
    for number, batch in enumerate(itertools.islice(data, batches)):
        targets = teacher.targets(batch)
        image, query = (~targets.padding).nonzero(as_tuple=True)
        with torch.no_grad():
            memory = teacher.encode(teacher.preprocess(batch))
        for _ in range(steps):
            predictions = teacher.decode(memory, fitted(targets))
            losses = teacher.criterion(predictions, targets, matches=(image, query, query), padding=targets.padding)
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if number % 10 == 9 or number == batches - 1:
            logger.info(f"Calibration of the target queries: batch {number + 1} of {batches}, loss {loss.item():.3f}")
    embedding.requires_grad_(False)


def calibration_path(checkpoint: str) -> str:
    """Return the path of the embedding next to a teacher's checkpoint: `model_final.targets.pth`."""
    return os.path.splitext(checkpoint)[0] + ".targets.pth"


def fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's weights, which tells whether an embedding was fitted to this model."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy())
    return digest.hexdigest()


def save_embedding(embedding: TargetEmbedding, path: str, teacher: str) -> None:
    """Save an embedding with its teacher's fingerprint, or log a warning if the file cannot be written."""
    # another training with the same teacher may be saving too
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        torch.save({"teacher": teacher, "embedding": embedding.state_dict()}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        logger.warning(
            f"The calibrated target queries could not be saved to {path}; the next run will fit them again: {error}"
        )
    else:
        logger.info(f"Saved the calibrated target queries to {path}")


def load_embedding(embedding: TargetEmbedding, path: str, teacher: str) -> bool:
    """Load an embedding, and return whether the file exists and belongs to this teacher."""
    if not os.path.isfile(path):
        return False
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["teacher"] != teacher:
            logger.info(f"{path} belongs to another teacher: fitting new target queries")
            return False
        embedding.load_state_dict(saved["embedding"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not contain calibrated target queries: delete it to fit them again") from error
    return True
