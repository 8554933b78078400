import time

import pytest
import torch
from torch import nn

from clockdistill.evaluation import cost
from clockdistill.evaluation.cost import (
    benchmark,
    blank_image,
    count_flops,
    count_parameters,
    latency,
    peak_memory,
)
from clockdistill.layers import MultiScaleDeformableAttention
from clockdistill.layers.ms_deform_attn import by_grid_sample
from clockdistill.modeling.dab_detr import CrossAttention, SelfAttention
from clockdistill.modeling.transformer import AnchorDecoder
from helpers.models import VARIANTS, tiny


class Sleeper(nn.Module):
    """Sleeps for the next of its durations in seconds at each call, and for the last one from then on."""

    def __init__(self, *durations):
        super().__init__()
        self.durations = list(durations)
        self.batches = []

    def forward(self, batch):
        self.batches.append(batch)
        time.sleep(self.durations.pop(0) if len(self.durations) > 1 else self.durations[0])
        return [{} for _ in batch]


def test_latency_is_in_milliseconds_by_model():
    times = latency({"fast": Sleeper(0.004), "slow": Sleeper(0.04)}, [{}, {}], rounds=4)
    assert {name: len(values) for name, values in times.items()} == {"fast": 8, "slow": 8}
    assert 4 <= min(times["fast"]) < 40 <= min(times["slow"]) < 400


def test_warm_up_is_not_timed():
    model = Sleeper(0.2, 0.2, 0.001)  # two images
    assert max(latency({"model": model}, [{}, {}], rounds=3)["model"]) < 200


def test_images_come_one_by_one_and_models_take_turns():
    calls = []

    class Recorder(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, batch):
            calls.append((self.name, [x["id"] for x in batch]))

    latency({name: Recorder(name) for name in "ab"}, [{"id": 1}, {"id": 2}], rounds=1)
    assert calls == [("a", [1]), ("b", [1]), ("a", [2]), ("b", [2])] * 2


@pytest.mark.parametrize(("model", "expected"), [(nn.Linear(3, 5), 20), (nn.BatchNorm2d(4), 8)])
def test_buffers_are_not_parameters(model, expected):
    assert count_parameters(model) == expected


def flops_by_hand(module, inputs, kwargs, output):
    """The multiply-adds of one module by its formula, from the shapes of its inputs and outputs."""
    if isinstance(module, nn.Conv2d):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, nn.BatchNorm2d):
        return 2 * output.numel()
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return 5 * output.numel()
    if isinstance(module, nn.MultiheadAttention):
        # projections of queries, keys, values and outputs, which are not submodules; then Q K^T and A V
        queries, keys, width = inputs[0].shape[1], inputs[1].shape[1], module.embed_dim
        return (2 * queries + 2 * keys) * width**2 + 2 * queries * keys * width
    if isinstance(module, SelfAttention):
        return 2 * inputs[0].shape[1] ** 2 * inputs[0].shape[2]
    if isinstance(module, CrossAttention):
        # content and position are concatenated: queries and keys are twice as wide as values
        return 3 * inputs[0].shape[1] * inputs[3].tokens.shape[1] * inputs[0].shape[2]
    if isinstance(module, MultiScaleDeformableAttention):
        return 5 * inputs[0].numel() * module.num_levels * module.num_points
    return 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_equal_the_formulas(variant):
    model = tiny(variant).eval()
    x = blank_image(96, 160)
    expected = []
    for module in model.modules():
        module.register_forward_hook(lambda *args: expected.append(flops_by_hand(*args)), with_kwargs=True)
    with torch.no_grad():
        model([x])
    total = sum(expected)
    if isinstance(model.decoder, AnchorDecoder):
        # no output depends on the last layer's reference boxes
        total -= 20 * (2 * model.embed_dim**2 + 4 * model.embed_dim)
    assert count_flops(model, x) == total


def test_flops_are_linear_in_pixels_except_for_dense_attention():
    counts = [count_flops(tiny("dino").eval(), blank_image(64 * n, 128)) for n in (1, 2, 3)]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0
    dense = [count_flops(tiny("dab_detr").eval(), blank_image(64 * n, 128)) for n in (1, 2, 3)]
    assert dense[2] - dense[1] > dense[1] - dense[0]


def test_flops_are_the_same_on_pure_pytorch(monkeypatch):
    model, x = tiny("dino").eval(), blank_image(64, 96)
    count = count_flops(model, x)
    calls = []
    monkeypatch.setattr(
        "clockdistill.layers.attention.ms_deform_attn", lambda *args: calls.append(1) or by_grid_sample(*args)
    )
    assert count_flops(model, x) == count
    assert calls
    # and if the operator is called by name without its library
    monkeypatch.setattr("clockdistill.layers.attention.ms_deform_attn", torch.ops.clockdistill.ms_deform_attn)
    assert count_flops(model, x) == count


def test_flops_of_a_fused_module_are_counted():
    class SelfAttending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, batch):
            x = batch[0]["image"]
            return self.attention(x, x, x, need_weights=False)[0]

    assert count_flops(SelfAttending().eval(), {"image": torch.zeros(1, 10, 16)}) == 4 * 10 * 16**2 + 2 * 10**2 * 16
    assert torch.backends.mha.get_fastpath_enabled()


class Widener(nn.Module):
    """Allocates up to three million float32 at once (12 MB), in addition to a parameter of 4 kB."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.zeros(1000))

    def forward(self, batch):
        x = torch.zeros(1_000_000, device=self.own.device)
        wide = torch.cat((x, x))
        del x
        return wide[:1_000_000] * 2


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_peak_memory_is_that_of_concurrent_tensors(device):
    other = torch.zeros(5_000_000, device=device)
    expected = 4 * (1000 + 3_000_000)
    assert peak_memory(Widener().to(device), {}) == pytest.approx(expected, rel=1e-3)
    del other


def test_benchmark_uses_the_most_frequent_size_and_all_times(monkeypatch):
    times = [10.0] * 50 + [20.0] * 45 + [100.0] * 5
    monkeypatch.setattr(cost, "latency", lambda models, inputs, rounds: dict.fromkeys(models, times))
    model = tiny("dab_detr").eval()
    inputs = [blank_image(32, 64), blank_image(64, 96), blank_image(64, 96)]
    result = benchmark({"tiny": model}, inputs, rounds=3)["tiny"]
    assert result["image_size"] == [64, 96]
    assert result["gflops"] == count_flops(model, inputs[1]) / 1e9
    assert result["parameters"] == count_parameters(model)
    assert result["ms_per_image"] == 15
    assert 20 <= result["ms_per_image_p95"] < 30
    assert result["images_per_second"] == pytest.approx(1000 / 19)
    assert 4 * result["parameters"] / 2**20 < result["peak_memory_mib"] < 20
