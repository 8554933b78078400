"""The compiled operators: where they are, whether they serve, and why not."""

import json
import logging
import re
from functools import cache
from pathlib import Path

import torch

from ..errors import UserError

LIBRARY = Path(__file__).resolve().parent.parent / "_C.so"
# written by setup.py beside the library, or in its place where it could not be built
RECORD = LIBRARY.with_suffix(".json")
BUILD = "`pip install --no-build-isolation -e .` in the folder of setup.py builds them"

logger = logging.getLogger(__name__)


def read_record() -> dict:
    """What setup.py built and for what; empty where it never did."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


@cache
def load() -> str:
    """Load the library, once; '' on success, else why there is none."""
    record = read_record()
    if not LIBRARY.exists():
        return record.get("problem") or f"no operators are compiled ({BUILD})"
    # ATen's classes differ between versions: a library for another one may load and crash later
    if record.get("torch") != torch.__version__:
        return f"they were compiled for torch {record.get('torch')} and this is {torch.__version__} ({BUILD})"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"the compiled ones do not load: {error} ({BUILD})"
    return ""


def has_kernel(device_type: str) -> bool:
    """Whether compiled operators serve tensors on "cpu" or "cuda"."""
    return not load() and bool(read_record().get(device_type))


def describe(device_type: str) -> str:
    """One line: what serves the operators on a device, and where nothing compiled does, why."""
    if has_kernel(device_type):
        detail = (
            torch.ops.clockdistill.cpu_instruction_set() if device_type == "cpu" else read_record()["architectures"]
        )
        return f"compiled ({detail})"
    return f"pure PyTorch, since {load() or read_record()['problem']}"


def serves_gpu(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code for architectures such as "8.0 9.0+PTX" runs on a GPU of a compute capability.

    Machine code runs on later minor versions of its own major one, PTX on everything later.
    """
    for name in re.split(r"[ ;]+", architectures.strip()):
        version = re.match(r"(\d+)\.(\d+)", name)
        if version is None:  # a name such as "Hopper", which torch alone understands
            return True
        major, minor = map(int, version.groups())
        if (major, minor) <= capability and (major == capability[0] or name.endswith("+PTX")):
            return True
    return False


def log_backend(device_type: str) -> None:
    """One line in the log: which of the three serves this run.

    Raises:
        UserError: the CUDA kernels were compiled for other GPUs than this machine's.
    """
    if device_type == "cuda" and has_kernel("cuda") and torch.cuda.is_available():
        built_for, capability = read_record()["architectures"], torch.cuda.get_device_capability()
        if not serves_gpu(built_for, capability):
            wanted = "{}.{}".format(*capability)
            raise UserError(
                f"the operators were compiled for GPUs of compute capability {built_for}, and this one has {wanted}: "
                f"run `TORCH_CUDA_ARCH_LIST={wanted} pip install --no-build-isolation -e .` in the folder of setup.py"
            )
    name = {"cpu": "CPU", "cuda": "CUDA"}[device_type]
    logger.info("Multi-scale deformable attention on %s: %s.", name, describe(device_type))
