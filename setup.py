"""Installs the package `clockdistill`; `make env` installs everything it needs at versions that are known to work."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PROJECT = "projects/CLoCKDistill"
ROOT = Path(__file__).resolve().parent


def version() -> str:
    source = (ROOT / PROJECT / "clockdistill" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE).group(1)


setup(
    name="clockdistill",
    version=version(),
    description="Location-and-context-aware knowledge distillation for detection transformers, on Detectron2",
    license="Apache-2.0",
    package_dir={"": PROJECT},
    packages=find_packages(PROJECT),
    python_requires=">=3.10",
    # Two needs cannot be named here. Detectron2 is not on PyPI under its own name. OpenCV comes as four packages with
    # one module: naming one of them would overwrite the one that is already there. `make env` sees to both.
    install_requires=[
        "torch>=2.4",
        "torchvision",
        "numpy",
        "scipy",
        "pillow",
        "pycocotools>=2.0.6",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7,<0.1.10",
        "omegaconf>=2.1,<2.4",
        "hydra-core>=1.1",
        "tqdm",
        "matplotlib",
        "tensorboard",
    ],
)
