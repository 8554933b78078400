import json
import logging

import pytest
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clockdistill.engine.metrics import MetricsFile, TensorBoardWriter, keep_metrics


def write(writer, storage, iteration, value):
    storage.iter = iteration
    storage.put_scalar("loss", value, smoothing_hint=False)
    writer.write()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_later_and_incomplete_lines_are_removed(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 3}\n{"iteration": 7}\n{"iteration": 11}\n[]\n{"iteration": 5}')
    assert keep_metrics(str(path), 7) == {3, 7}
    assert path.read_text() == '{"iteration": 3}\n{"iteration": 7}\n'
    assert keep_metrics(str(tmp_path / "nowhere.json"), 7) == set()


@pytest.mark.parametrize("part", [0, 5])
def test_lines_that_do_not_fit_on_the_disk_follow_later(tmp_path, monkeypatch, caplog, part):
    monkeypatch.setattr(logging.getLogger("clockdistill"), "propagate", True)
    path = tmp_path / "metrics.json"
    writer = MetricsFile(str(path), -1)
    with EventStorage() as storage:
        write(writer, storage, 0, 1.0)

        def full(descriptor):
            with open(path, "ab") as file:
                file.write(b"x" * part)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        write(writer, storage, 1, 2.0)
        assert [line["iteration"] for line in lines(path)] == [0]
        assert "metrics.json cannot be written (No space left on device)" in caplog.text
        monkeypatch.undo()
        write(writer, storage, 2, 3.0)
    assert [line["loss"] for line in lines(path)] == [1.0, 2.0, 3.0]


def test_tensorboard_shows_an_iteration_once(tmp_path):
    # the first run wrote iterations that its last checkpoint did not have
    for last, iterations in ((-1, range(6)), (2, range(3, 8))):
        with EventStorage() as storage:
            writer = TensorBoardWriter(str(tmp_path), last)
            for iteration in iterations:
                write(writer, storage, iteration, 10 * last + iteration)
            writer.close()
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    found = [(event.step, event.value) for event in accumulator.Scalars("loss")]
    assert found == [(i, i - 10.0) for i in range(3)] + [(i, i + 20.0) for i in range(3, 8)]
