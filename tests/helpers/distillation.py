"""Teachers, hooks, memories and a formula that several tests of distillation share."""

import math
from pathlib import Path

import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf

from clockdistill.distillation import DistillationHook, MemoryLoss, TargetAwareLogitLoss
from clockdistill.engine import Trainer
from clockdistill.modeling import Memory, Outputs, Target, Targets
from helpers.models import add_noise, random_batch, tiny, tiny_config

# one variant for each way of making content and position of queries
VARIANTS = {
    "dino": "denoising",
    "deformable_detr": "random",
    "deformable_detr.two_stage": "random",
    "dab_detr": "random",
}
# teacher, student, and the stride of the only level that they share, or 0 if they share all
CROSS = [
    ("dino", "dab_detr", 32),
    ("dino", "dab_detr.dc5", 16),
    ("dab_detr", "dino", 32),
    ("deformable_detr.two_stage", "dab_detr", 32),
    ("dino", "deformable_detr", 0),
]
WEIGHTS = dict(class_weight=1.0, l1_weight=5.0, giou_weight=2.0)


def save_teacher(folder, variant="dino", **kwargs):
    """Config and checkpoint of a random teacher, as the hook takes them."""
    config, checkpoint = str(Path(folder) / "teacher.yaml"), str(Path(folder) / "teacher.pth")
    LazyConfig.save(OmegaConf.create({"model": tiny_config(variant, **kwargs)}, flags={"allow_objects": True}), config)
    teacher = add_noise(tiny(variant, seed=1, **kwargs), seed=1, scale=0.05)
    torch.save({"model": teacher.state_dict()}, checkpoint)
    return dict(config=config, checkpoint=checkpoint)


def make_hook(student, teacher, losses=None, embedding="denoising", **kwargs):
    losses = losses or {"memory": MemoryLoss(1e-2, 1e-3), "logits": TargetAwareLogitLoss(**WEIGHTS)}
    kwargs = dict(gradient_share_period=0) | kwargs
    return DistillationHook(student=student, teacher=teacher, losses=losses, embedding=embedding, **kwargs)


def losses_from_step(first, teacher, losses, name):
    """Logged values of a loss in a training, with a learning rate of zero, from step `first` to the second one."""
    config = tiny_config()
    config.backbone.norm = "FrozenBN"
    torch.manual_seed(0)
    student = instantiate(config)
    hook = make_hook(student, teacher, losses)
    optimizer = torch.optim.SGD([*student.parameters(), *hook.parameters()], lr=0)
    trainer = Trainer(student, [random_batch()] * 4, optimizer, seed=3)
    trainer.register_hooks([hook])
    trainer.train(first, 2)
    return [value for value, _ in trainer.storage.history(name).values()]


def make_memory(shapes, valid, channels=3, dtype=torch.float32):
    """Random memory of padded levels `shapes`; `valid[b][l]` is the extent of image b in level l without padding."""
    tokens = sum(h * w for h, w in shapes)
    padding, ratios = [], []
    for image in valid:
        masks = []
        for (height, width), (h, w) in zip(shapes, image, strict=True):
            mask = torch.ones(height, width, dtype=torch.bool)
            mask[:h, :w] = False
            masks.append(mask.flatten())
        padding.append(torch.cat(masks))
        ratios.append([[w / width, h / height] for (height, width), (h, w) in zip(shapes, image, strict=True)])
    return Memory(
        tokens=torch.randn(len(valid), tokens, channels, dtype=dtype),
        features=torch.randn(len(valid), tokens, channels, dtype=dtype),
        padding_mask=torch.stack(padding),
        level_shapes=shapes,
        valid_ratios=torch.tensor(ratios),
    )


SHAPES = [(12, 20), (6, 10), (3, 5), (1, 2)]
VALID = [[(12, 20), (6, 10), (3, 5), (1, 2)], [(9, 14), (5, 7), (3, 4), (1, 1)], [(4, 20), (2, 10), (1, 5), (1, 2)]]


def random_targets(seed):
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in (6, 1, 0):
        low = torch.rand(count, 2, generator=generator) * 0.8
        high = low + (1 - low) * torch.rand(count, 2, generator=generator).clamp(min=0.01)
        targets.append(Target(torch.zeros(count, dtype=torch.long), torch.cat(((low + high) / 2, high - low), 1)))
    return Targets(targets)


def outputs_of(memory):
    return Outputs(memory)


def weights_by_loop(valid, shapes, targets):
    objects, background = [], []
    for image, target in zip(valid, targets, strict=True):
        object_cells, background_cells = [], []
        for (height, width), (h, w) in zip(shapes, image, strict=True):
            weight = [[0.0] * width for _ in range(height)]
            for cx, cy, bw, bh in target.boxes.double().tolist():
                x0, x1 = math.floor((cx - bw / 2) * w), math.ceil((cx + bw / 2) * w)
                y0, y1 = math.floor((cy - bh / 2) * h), math.ceil((cy + bh / 2) * h)
                for i in range(y0, y1):
                    for j in range(x0, x1):
                        weight[i][j] = max(weight[i][j], 1 / ((y1 - y0) * (x1 - x0)))
            rest = sum(weight[i][j] == 0 for i in range(h) for j in range(w))
            for i in range(height):
                for j in range(width):
                    inside = i < h and j < w
                    object_cells.append(weight[i][j])
                    background_cells.append(1 / rest if inside and weight[i][j] == 0 else 0.0)
        objects.append(object_cells)
        background.append(background_cells)
    return torch.tensor(objects), torch.tensor(background)


def places(shape, stride):
    """Return the centers (h * w, 2) of a level's cells, in pixels."""
    rows, columns = (stride * (torch.arange(cells) + 0.5) for cells in shape)
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)
