"""Calibration of target queries, for a teacher that was trained without denoising."""

import contextlib
import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Mapping

import torch
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checks import above, check, count
from ..errors import InvalidValue, UserError
from ..modeling import Detector
from .target_queries import TargetEmbedding

logger = logging.getLogger(__name__)


RULES = {"batches": count, "steps": count, "lr": above(0)}


def check_settings(settings: Mapping[str, float] | None) -> None:
    """Raise a `UserError` unless these are the settings of `calibrate`."""
    if set(settings or ()) != set(RULES):
        raise UserError(f"distillation.calibration must have the keys {', '.join(RULES)}, and no others")
    try:
        check(dict(settings), RULES)
    except InvalidValue as error:
        raise error.at("distillation.calibration") from error


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
    seen = torch.zeros(teacher.num_classes, dtype=torch.bool, device=teacher.device)
    # a class that is not in the batches then has no content instead of random content
    nn.init.zeros_(embedding.content.weight)
    fitted = DistributedDataParallel(embedding) if comm.get_world_size() > 1 else embedding
    optimizer = torch.optim.Adam(embedding.parameters(), lr)
    for number, batch in enumerate(itertools.islice(data, batches)):
        targets = teacher.targets(batch)
        seen[targets.labels[~targets.padding]] = True
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
    unseen = set((~seen).nonzero().flatten().tolist())
    unseen = sorted(unseen.intersection(*comm.all_gather(unseen)))
    if unseen:
        logger.warning(
            f"The {batches} batches of the calibration have no objects of class {', '.join(map(str, unseen))}: "
            "their target queries have no content. Set distillation.calibration.batches to a higher number."
        )


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


def save_embedding(embedding: TargetEmbedding, path: str, origin: dict) -> None:
    """Save an embedding with its origin, or log a warning if the file cannot be written.

    Args:
        origin: the teacher's fingerprint, the settings of the calibration and its data.
    """
    # another training with the same teacher may be saving too
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        torch.save({"origin": origin, "embedding": embedding.state_dict()}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        logger.warning(
            f"The calibrated target queries could not be saved to {path}; the next run will fit them again: {error}"
        )
    else:
        logger.info(f"Saved the calibrated target queries to {path}")


def load_embedding(embedding: TargetEmbedding, path: str, origin: dict) -> bool:
    """Load an embedding, and return whether the file exists and has this origin."""
    if not os.path.isfile(path):
        return False
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        weights = saved["embedding"]
        if saved.get("origin") != origin:
            logger.info(f"{path} is of another teacher, other data or other settings: fitting new target queries")
            return False
        embedding.load_state_dict(weights)
    except Exception as error:  # a damaged pickle raises almost anything
        raise UserError(f"{path} does not contain calibrated target queries: delete it to fit them again") from error
    logger.info(f"Using the calibrated target queries in {path}")
    return True
