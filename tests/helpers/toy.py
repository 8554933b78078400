"""A meta-architecture with one convolution, and the data and evaluator to train it in no time."""

import argparse
import json
import logging
import time
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import nn

from clockdistill.distillation import DistillationHook
from clockdistill.engine import Trainer, do_train, load_config
from clockdistill.engine.metrics import TIMES
from clockdistill.errors import UserError


class ToyDetector(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels))
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, batched_inputs):
        device = self.head.weight.device
        features = self.head(self.backbone(torch.stack([x["image"] for x in batched_inputs]).to(device)))
        if self.training:
            return {"loss_square": (features - 1).square().mean(), "loss_abs": (features - 1).abs().mean()}
        results = []
        for feature in features:
            instances = Instances((8, 8))
            instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 4.0, 4.0]]))
            instances.scores = feature.mean()[None]
            results.append({"instances": instances})
        return results


class ToyLoader:
    """Endless batches, each determined by its index and the seed.

    Args:
        start: index of the first batch.
        broken_at: index of a batch that is NaN.
        length: batches, or None for no end.
        broken_from: index from which on all batches are NaN, or -1.
        seconds: that a batch takes.
    """

    def __init__(
        self,
        seed: int,
        start: int = 0,
        broken_at: int = -1,
        length: int | None = None,
        broken_from: int = -1,
        seconds: float = 0,
    ):
        self.seed, self.start, self.broken_at, self.length = seed, start, broken_at, length
        self.broken_from, self.seconds = broken_from, seconds

    def __len__(self):
        return self.length

    def __iter__(self):
        index = self.start
        while self.length is None or index < self.length:
            time.sleep(self.seconds)
            generator = torch.Generator().manual_seed(1000 * self.seed + index + 100_000 * comm.get_rank())
            images = torch.randn(2, 3, 8, 8, generator=generator)
            if index == self.broken_at or 0 <= self.broken_from <= index:
                images[0, 0, 0, 0] = float("nan")
            yield [{"image": image} for image in images]
            index += 1


class BrokenSet(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise UserError("label file 000003.txt, line 2: fifteen fields are needed")


def broken_loader(num_workers: int, seed: int):
    return torch.utils.data.DataLoader(BrokenSet(), num_workers=num_workers)


class ToyEvaluator(DatasetEvaluator):
    """Reports the mean score as AP, and a class without AP."""

    def reset(self):
        self.scores = []

    def process(self, inputs, outputs):
        self.scores += [x["instances"].scores.item() for x in outputs]

    def evaluate(self):
        logging.getLogger("clockdistill").info(f"evaluated {len(self.scores)} images")
        return {"bbox": {"AP": sum(self.scores) / len(self.scores), "AP-Tram": float("nan")}}


class ToyDistillation(DistillationHook):
    """Adds the square of a trained factor to the losses."""

    teacher_classes = None

    def __init__(self, student):
        self.factor = nn.Parameter(torch.tensor(2.0))

    def calibrate(self, data, source):
        pass

    def parameters(self):
        return iter([self.factor])

    def state_dict(self):
        return {"factor": self.factor.detach()}

    def load_state_dict(self, state):
        self.factor.data.copy_(state["factor"])

    def step_losses(self, model, batches, loss_scale=1.0):
        for data in batches:
            yield model(data) | {"loss_distill": self.factor.square()}


class Recorder(HookBase):
    """Records every step's loss and gradient norm, not smoothed."""

    def __init__(self):
        self.losses, self.norms = [], []

    def after_step(self):
        self.losses.append(self.trainer.storage.history("total_loss").latest())
        if "grad_norm" in self.trainer.storage.histories():
            self.norms.append(self.trainer.storage.history("grad_norm").latest())


def toy_trainer(broken_at=-1, **kwargs):
    """A trainer with a `recorder`; keyword arguments are the trainer's."""
    torch.manual_seed(0)
    model = ToyDetector(channels=4)
    loader = ToyLoader(seed=1, broken_at=broken_at)
    trainer = Trainer(model, loader, torch.optim.SGD(model.parameters(), lr=0.1), **kwargs)
    trainer.recorder = Recorder()
    trainer.register_hooks([trainer.recorder])
    return trainer


TOY_CONFIG = Path(__file__).with_name("toy_config.py")


def toy_config(output_dir, *overrides: str):
    """Load toy_config.py as train_net.py does, for the CPU."""
    Path(output_dir).mkdir(exist_ok=True)
    return load_config(str(TOY_CONFIG), [f"train.output_dir='{output_dir}'", "train.device=cpu", *overrides])


def run_toy(cfg, resume: bool = False):
    torch.manual_seed(0)  # as `setup` does
    do_train(argparse.Namespace(resume=resume), cfg)


def read_lines(output_dir) -> list[dict]:
    """The lines of metrics.json without times."""
    lines = (json.loads(line) for line in (Path(output_dir) / "metrics.json").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def read_metrics(output_dir, name: str = "total_loss") -> dict[int, float]:
    """Values by iteration. Losses are medians of the last 20: compare only runs with the same start."""
    lines = (json.loads(line) for line in (Path(output_dir) / "metrics.json").read_text().splitlines())
    return {line["iteration"]: line[name] for line in lines if name in line}
