"""Target queries for a teacher that was trained without denoising: fitted to what its decoder reads."""

import hashlib
import itertools
import logging
import os
import pickle
from collections.abc import Iterable

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..layers import MLP, sine_embed_boxes
from ..modeling import Detector, Queries, Target
from ..modeling.structures import pad_targets
from .logits import target_queries

logger = logging.getLogger(__name__)


class BoxEncoder(nn.Module):
    """Boxes (B, Q, 4) to the positions (B, Q, C) of queries for them: an MLP of the sinusoidal encoding."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.embed_dim = embed_dim
        self.mlp = MLP(2 * embed_dim, embed_dim, embed_dim, 2)

    def forward(self, boxes: Tensor) -> Tensor:
        return self.mlp(sine_embed_boxes(boxes, self.embed_dim // 2))


class TargetEmbedding(nn.Module):
    """What a detector's target queries are made of.

    Attributes:
        content: class embedding (num_classes, C).
        box_encoder: for a detector whose decoder makes no position of a box; else None.
    """

    def __init__(self, detector: Detector):
        super().__init__()
        self.content = nn.Embedding(detector.num_classes, detector.embed_dim)
        self.box_encoder = None if detector.encodes_boxes else BoxEncoder(detector.embed_dim)

    def forward(self, targets: list[Target]) -> Queries:
        return target_queries(targets, self.content.weight, self.box_encoder)


def calibrate(
    embedding: TargetEmbedding, teacher: Detector, data: Iterable[list[dict]], batches: int, steps: int, lr: float
) -> None:
    """Fit an embedding on a frozen teacher: asked for an object by its class and box, it is to answer with that object.

    The loss is the teacher's own, every query matched with the object that it was made of (arXiv:2502.10683, Sec. 3.3).
    Several processes fit one embedding together, each on its data.

    Args:
        data: batches after augmentation.
        batches: how many of them are used; the teacher encodes each once.
        steps: of Adam, on every batch.
    """
    embedding.requires_grad_(True)
    nn.init.zeros_(embedding.content.weight)
    fitted = DistributedDataParallel(embedding) if comm.get_world_size() > 1 else embedding
    optimizer = torch.optim.Adam(embedding.parameters(), lr)
    for number, batch in enumerate(itertools.islice(data, batches)):
        targets = teacher.targets(batch)
        _, _, padding = pad_targets(targets)
        image, query = (~padding).nonzero(as_tuple=True)
        with torch.no_grad():
            memory = teacher.encode(teacher.preprocess(batch))
        for _ in range(steps):
            predictions = teacher.decode(memory, fitted(targets))
            losses = teacher.criterion(predictions, targets, matches=(image, query, query), padding=padding)
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if number % 10 == 9 or number == batches - 1:
            logger.info(f"Calibration of the target queries: batch {number + 1} of {batches}, loss {loss.item():.3f}")
    embedding.requires_grad_(False)


def calibration_path(checkpoint: str) -> str:
    """The file with the embedding that belongs to a teacher's checkpoint: `model_final.targets.pth`."""
    return os.path.splitext(checkpoint)[0] + ".targets.pth"


def fingerprint(model: nn.Module) -> str:
    """Of a model's weights: an embedding that was fitted to others is of no use."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy())
    return digest.hexdigest()


def save_embedding(embedding: TargetEmbedding, path: str, teacher: str) -> None:
    """Write an embedding with its teacher's fingerprint; where that cannot be, a warning says so."""
    try:
        torch.save({"teacher": teacher, "embedding": embedding.state_dict()}, path + ".tmp")
        os.replace(path + ".tmp", path)
    except (OSError, RuntimeError) as error:
        logger.warning(f"The calibrated target queries cannot be saved to {path} and will be fitted again: {error}")
    else:
        logger.info(f"Saved the calibrated target queries to {path}")


def load_embedding(embedding: TargetEmbedding, path: str, teacher: str) -> bool:
    """Whether the file was there, of this teacher, and is loaded."""
    if not os.path.isfile(path):
        return False
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["teacher"] != teacher:
            logger.info(f"{path} is of another teacher: its target queries are fitted again")
            return False
        embedding.load_state_dict(saved["embedding"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no calibrated target queries: delete it, to have them fitted again") from error
    return True
