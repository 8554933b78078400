"""What a detector costs: parameters and time."""

import statistics
import time

import torch
from torch import nn


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def latency(models: dict[str, nn.Module], inputs: list[dict], rounds: int = 5) -> dict[str, float]:
    """Median milliseconds that each model takes for one image, from the image in memory to the instances.

    The models take turns on every image, so that whatever else slows the machine down slows all of them alike.

    Args:
        models: Detectron2 meta-architectures in evaluation mode, by name.
        inputs: images as their test loader gives them; each is a batch of its own.
        rounds: how often every model sees every image; a round before them that warms up does not count.
    """
    times = {name: [] for name in models}
    for i in range(rounds + 1):
        for x in inputs:
            for name, model in models.items():
                _synchronize()
                start = time.perf_counter()
                model([x])
                _synchronize()
                if i > 0:
                    times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
