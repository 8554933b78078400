"""Small detectors and batches that tests share."""

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances

from clockdistill.modeling import Queries
from families import CONFIGS, VARIANTS, model_config

__all__ = ["CONFIGS", "VARIANTS", "model_config"]


def tiny_config(variant="dino", **kwargs):
    """A family's config, shrunk."""
    return shrink(model_config(variant), **kwargs)


def shrink(model, embed_dim=32, num_classes=3, decoder_layers=2):
    """Make the full-size config of a model smaller, in place, so that tests run what users train."""
    # Detectron2's ResNet-18 does not support dilation
    depth, expansion = (50, 4) if model.backbone.get("dilate_res5") else (18, 1)
    model.backbone.update(depth=depth, width=8, norm="BN", freeze_at=0)
    model.neck.in_channels = [expansion * c for c in (8, 16, 32, 64)][-len(model.neck.in_features) :]
    model.encoder.update(embed_dim=embed_dim, num_layers=1, num_heads=4, feedforward_dim=64)
    model.decoder.num_layers = decoder_layers
    model.update(num_classes=num_classes, num_queries=min(20, model.num_queries))
    if model.get("num_patterns"):
        model.update(num_patterns=2, num_queries=10)
    if "num_points" in model.encoder:
        model.encoder.num_points = 2
    if "denoising" in model:
        model.denoising.num_queries = 6
    return model


def tiny(variant="dino", seed=0, **kwargs):
    torch.manual_seed(seed)
    return instantiate(tiny_config(variant, **kwargs))


def random_queries(model, padding):
    """Queries as in distillation, with random contents, boxes and, if the model needs them, positions."""
    size = *padding.shape, model.embed_dim
    boxes = torch.rand(*padding.shape, 4) * 0.8 + 0.1
    position = None if model.encodes_boxes else torch.randn(size)
    return Queries(torch.randn(size), boxes, padding=padding, position=position)


def add_noise(module, seed=0, scale=0.1):
    """Add noise to the initial parameters, some of which are zero, so that every path carries a signal."""
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
    """A batch as Detectron2's loader returns it.

    Args:
        sizes: (height, width) of each image.
        counts: number of objects in each image.
    """
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
