"""Installs the package `clockdistill` with its compiled operators; `make env` installs everything else it needs.

The operators are built for the CPU, and for CUDA too where nvcc is found and either a GPU or TORCH_CUDA_ARCH_LIST says
for which architectures. Where they cannot be built, the package is installed without them and does the same in pure
PyTorch; `python -m clockdistill.collect_env` says why.
"""

import importlib.util
import json
import os
import re
import sys
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup

PROJECT = "projects/CLoCKDistill"
ROOT = Path(__file__).resolve().parent
SOURCES = Path(PROJECT, "clockdistill", "layers", "csrc")
LIBRARY = "clockdistill._C"

# pip hides the packages of the environment that it installs into, and the operators are built for its torch
if importlib.util.find_spec("torch") is None:
    sys.path.append(sysconfig.get_path("purelib"))


def version() -> str:
    source = (ROOT / PROJECT / "clockdistill" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE).group(1)


def operators() -> dict:
    """Arguments of `setup` that build the operators; none without torch."""
    if importlib.util.find_spec("torch") is None:
        print("clockdistill: torch is not installed, so the compiled operators are left out")
        return {}
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

    def extension(with_cuda: bool):
        make, patterns = (CUDAExtension, ("*.cpp", "*.cu")) if with_cuda else (CppExtension, ("*.cpp",))
        found = make(
            LIBRARY,
            sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / SOURCES).glob(pattern)),
            # without an own flag for the standard, torch's choice, which its headers need
            extra_compile_args={"cxx": ["-O3", "-fopenmp"], "nvcc": ["-O3"]},
        )
        found.depends = sorted(map(str, (ROOT / SOURCES).glob("*.h")))
        return found

    def why_no_cuda() -> str:
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is built without CUDA"
        if not torch.cuda.is_available() and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            return "no GPU was there at the build, and TORCH_CUDA_ARCH_LIST named no architectures"
        if CUDA_HOME is None or not Path(CUDA_HOME, "bin", "nvcc").exists():
            return f"no nvcc was found at the build: install the toolkit of CUDA {torch.version.cuda} or set CUDA_HOME"
        return ""

    def architectures() -> str:
        devices = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        found = " ".join(f"{major}.{minor}" for major, minor in sorted(devices))
        return os.environ.get("TORCH_CUDA_ARCH_LIST") or found

    class BuildOperators(BuildExtension):
        """Builds with CUDA, else without, else not at all; a record beside the library says what, and why not more."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, no_python_abi_suffix=True, **kwargs)

        def run(self):
            no_cuda, no_cpu = why_no_cuda(), ""
            if not no_cuda:
                no_cuda = self.attempt(with_cuda=True)
            if no_cuda:
                print(f"clockdistill: no operators for CUDA, since {no_cuda}")
                no_cpu = self.attempt(with_cuda=False)
            library = Path(self.get_ext_fullpath(LIBRARY))
            if no_cpu:
                print(f"clockdistill: no compiled operators, since {no_cpu}")
                # an older library would not fit the sources, and a missing one must not be packed
                library.unlink(missing_ok=True)
                self.extensions = []
            record = {
                "torch": torch.__version__,
                "cpu": not no_cpu,
                "cuda": None if no_cuda else torch.version.cuda,
                "architectures": None if no_cuda else architectures(),
                "problem": no_cpu or no_cuda,
            }
            library.parent.mkdir(parents=True, exist_ok=True)
            library.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

        def attempt(self, with_cuda: bool) -> str:
            """Build; why that failed, or ''."""
            # setuptools has put marks of its own on the extension, so that another cannot take its place
            vars(self.extensions[0]).update(vars(extension(with_cuda)))
            inplace = self.inplace
            try:
                super().run()
            except (Exception, SystemExit) as error:
                self.inplace = inplace  # setuptools changes it on the way
                return f"they did not compile ({error}): `pip install -v -e .` shows the compiler's messages"
            return ""

    return {"ext_modules": [extension(not why_no_cuda())], "cmdclass": {"build_ext": BuildOperators}}


setup(
    name="clockdistill",
    version=version(),
    description="Location-and-context-aware knowledge distillation for detection transformers, on Detectron2",
    license="Apache-2.0",
    package_dir={"": PROJECT},
    packages=find_packages(PROJECT),
    package_data={"clockdistill": ["layers/csrc/*"]},
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
    **operators(),
)
