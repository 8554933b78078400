"""How the operators are built, found and loaded; each build in a copy, so that what is installed stays as it is."""

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

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "projects/CLoCKDistill"
OPERATOR_TESTS = "tests/layers/test_ms_deform_attn.py"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is here")


@pytest.fixture
def copy(tmp_path):
    """The repository as a clone has it, without anything built."""
    shutil.copytree(
        ROOT / PACKAGE / "clockdistill",
        tmp_path / PACKAGE / "clockdistill",
        ignore=shutil.ignore_patterns("_C.*", "__*__"),
    )
    for source in (ROOT / PACKAGE / "clockdistill").glob("__init__.py"):
        shutil.copy(source, tmp_path / PACKAGE / "clockdistill")
    shutil.copy(ROOT / "setup.py", tmp_path)
    return tmp_path


def build(copy, **environment):
    """Build as pip does; the record that is left."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=copy, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return json.loads((copy / PACKAGE / "clockdistill" / "_C.json").read_text())


def run_operator_tests(copy, *arguments, **environment):
    command = [sys.executable, "-m", "pytest", "-o", f"pythonpath={copy / PACKAGE}", OPERATOR_TESTS, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def describe(copy):
    """What a fresh interpreter with the copied package says of the CPU."""
    code = "from clockdistill.layers import extension; print(extension.describe('cpu'))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = os.environ | {"PYTHONPATH": str(copy / PACKAGE)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_operators_pass_the_same_tests_where_none_was_built(copy):
    assert describe(copy).startswith("pure PyTorch, since no operators are compiled (`pip install")
    result = run_operator_tests(copy)
    assert result.returncode == 0, result.stdout[-3000:]


def test_a_compiler_that_fails_leaves_pure_pytorch_and_the_reason(copy):
    library = copy / PACKAGE / "clockdistill" / "_C.so"
    library.touch()
    record = build(copy, CXX="false", CC="false")
    assert not record["cpu"]
    assert "did not compile" in record["problem"]
    assert "pip install -v -e ." in record["problem"]
    assert not library.exists()
    assert describe(copy) == f"pure PyTorch, since {record['problem']}"


def test_a_library_for_another_torch_is_not_loaded(copy):
    package = copy / PACKAGE / "clockdistill"
    (package / "_C.so").touch()
    (package / "_C.json").write_text(json.dumps({"torch": "2.0.0", "cpu": True, "cuda": None, "problem": ""}))
    assert describe(copy).startswith(
        f"pure PyTorch, since they were compiled for torch 2.0.0 and this is {torch.__version__}"
    )


def test_a_library_that_does_not_load_is_named(copy):
    package = copy / PACKAGE / "clockdistill"
    (package / "_C.so").write_text("no library")
    record = {"torch": torch.__version__, "cpu": True, "cuda": None, "problem": ""}
    (package / "_C.json").write_text(json.dumps(record))
    assert "the compiled ones do not load: " in describe(copy)


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers' libraries are preloaded as Linux does it")
def test_sanitizers_find_nothing(copy):
    """Address and undefined-behaviour sanitizers over every shape, place and type of the operator's own tests."""
    libraries = [
        subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(os.path.isabs(library) for library in libraries):
        pytest.skip("the compiler has no sanitizers")
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-sanitize=vptr -g1"
    record = build(copy, CFLAGS=flags, LDFLAGS="-fsanitize=address,undefined", TORCH_CUDA_ARCH_LIST="")
    assert record["cpu"]
    environment = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", "CUDA_VISIBLE_DEVICES": ""}
    result = run_operator_tests(copy, "-k", "cpu and not compiles and not exports and not opcheck", **environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


@pytest.mark.skipif(
    not torch.version.cuda or not cpp_extension.CUDA_HOME or not Path(cpp_extension.CUDA_HOME, "bin", "nvcc").exists(),
    reason="no CUDA toolkit is here",
)
def test_cuda_sources_compile_for_sm_80_and_sm_90(tmp_path):
    """They compile; without a GPU nothing here runs them."""
    source = ROOT / PACKAGE / "clockdistill/layers/csrc/ms_deform_attn_cuda.cu"
    includes = [f"-I{path}" for path in cpp_extension.include_paths("cuda")]
    architectures = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (80, 90)]
    nvcc = Path(cpp_extension.CUDA_HOME, "bin", "nvcc")
    # without optimisation of the device's code: whether it compiles does not depend on it, and it takes half the time
    flags = ["-std=c++17", "-Xcompiler=-fPIC", *cpp_extension.COMMON_NVCC_FLAGS, *architectures, "--threads=2", "-c"]
    result = subprocess.run(
        [nvcc, *flags, *includes, source, "-o", tmp_path / "cuda.o"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_report_and_the_log_say_what_serves(device, caplog):
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
def test_kernels_of_another_gpu_are_known(architectures, capability, runs):
    assert extension.serves_gpu(architectures, capability) == runs


def test_kernels_of_another_gpu_end_the_run_at_its_start(monkeypatch):
    monkeypatch.setattr(extension, "has_kernel", lambda device_type: True)
    monkeypatch.setattr(extension, "read_record", lambda: {"architectures": "8.0"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(
        UserError, match=r"for GPUs of compute capability 8\.0, and this one has 9\.0: run `TORCH_CUDA_AR"
    ):
        extension.log_backend("cuda")
