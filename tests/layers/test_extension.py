"""Building and loading of the operators. Builds run in a copy, to keep the installed one untouched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from clockdistill.collect_env import operators_info
from clockdistill.errors import UserError
from clockdistill.layers import extension
from helpers.operators import (
    PACKAGE,
    ROOT,
    SANITIZE,
    SOURCES,
    copy_package,
    needs_compiler,
    needs_linux,
    run_operator_tests,
    run_sanitized_operator_tests,
)


@pytest.fixture
def copy(tmp_path):
    copy_package(tmp_path)
    shutil.copy(ROOT / "setup.py", tmp_path)
    return tmp_path


def build(copy, **environment):
    """Build as pip does and return the build record."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=copy, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return json.loads((copy / PACKAGE / "clockdistill" / "_C.json").read_text())


def describe(copy):
    """Return the description of the CPU operators in a fresh interpreter with the copied package."""
    code = "from clockdistill.layers import extension; print(extension.describe('cpu'))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = os.environ | {"PYTHONPATH": str(copy / PACKAGE)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_pure_pytorch_passes_the_operator_tests(copy):
    assert describe(copy).startswith("pure PyTorch: the operators are not compiled (run `pip install")
    result = run_operator_tests(copy)
    assert result.returncode == 0, result.stdout[-3000:]


def test_failed_build_falls_back_to_pure_pytorch_with_the_reason(copy):
    library = copy / PACKAGE / "clockdistill" / "_C.so"
    library.touch()
    record = build(copy, CXX="false", CC="false")
    assert not record["cpu"]
    assert "did not compile" in record["problem"]
    assert "pip install -v -e ." in record["problem"]
    assert not library.exists()
    assert describe(copy) == f"pure PyTorch: {record['problem']}"


def test_library_for_another_torch_is_not_loaded(copy):
    package = copy / PACKAGE / "clockdistill"
    (package / "_C.so").touch()
    (package / "_C.json").write_text(json.dumps({"torch": "2.0.0", "cpu": True, "cuda": None, "problem": ""}))
    assert describe(copy).startswith(
        f"pure PyTorch: the operators were compiled for torch 2.0.0, not {torch.__version__}"
    )


def test_broken_library_is_reported(copy):
    package = copy / PACKAGE / "clockdistill"
    (package / "_C.so").write_text("not a library")
    record = {"torch": torch.__version__, "cpu": True, "cuda": None, "problem": ""}
    (package / "_C.json").write_text(json.dumps(record))
    assert "the compiled operators failed to load: " in describe(copy)


@needs_compiler
@needs_linux
def test_sanitizers_find_nothing(copy):
    """Run the operator tests with the address and undefined-behavior sanitizers.

    The C++ library is linked statically, as some compilers do by default. If its symbols were visible, raising an
    error could crash.
    """
    flags = "-fsanitize=address,undefined -static-libstdc++"
    record = build(copy, CFLAGS=SANITIZE, LDFLAGS=flags, TORCH_CUDA_ARCH_LIST="")
    assert record["cpu"]
    library = copy / PACKAGE / "clockdistill" / "_C.so"
    symbols = subprocess.run(["nm", "-DC", library], capture_output=True, text=True, check=True).stdout
    assert "clockdistill::" in symbols
    assert "std::locale::" not in symbols  # neither visible nor taken from a dynamic library
    run_sanitized_operator_tests(copy, "cpu and not compiles and not exports and not opcheck")


@pytest.mark.skipif(
    not torch.version.cuda or not cpp_extension.CUDA_HOME or not Path(cpp_extension.CUDA_HOME, "bin", "nvcc").exists(),
    reason="no CUDA toolkit",
)
def test_cuda_sources_compile_for_sm_80_and_sm_90(tmp_path):
    """Compile only: this does not need a GPU."""
    source = SOURCES / "ms_deform_attn_cuda.cu"
    includes = [f"-I{path}" for path in cpp_extension.include_paths("cuda")]
    architectures = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (80, 90)]
    nvcc = Path(cpp_extension.CUDA_HOME, "bin", "nvcc")
    flags = ["-std=c++17", "-Xcompiler=-fPIC", *cpp_extension.COMMON_NVCC_FLAGS, *architectures, "--threads=2", "-c"]
    result = subprocess.run(
        [nvcc, *flags, *includes, source, "-o", tmp_path / "cuda.o"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_implementation_is_reported_and_logged(device, caplog):
    assert extension.describe(device) in operators_info()
    caplog.set_level("INFO", logger=extension.logger.name)
    extension.log_backend(device)
    assert caplog.messages == [f"Multi-scale deformable attention on {device.upper()}: {extension.describe(device)}."]


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("9.0", (9, 0), True),
        ("8.0", (8, 6), True),
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("7.5;8.0 9.0a", (9, 0), True),
        ("10.0", (9, 0), False),
        ("Hopper", (9, 0), True),
    ],
)
def test_supports_gpu(architectures, capability, runs):
    assert extension.supports_gpu(architectures, capability) == runs


def test_kernels_for_another_gpu_are_an_error(monkeypatch):
    monkeypatch.setattr(extension, "has_kernel", lambda device_type: True)
    monkeypatch.setattr(extension, "read_record", lambda: {"architectures": "8.0"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(UserError, match=r"for compute capability 8\.0, but this GPU has 9\.0: run `TORCH_CUDA_AR"):
        extension.log_backend("cuda")
