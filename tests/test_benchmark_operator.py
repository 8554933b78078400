"""The GPU's part of the benchmark of the operator, on the CPU with small arguments."""

import math
import timeit

import pytest
import torch

import benchmark_operator


def test_gpu_benchmark(monkeypatch):
    names = []

    def seconds(runs, rounds):
        names.append(len(runs))
        return [timeit.timeit(run, number=rounds) for run in runs]

    monkeypatch.setattr(benchmark_operator, "LEVELS", ((4, 6), (2, 3), (2, 2), (1, 1)))
    monkeypatch.setattr(benchmark_operator, "gpu_seconds", seconds)
    monkeypatch.setattr(benchmark_operator, "copy_bandwidth", lambda rounds: 1e12)
    monkeypatch.setattr(benchmark_operator, "other_kernels", lambda: {"other": benchmark_operator.by_grid_sample})
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    rows, headers = benchmark_operator.gpu_benchmark(rounds=1)
    assert len(rows) == 8
    assert names == [3] * 4 + [2] * 4
    assert {len(row) for row in rows} == {len(headers)}
    assert rows[0][0] == "forward, 35 queries, float32"
    assert [math.isnan(row[3]) for row in rows] == [False] * 4 + [True] * 4


def test_bytes_moved():
    """A value of 2 x 256 channels, one query with 8 heads of 16 points, and one row of output."""
    value, points = 2 * 8 * 32, 8 * 16
    output = 8 * 32
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        args = [torch.empty(1, 2, 8, 32, dtype=dtype), None, None, torch.empty(1, 1, 8, 4, 4, 2)]
        args.append(torch.empty(1, 1, 8, 4, 4, dtype=dtype))
        inputs = value * size + points * 2 * 4 + points * size
        assert benchmark_operator.bytes_moved(args, backward=False) == inputs + output * size
        gradients = value * 4 + points * 2 * 4 + points * size
        both = 2 * (inputs + output * size) + gradients
        assert benchmark_operator.bytes_moved(args, backward=True) == both


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the error on a machine without a GPU")
def test_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark_operator.py", "--device", "cuda"])
    with pytest.raises(SystemExit):
        benchmark_operator.main()
    assert "there is no GPU" in capsys.readouterr().err
