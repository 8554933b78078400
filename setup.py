"""Install the package `clockdistill` and compile its operators. `make env` installs everything else that it needs.

The operators are compiled for the CPU, and for CUDA where nvcc and either a GPU or TORCH_CUDA_ARCH_LIST are present.
Where they cannot be compiled, the package is installed without them and falls back to pure PyTorch;
`python -m clockdistill.collect_env` shows the reason.
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

# pip's build isolation hides the installed packages, but the operators must be compiled against the installed torch.
if importlib.util.find_spec("torch") is None:
    sys.path.append(sysconfig.get_path("purelib"))


def version() -> str:
    source = (ROOT / PROJECT / "clockdistill" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE).group(1)


def operators() -> dict:
    """Return the arguments of `setup` that compile the operators; none without torch."""
    if importlib.util.find_spec("torch") is None:
        print("clockdistill: torch is not installed, skipping the compiled operators")
        return {}
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

    def extension(with_cuda: bool):
        factory, patterns = (CUDAExtension, ("*.cpp", "*.cu")) if with_cuda else (CppExtension, ("*.cpp",))
        return factory(
            LIBRARY,
            sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / SOURCES).glob(pattern)),
            depends=sorted(map(str, (ROOT / SOURCES).glob("*.*h"))),
            # No -std flag: torch's headers need the standard that torch itself sets.
            extra_compile_args={"cxx": ["-O3", "-fopenmp"], "nvcc": ["-O3"]},
            # Some compilers link the C++ library statically. Mixed with torch's copy of it, errors can end in a crash.
            extra_link_args=["-Wl,--exclude-libs,ALL"],
        )

    def why_no_cuda() -> str:
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is built without CUDA"
        if not torch.cuda.is_available() and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            return "there was no GPU at build time and TORCH_CUDA_ARCH_LIST was not set: rebuild with either of them"
        if CUDA_HOME is None or not Path(CUDA_HOME, "bin", "nvcc").exists():
            return f"nvcc was not found: install the CUDA {torch.version.cuda} toolkit or set CUDA_HOME, and rebuild"
        return ""

    def architectures() -> str:
        capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        present = " ".join(f"{major}.{minor}" for major, minor in sorted(capabilities))
        return os.environ.get("TORCH_CUDA_ARCH_LIST") or present

    class BuildOperators(BuildExtension):
        """Compile with CUDA, else without it, else skip the operators; record the result next to the library."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, no_python_abi_suffix=True, **kwargs)

        def run(self):
            no_cuda, no_cpu = why_no_cuda(), ""
            if not no_cuda:
                no_cuda = self.try_build(with_cuda=True)
            if no_cuda:
                print(f"clockdistill: no CUDA operators, because {no_cuda}")
                no_cpu = self.try_build(with_cuda=False)
            library = Path(self.get_ext_fullpath(LIBRARY))
            if no_cpu:
                print(f"clockdistill: no compiled operators, because {no_cpu}")
                # An old library would not match the sources, and setuptools must not look for a new one.
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

        def try_build(self, with_cuda: bool) -> str:
            """Return "" on success, else the reason for the failure."""
            # Update the extension in place: setuptools has set attributes on it that a new one would lack.
            vars(self.extensions[0]).update(vars(extension(with_cuda)))
            inplace, compiler = self.inplace, self.compiler
            try:
                super().run()
            except (Exception, SystemExit) as error:
                # setuptools changes both during the build, and a second one needs them as they were.
                self.inplace, self.compiler = inplace, compiler
                return f"they did not compile ({error}): run `pip install -v -e .` to see the compiler's messages"
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
    # Not listed: Detectron2, which is not on PyPI under its own name, and OpenCV, because four packages provide its
    # module and listing one of them would overwrite another. `make env` installs both.
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
    extras_require={"export": ["onnx", "onnxruntime", "openvino"]},
    **operators(),
)
