"""Evaluation during training, and the files and lines that report its progress.

After any number of interruptions, metrics.json and TensorBoard's files are those of an uninterrupted training.
"""

import json
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, TensorboardXWriter, get_event_storage

from ..files import DISK_FULL, replaced

# number of values over which Detectron2's writers take medians
WINDOW = 20
# what differs between two runs of one training
TIMES = {"time", "data_time", "rank_data_time", "eta_seconds"}

logger = logging.getLogger(__name__)


class MetricsHook(HookBase):
    """Evaluates the model and writes the metrics, periodically and after the last iteration.

    Register it after the hook that saves checkpoints, in all processes. An evaluation that was interrupted after its
    checkpoint is repeated when the training is resumed.

    Args:
        evaluate: returns results by task; None does not evaluate.
        eval_period: number of iterations between evaluations; 0 evaluates only after the last iteration.
        log_period: number of iterations between writes.
        output_dir: folder of metrics.json and TensorBoard's files.
    """

    def __init__(self, evaluate: Callable[[], dict] | None, eval_period: int, log_period: int, output_dir: str):
        self._evaluate = evaluate
        self._eval_period = eval_period
        self._log_period = log_period
        self._output_dir = output_dir
        self._history: dict[str, dict] = {}
        self._writers: Sequence[EventWriter] = ()

    def before_train(self) -> None:
        storage = self.trainer.storage
        for name, history in self._history.items():
            for value, iteration in history["values"]:
                storage.put_scalar(name, value, smoothing_hint=history["smooth"], cur_iter=iteration)
        previous = self.trainer.start_iter - 1
        is_written = True
        if comm.is_main_process():
            path = os.path.join(self._output_dir, "metrics.json")
            written = keep_metrics(path, previous)
            last = max(written, default=-1)
            is_written = previous in written
            # metrics.json comes last: what it has, the others have too
            self._file = MetricsFile(path, last)
            self._writers = [TensorBoardWriter(self._output_dir, last), self._file]
            if not sys.stderr.isatty():
                self._writers.insert(0, CommonMetricPrinter(self.trainer.max_iter))
        if 0 <= previous < self.trainer.max_iter and not comm.all_gather(is_written)[0]:
            self._report(previous)

    def after_step(self) -> None:
        self._report(self.trainer.iter)

    def after_train(self) -> None:
        # it is smaller after an interruption
        if self.trainer.iter >= self.trainer.max_iter:
            iteration = max(self.trainer.start_iter, self.trainer.max_iter)
            self.trainer.storage.iter = iteration
            self._put_results(iteration)
            for writer in self._writers:
                writer.write()
        for writer in self._writers:
            writer.close()
        self._evaluate = None  # it refers to the trainer

    def _report(self, iteration: int) -> None:
        """Evaluate and write if this is due after an iteration."""
        done, max_iter = iteration + 1, self.trainer.max_iter
        self.trainer.storage.iter = iteration
        if self._eval_period and done % self._eval_period == 0 and done < max_iter:
            self._put_results(iteration)
        if done % self._log_period == 0 or done == max_iter:
            for writer in self._writers:
                writer.write()

    def _put_results(self, iteration: int) -> None:
        if self._evaluate is None:
            return
        try:
            results = flatten_results_dict(self._evaluate() or {})
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            logger.error(f"The results of iteration {iteration} are lost, since they cannot be written: {error}")
            results = {}
        results = {name: float(value) for name, value in results.items()}
        self.trainer.storage.put_scalars(**results, smoothing_hint=False, cur_iter=iteration)
        comm.synchronize()

    def state_dict(self) -> dict:
        """The values that later lines depend on: those of medians, and others that have not been written yet."""
        storage, state = self.trainer.storage, {}
        for name, history in storage.histories().items():
            smooth, values = storage.smoothing_hints()[name], history.values()[-WINDOW:]
            if not smooth:
                values = [(value, iteration) for value, iteration in values if iteration > self._file.last]
            if values and name not in TIMES:
                state[name] = dict(values=values, smooth=smooth)
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        self._history = state_dict


def keep_metrics(path: str, last: int) -> set[int]:
    """Remove the lines of metrics.json that belong to later iterations or are incomplete.

    Returns:
        The iterations of the lines that are left.
    """
    if not os.path.isfile(path):
        return set()
    kept, iterations = [], set()
    with open(path, "rb") as file:
        for line in file:
            try:
                iteration = json.loads(line)["iteration"]
            except (ValueError, KeyError, TypeError):  # a process that was killed leaves half a line
                continue
            if iteration <= last and line.endswith(b"\n"):
                kept.append(line)
                iterations.add(iteration)
    with replaced(path) as file:
        file.writelines(kept)
    return iterations


class MetricsFile(EventWriter):
    """Appends lines as Detectron2's `JSONWriter` does. Those that the disk has no space for are kept for later.

    Args:
        path: of metrics.json.
        last: last iteration in the file.

    Attributes:
        last: last iteration that was written.
    """

    def __init__(self, path: str, last: int):
        self._path = path
        self.last = last
        self._unwritten = b""

    def write(self) -> None:
        rows = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if iteration > self.last:
                rows[iteration][name] = value
        self.last = max([self.last, *rows])
        for iteration in sorted(rows):
            line = json.dumps(rows[iteration] | dict(iteration=iteration), sort_keys=True)
            self._unwritten += line.encode() + b"\n"
        self._append()

    def _append(self) -> None:
        size = os.path.getsize(self._path) if os.path.isfile(self._path) else 0
        try:
            with open(self._path, "ab") as file:
                file.write(self._unwritten)
                file.flush()
                os.fsync(file.fileno())
            self._unwritten = b""
        except OSError as error:
            logger.error(f"{self._path} cannot be written ({error.strerror}): the lines follow once it can be")
            if os.path.isfile(self._path):
                os.truncate(self._path, size)


class TensorBoardWriter(TensorboardXWriter):
    """Detectron2's writer, which replaces later events of an interrupted run and survives a full disk.

    Args:
        log_dir: folder of the event files.
        last: last iteration that was written by an earlier run.
    """

    def __init__(self, log_dir: str, last: int):
        super().__init__(log_dir, WINDOW, purge_step=last + 1)
        self._last_write = last
        self._is_broken = False

    def write(self) -> None:
        if self._is_broken:
            return
        try:
            super().write()
            # if the process is killed, only what was flushed is in the file
            self._writer.flush()
        except OSError as error:
            self._is_broken = True
            logger.error(f"TensorBoard's file in {self._writer_args['log_dir']} cannot be written: {error.strerror}")

    def close(self) -> None:
        if not self._is_broken:
            super().close()
