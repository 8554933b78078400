import time

import pytest
from torch import nn

from clockdistill.evaluation.benchmark import count_parameters, latency


class Sleeper(nn.Module):
    """Takes the next of its durations in seconds at every call, the last one for ever."""

    def __init__(self, *durations):
        super().__init__()
        self.durations = list(durations)
        self.batches = []

    def forward(self, batch):
        self.batches.append(batch)
        time.sleep(self.durations.pop(0) if len(self.durations) > 1 else self.durations[0])
        return [{} for _ in batch]


def test_each_model_gets_its_own_time_in_milliseconds():
    times = latency({"fast": Sleeper(0.004), "slow": Sleeper(0.04)}, [{}, {}], rounds=4)
    assert list(times) == ["fast", "slow"]
    assert 4 <= times["fast"] < 40 <= times["slow"] < 400


def test_warm_up_and_outliers_do_not_count():
    # a warm-up of two images; of the six measured calls, two are slow
    model = Sleeper(0.1, 0.1, 0.001, 0.1, 0.001, 0.1, 0.001)
    assert latency({"model": model}, [{}, {}], rounds=3)["model"] < 20


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
def test_buffers_are_no_parameters(model, expected):
    assert count_parameters(model) == expected
