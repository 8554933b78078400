"""The CUDA kernels, compiled for the CPU by a C++ compiler. cuda_emulation/cuda_emulation.h stands for the GPU."""

import hashlib
import json
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import pad
from torch.testing import assert_close
from torch.utils import cpp_extension

from clockdistill.layers.ms_deform_attn import by_grid_sample
from helpers.operators import (
    COMPILER,
    PACKAGE,
    ROOT,
    SANITIZE,
    SOURCES,
    copy_package,
    needs_compiler,
    needs_linux,
    run_sanitized_operator_tests,
)

EMULATION = ROOT / "tests/layers/cuda_emulation"
KERNELS = SOURCES / "ms_deform_attn_cuda_kernel.cuh"
MAX_LEVELS = 16
SHAPES = ((5, 7), (3, 4), (2, 1))
RACE = 66  # the thread sanitizer's exit status

pytestmark = [needs_compiler, needs_linux]


def compile_cached(source, changed, text, output, *options):
    """Compile a file of `EMULATION`, or return the result of an earlier run with the same files, options and torch.

    Args:
        changed: name of a file of `SOURCES` that the text replaces.
    """
    command = [COMPILER, "-std=c++20", "-Wno-unknown-pragmas", *options]
    key = hashlib.sha256(f"{command}{torch.__version__}{text}".encode())
    for path in sorted([*EMULATION.iterdir(), *SOURCES.iterdir()]):
        key.update(path.read_bytes())
    folder = ROOT / "build" / "cuda_emulation" / key.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / output).exists():
        # another process may compile the same
        with tempfile.TemporaryDirectory(dir=folder) as own:
            Path(own, changed).write_text(text, encoding="utf-8")
            includes = [f"-I{path}" for path in (own, EMULATION, SOURCES)]
            compiled = Path(own, output)
            result = subprocess.run(
                [*command, *includes, EMULATION / source, "-o", compiled], capture_output=True, text=True
            )
            assert result.returncode == 0, result.stderr[-3000:]
            compiled.rename(folder / output)
    return folder / output


def compile_operator():
    """Compile kernels and host code as operators for the CPU."""
    name = "ms_deform_attn_cuda.cu"
    text = (SOURCES / name).read_text(encoding="utf-8")
    text = re.sub("#include <c10/cuda/.*>", "", text)
    text = re.sub(r"(\w+<[\w, ]+>)<<<(.+), BLOCK, 0, stream>>>\(", r"cuda_emulation::launch(\1, \2, BLOCK, ", text)
    text = re.sub(r"const auto stream = .*|C10_CUDA_KERNEL_LAUNCH_CHECK\(\);", "", text)
    text = text.replace("(clockdistill, CUDA, m)", "(clockdistill, CPU, m)")
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-lc10", "-ltorch_cpu"]
    options = ["-O1", "-fPIC", "-shared", *SANITIZE.split(), *includes, *libraries]
    return compile_cached("operator.cpp", name, text, "_C.so", *options)


def test_emulated_operator_passes_the_operator_tests(tmp_path):
    """Run the operator tests with the address and undefined-behavior sanitizers."""
    copy_package(tmp_path)
    library = tmp_path / PACKAGE / "clockdistill" / "_C.so"
    library.symlink_to(compile_operator())
    record = {"torch": torch.__version__, "cpu": True, "cuda": None, "problem": ""}
    library.with_suffix(".json").write_text(json.dumps(record))
    # gradcheck takes long; it is enough with all levels
    slow = "compiles or exports or opcheck or (gradcheck and (cpu-1 or cpu-2 or cpu-3 or cpu-4))"
    errors = run_sanitized_operator_tests(tmp_path, f"cpu and not ({slow})")
    assert re.search(r"^[1-9]\d* emulated launches", errors, re.MULTILINE), "the tests ran without the emulation"


def draw(D):
    """Draw float32 arguments, some points outside the map, for two blocks, the second of them incomplete."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor(SHAPES).prod(1)
    shape = (1, 70, 2, len(SHAPES), 3)
    value = torch.randn(1, int(sizes.sum()), 2, D, generator=generator)
    locations = torch.rand(*shape, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(shape, generator=generator)
    grad = torch.randn(1, 70, 2 * D, generator=generator)
    return (value, torch.tensor(SHAPES), sizes.cumsum(0) - sizes, locations, weights), grad


def run_kernels(args, grad, *, order=0, scale=0.0, change=None):
    """Run the kernels under the thread sanitizer, after a change to their source.

    Args:
        order: seed of the order of warps.
        scale: fixed-point representation of 1, or 0 for sums in floating point.
        change: old and new text.
    """
    value, shapes, starts, locations, weights = args
    text = KERNELS.read_text(encoding="utf-8")
    if change:
        assert text.count(change[0]) == 1
        text = text.replace(*change)
    program = compile_cached("kernels.cpp", KERNELS.name, text, "kernels", "-O1", "-g1", "-fsanitize=thread")
    sizes = [*value.shape, locations.shape[1], *locations.shape[3:5]]
    levels = [pad(x, (0, MAX_LEVELS - len(SHAPES))) for x in (*shapes.int().unbind(1), starts.int())]
    floats = (torch.tensor(scale, dtype=torch.float64), value, locations, weights, grad)
    arguments = b"".join(x.numpy().tobytes() for x in (torch.tensor(sizes), *levels, *floats))
    return subprocess.run([program, str(order)], input=arguments, capture_output=True)


def parse(data, args, grad, scale=0.0):
    """Return output and gradients of value, locations and weights from the program's output."""
    results = []
    for like, dtype in ((grad, "f4"), (args[0], "i8" if scale else "f4"), (args[3], "f4"), (args[4], "f4")):
        array = np.frombuffer(data, dtype, like.numel())
        data = data[array.nbytes :]
        results.append(torch.from_numpy(array.copy()).view(like.shape))
    if scale:
        results[1] = (results[1] / scale).float()
    assert not data
    return results


def expected(args, grad):
    leaves = [args[i].clone().requires_grad_() for i in (0, 3, 4)]
    output = by_grid_sample(leaves[0], args[1], args[2], *leaves[1:])
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


@pytest.mark.parametrize("D", [3, 32])  # without and with packs
def test_kernels_have_no_races(D):
    args, grad = draw(D)
    result = run_kernels(args, grad)
    assert result.returncode == 0, result.stderr.decode()[:3000]
    assert_close(parse(result.stdout, args, grad), expected(args, grad))


def test_only_fixed_point_sums_do_not_depend_on_the_order():
    args, grad = draw(32)
    for scale, same in ((2.0**40, True), (0.0, False)):
        results = [run_kernels(args, grad, order=order, scale=scale).stdout for order in (0, 1)]
        assert (results[0] == results[1]) == same
        assert_close(parse(results[1], args, grad, scale), expected(args, grad))


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (("load(values, cells, head_values + c)", "load(values, cells, head_values)"), 0, ""),
        (("atomicAdd(cell + k, share[k]);", "cell[k] += share[k];"), RACE, "data race"),
        (("  A sum[WIDTH] = {};", "if (!at.exists) return; A sum[WIDTH] = {};"), 1, "did not take part in a shuffle"),
    ],
    ids=["wrong index", "race", "missing lane"],
)
def test_emulation_finds(change, status, message):
    args, grad = draw(3)
    result = run_kernels(args, grad, change=change)
    assert result.returncode == status
    assert message in result.stderr.decode()
    if status == 0:
        with pytest.raises(AssertionError):
            assert_close(parse(result.stdout, args, grad), expected(args, grad))
