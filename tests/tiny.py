"""Small detectors and batches that tests share."""

from pathlib import Path

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances

CONFIGS = Path(__file__).parents[1] / "projects" / "CLoCKDistill" / "configs"


def tiny_dino_config(embed_dim=32, num_classes=3, decoder_layers=2):
    """The full-size config cut down: what tests run is what users train, but smaller."""
    model = LazyConfig.load(str(CONFIGS / "common" / "models" / "dino.py")).model
    model.backbone.update(depth=18, width=8, norm="BN", freeze_at=0)
    model.neck.in_channels = [16, 32, 64]
    model.encoder.update(embed_dim=embed_dim, num_layers=1, num_heads=4, num_points=2, feedforward_dim=64)
    model.decoder.num_layers = decoder_layers
    model.denoising.num_queries = 6
    model.update(num_classes=num_classes, num_queries=20)
    return model


def tiny_dino(seed=0, **kwargs):
    torch.manual_seed(seed)
    return instantiate(tiny_dino_config(**kwargs))


def roughen(module, seed=0, scale=0.1):
    """Replaces the symmetric, partly zero initial values by random ones, so that every path carries a signal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return module


def random_instances(height, width, count, num_classes, generator):
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.7
    extent = 4 + torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) * 0.3 - 4)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.cat((corner, corner + extent), 1))
    instances.gt_classes = torch.randint(num_classes, (count,), generator=generator)
    return instances


def random_batch(sizes=((64, 96), (64, 96)), counts=(3, 1), num_classes=3, seed=0):
    """A batch as Detectron2's loader gives it; image sizes as (height, width), counts of objects."""
    generator = torch.Generator().manual_seed(seed)
    return [
        dict(
            image=torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8),
            instances=random_instances(height, width, count, num_classes, generator),
            height=height,
            width=width,
        )
        for (height, width), count in zip(sizes, counts, strict=True)
    ]
