"""Copies of the package with operators of their own, which keep the installed ones untouched."""

import os
import shutil
import subprocess
import sys

import pytest

from .models import CONFIGS

ROOT = CONFIGS.parents[2]
PACKAGE = "projects/CLoCKDistill"
SOURCES = ROOT / PACKAGE / "clockdistill/layers/csrc"
OPERATOR_TESTS = "tests/layers/test_ms_deform_attn.py"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-sanitize=vptr -g1"

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="preloading the sanitizers is specific to Linux")


def copy_package(folder):
    """Copy the package without build outputs."""
    shutil.copytree(
        ROOT / PACKAGE / "clockdistill",
        folder / PACKAGE / "clockdistill",
        ignore=shutil.ignore_patterns("_C.*", "__pycache__"),
    )


def run_operator_tests(copy, *arguments, **environment):
    command = [sys.executable, "-m", "pytest", "-o", f"pythonpath={copy / PACKAGE}", OPERATOR_TESTS, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def run_sanitized_operator_tests(copy, selection):
    """Run the operator tests on a library built with `SANITIZE`; return what they print to stderr."""
    libraries = [
        subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(os.path.isabs(library) for library in libraries):
        pytest.skip("no sanitizers for this compiler")
    environment = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", "CUDA_VISIBLE_DEVICES": ""}
    result = run_operator_tests(copy, "-k", selection, **environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stderr
