"""Gradients of a trainer's step, to compare ways to divide a batch."""

import torch
from detectron2.config import instantiate
from torch.nn.parallel import DistributedDataParallel

from clockdistill.distillation import (
    FGDLoss,
    FitNetsLoss,
    GeneralPointsLoss,
    HungarianLogitLoss,
    MatchedLogitLoss,
    MemoryLoss,
    MGDLoss,
    PlainFeatureLoss,
    QueryPriorLoss,
    SpecificPointsLoss,
    TargetAwareFeatureLoss,
    TargetAwareLogitLoss,
)
from clockdistill.engine import Trainer
from clockdistill.modeling import HungarianMatcher, Queries
from helpers.distillation import WEIGHTS, make_hook
from helpers.models import add_noise, random_batch, random_queries, tiny_config

# every second pair has the same padded size, and numbers of objects differ
SIZES = ((96, 128), (64, 128), (96, 128), (96, 112)) * 2
COUNTS = (3, 0, 1, 5, 0, 0, 2, 1)


class FixedPointsLoss(GeneralPointsLoss):
    """With the same points for every image, because random ones depend on the division."""

    def queries(self, teacher, memory, objects, targets):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            points = random_queries(teacher, torch.zeros(1, self.num_points, dtype=torch.bool))
        size = len(targets), -1, -1
        position = None if points.position is None else points.position.expand(size)
        return {"points": Queries(points.content.expand(size), points.reference.expand(size), position=position)}


def step_gradients(variant, teacher=None, embedding="random", rank=0, world=1, accumulate=1, images=8, **options):
    """Gradients of student and projections by name, on this rank's share of a batch that is divided into parts.

    Args:
        variant: of the student.
        teacher: as the hook takes it; None trains without distillation.
        images: number of images in the joint batch.
        options: `activation_checkpointing` of the encoder, `balance` of the hook and arguments of the trainer.
    """
    balance = options.pop("balance", None)
    config = tiny_config(variant)
    config.backbone.norm = "FrozenBN"
    config.encoder.activation_checkpointing = options.pop("activation_checkpointing", False)
    if "denoising" in config:
        # noise depends on the division
        config.denoising.update(label_noise=0.0, box_noise=0.0)
    torch.manual_seed(0)
    student = add_noise(instantiate(config), scale=0.05)
    hooks, named = [], dict(student.named_parameters())
    if teacher is not None:
        losses = {
            "memory": MemoryLoss(1e-2, 1e-3),
            "features": PlainFeatureLoss(1e-2, "backbone"),
            "logits": TargetAwareLogitLoss(**WEIGHTS),
            "matched": MatchedLogitLoss(HungarianMatcher(2, 5, 2), **WEIGHTS),
            "fitnets": FitNetsLoss(1e-4),
            "fgd": FGDLoss(1e-2, 1e-2, 1e-2, 1e-4, temperature=0.5),
            # the cells that are masked depend on the division
            "mgd": MGDLoss(1e-4, mask_ratio=0.0),
            "general": FixedPointsLoss(num_points=5, **WEIGHTS),
            "specific": SpecificPointsLoss(**WEIGHTS),
            "hungarian": HungarianLogitLoss(**WEIGHTS),
            "masked": TargetAwareFeatureLoss(1.0, num_queries=10),
            "prior": QueryPriorLoss(1.0),
        }
        hooks = [make_hook(student, teacher, losses, embedding, balance=balance)]
        for parameter in hooks[0].parameters():
            torch.nn.init.zeros_(parameter)
        add_noise(hooks[0].modules, scale=0.05)
        named.update(hooks[0].modules.named_parameters())
    batch = random_batch(sizes=SIZES[:images], counts=COUNTS[:images])
    size = images // (world * accumulate)
    parts = [batch[i : i + size] for i in range(0, images, size)][rank * accumulate : (rank + 1) * accumulate]
    model = DistributedDataParallel(student) if world > 1 else student
    trainer = Trainer(model, parts * 2, torch.optim.SGD(named.values(), lr=0), accumulate=accumulate, **options)
    trainer.register_hooks(hooks)
    # the second step fails if a parameter was not used in the first
    trainer.train(0, 2)
    return {name: p.grad for name, p in named.items()}


def assert_equal_gradients(actual, expected, rtol=1e-3, atol=1e-6):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (actual[name] - gradient).norm() <= rtol * gradient.norm() + atol, name
