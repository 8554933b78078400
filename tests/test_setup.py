"""setup.py in a copy of the sources, with a compiler that only creates the requested files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "projects/CLoCKDistill/clockdistill"
COMPILER = '#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" = -o ] && touch "$2"; shift; done\n'


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch")
def test_operators_are_compiled_for_the_cpu_where_nvcc_fails(tmp_path):
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / PACKAGE / "layers" / "csrc", tmp_path / PACKAGE / "layers" / "csrc")
    shutil.copy(ROOT / PACKAGE / "__init__.py", tmp_path / PACKAGE)
    compiler, nvcc = tmp_path / "bin" / "c++", tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    for program, script in (compiler, COMPILER), (nvcc, "#!/bin/sh\nexit 1\n"):
        program.write_text(script)
        program.chmod(0o755)
    environment = dict(CUDA_HOME=str(tmp_path), TORCH_CUDA_ARCH_LIST="9.0", CC=str(compiler), CXX=str(compiler))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    record = json.loads((tmp_path / PACKAGE / "_C.json").read_text())
    assert (record["cpu"], record["cuda"]) == (True, None)
    assert record["problem"].startswith("they did not compile")
    assert (tmp_path / PACKAGE / "_C.so").exists()
