"""The training loader, whose batches depend only on the seed and the iteration."""

import itertools
import logging
import multiprocessing
import os
import random
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from detectron2.data import DatasetFromList
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..checks import checked, count, not_negative
from ..errors import InvalidValue, UnreadableImage, UserError
from ..seeding import IMAGE, seeded
from .catalog import reading_policy

MAX_ATTEMPTS = 10  # images to try instead of an unreadable one

logger = logging.getLogger(__name__)


class TrainLoader:
    """Endless batches, each a list of mapped records.

    Unlike those of Detectron2's `build_detection_train_loader`, batches and augmentations do not depend on the number
    of workers, and `start` skips batches without reading them.

    Attributes:
        start: number of batches to skip.
    """

    def __init__(self, dataset: Dataset, batches: "BatchSampler", num_workers: int):
        self.dataset = dataset
        self.batches = batches
        self.num_workers = num_workers
        self.start = 0

    def __iter__(self) -> Iterator[list[dict]]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=self.num_workers,
            collate_fn=list,
            worker_init_fn=ignore_stop_signals,
            # or else it would draw the workers' seeds from the generator of the training step
            generator=torch.Generator(),
        )
        self.batches.start = self.start
        return iter(loader)


@checked(total_batch_size=count, num_workers=not_negative)
def build_train_loader(
    dataset: list[dict],
    *,
    mapper: Callable[[dict], dict],
    total_batch_size: int,
    num_workers: int,
    seed: int,
    aspect_ratio_grouping: bool = True,
) -> TrainLoader:
    """Build the loader of this process.

    Args:
        dataset: Detectron2's standard dicts.
        mapper: makes an input of the model from a copy of a record.
        total_batch_size: number of images of all processes.
        num_workers: number of processes that read images; 0 reads them in this one.
        seed: of the order and the augmentations; negative for a random one.
        aspect_ratio_grouping: do not mix images wider than high with others in a batch.

    Raises:
        UserError: the batch cannot be divided among the processes, or a record has no width and height to group it by.
    """
    world_size = comm.get_world_size()
    if total_batch_size % world_size:
        expected = f"a multiple of {world_size}, the number of processes"
        raise InvalidValue("total_batch_size", total_batch_size, expected)
    if seed < 0:
        seed = comm.shared_random_seed()
    if aspect_ratio_grouping and (unknown := next((r for r in dataset if not {"width", "height"} <= r.keys()), None)):
        raise UserError(
            f"{unknown.get('file_name')} has no width and height in its dataset: add them to the records, or set "
            "dataloader.train.aspect_ratio_grouping=False"
        )
    groups = [record["width"] > record["height"] if aspect_ratio_grouping else 0 for record in dataset]
    batches = BatchSampler(groups, total_batch_size // world_size, seed)
    return TrainLoader(MappedDataset(dataset, mapper, seed), batches, num_workers)


class BatchSampler(Sampler):
    """Yields this process's batches of (position in its sequence of images, index of the image).

    Args:
        groups: for each image the group with which it may share a batch.
        batch_size: number of images of this process.
        seed: of the order, the same in all processes.

    Attributes:
        start: number of batches to skip.
    """

    def __init__(self, groups: Sequence[int], batch_size: int, seed: int):
        self.groups = groups
        self.batch_size = batch_size
        self.indices = TrainingSampler(len(groups), seed=seed)
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._all(), self.start, None)

    def _all(self) -> Iterator[list[tuple[int, int]]]:
        waiting = defaultdict(list)
        for position, index in enumerate(self.indices):
            batch = waiting[self.groups[index]]
            batch.append((position, index))
            if len(batch) == self.batch_size:
                del waiting[self.groups[index]]
                yield batch


class MappedDataset(Dataset):
    """Maps records with random numbers that depend only on the seed, the process and the position.

    An image that cannot be read is replaced by another one, with a warning, unless data are read strictly.
    """

    def __init__(self, records: list[dict], mapper: Callable[[dict], dict], seed: int):
        # shared by the workers, and not copied when one of them reads it
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.key = IMAGE, seed, comm.get_rank()
        self.attempts = 1 if reading_policy().strict else MAX_ATTEMPTS

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        position, index = item
        with seeded(*self.key, position):
            for attempt in range(1, self.attempts + 1):
                try:
                    return self.mapper(self.records[index])
                except UnreadableImage as error:
                    if attempt == self.attempts:
                        raise
                    logger.warning(f"{error} (another image is used instead)")
                    index = random.randrange(len(self.records))


def ignore_stop_signals(worker: int) -> None:
    """Let only the main process react to signals that stop the training: it still needs its data for the last step.

    When the main process itself ends its workers, they obey.
    """
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    main = multiprocessing.parent_process().pid

    def obey_main() -> None:
        while True:
            received = signal.sigwaitinfo(signals)
            if received.si_signo == signal.SIGTERM and received.si_pid == main:
                os._exit(0)

    threading.Thread(target=obey_main, daemon=True).start()
