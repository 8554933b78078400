"""Loading and diagnostics of the compiled operators."""

import json
import logging
import re
from functools import cache
from pathlib import Path

import torch

from ..errors import UserError

LIBRARY = Path(__file__).resolve().parent.parent / "_C.so"
# written by setup.py, whether or not the library could be built
RECORD = LIBRARY.with_suffix(".json")
BUILD_HINT = "run `pip install --no-build-isolation -e .` in the folder of setup.py"

logger = logging.getLogger(__name__)


def read_record() -> dict:
    """Return the build record of setup.py, or an empty one if there was no build."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


@cache
def load() -> str:
    """Load the library once; return '' on success, else the reason for the failure."""
    record = read_record()
    if not LIBRARY.exists():
        return record.get("problem") or f"the operators are not compiled ({BUILD_HINT})"
    # the ABI differs between versions of torch: a mismatched library may load, then crash
    if record.get("torch") != torch.__version__:
        return f"the operators were compiled for torch {record.get('torch')}, not {torch.__version__} ({BUILD_HINT})"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"the compiled operators failed to load: {error} ({BUILD_HINT})"
    return ""


def has_kernel(device_type: str) -> bool:
    """Whether there are compiled operators for "cpu" or "cuda"."""
    return not load() and bool(read_record().get(device_type))


def describe(device_type: str) -> str:
    """Describe the implementation used on a device in one line, with the reason if it is not compiled."""
    if has_kernel(device_type):
        detail = (
            torch.ops.clockdistill.cpu_instruction_set() if device_type == "cpu" else read_record()["architectures"]
        )
        return f"compiled ({detail})"
    return f"pure PyTorch: {load() or read_record()['problem']}"


def supports_gpu(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code compiled for `architectures`, such as "8.0 9.0+PTX", runs on a GPU of this compute capability.

    Machine code also runs on later minor versions of the same major version, PTX on any later version.
    """
    for name in re.split(r"[ ;]+", architectures.strip()):
        version = re.match(r"(\d+)\.(\d+)", name)
        if version is None:  # a name such as "Hopper", which only torch can interpret
            return True
        major, minor = map(int, version.groups())
        if (major, minor) <= capability and (major == capability[0] or name.endswith("+PTX")):
            return True
    return False


def log_backend(device_type: str) -> None:
    """Log which implementation of the operators a run on this device uses.

    Raises:
        UserError: the CUDA kernels were not compiled for this GPU.
    """
    if device_type == "cuda" and has_kernel("cuda") and torch.cuda.is_available():
        built_for, capability = read_record()["architectures"], torch.cuda.get_device_capability()
        if not supports_gpu(built_for, capability):
            version = "{}.{}".format(*capability)
            raise UserError(
                f"the operators were compiled for compute capability {built_for}, but this GPU has {version}: "
                f"run `TORCH_CUDA_ARCH_LIST={version} pip install --no-build-isolation -e .` in the folder of setup.py"
            )
    logger.info("Multi-scale deformable attention on %s: %s.", device_type.upper(), describe(device_type))
