"""`python -m clockdistill.collect_env`: Detectron2's report on the environment and the state of the operators."""

import torch
from detectron2.utils.collect_env import collect_env_info
from tabulate import tabulate

from . import __version__
from .layers import extension


def operators_info() -> str:
    """A table of the versions and of the operators' implementation on each device."""
    record = extension.read_record()
    rows = [
        ("clockdistill", __version__),
        ("operators on the CPU", extension.describe("cpu")),
        ("operators on a GPU", extension.describe("cuda")),
        ("compiled library", extension.LIBRARY if extension.LIBRARY.exists() else "none"),
        ("compiled for", f"torch {record['torch']}, CUDA {record['cuda']}" if record else "never compiled"),
        ("GPUs", torch.cuda.device_count()),
    ]
    return tabulate(rows)


if __name__ == "__main__":
    print(collect_env_info())
    print(operators_info())
