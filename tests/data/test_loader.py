"""The training loader, compared with Detectron2's and with itself."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetFromList
from detectron2.data import transforms as T
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler
from PIL import Image

from clockdistill.data import DetectionMapper, build_train_loader
from clockdistill.data.catalog import ReadingPolicy, reading
from clockdistill.errors import UserError

AUGMENTATIONS = (T.RandomFlip(), T.RandomBrightness(0.5, 1.5), T.RandomCrop("relative_range", (0.5, 0.5)))


@pytest.fixture
def records(tmp_path):
    """Ten images, some of which are wider than high."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(10):
        width, height = (24, 16) if number % 3 else (16, 24)
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        records.append(dict(file_name=str(path), image_id=number, width=width, height=height, annotations=[]))
    return records


def load(records, count, start=0, num_workers=0, **kwargs):
    mapper = DetectionMapper(is_train=True, augmentations=list(AUGMENTATIONS), image_format="RGB")
    arguments = dict(mapper=mapper, total_batch_size=2, num_workers=num_workers, seed=5) | kwargs
    loader = build_train_loader(records, **arguments)
    loader.start = start
    return list(itertools.islice(loader, count))


def test_records_without_sizes_are_named(records):
    del records[3]["width"]
    with pytest.raises(UserError, match=r"3\.png has no width and height .*aspect_ratio_grouping=False"):
        load(records, 1)
    assert len(load(records, 1, aspect_ratio_grouping=False)) == 1


def ids(batches):
    return [[x["image_id"] for x in batch] for batch in batches]


def test_batches_are_those_of_detectron2(records):
    stream = (records[index] for index in TrainingSampler(len(records), seed=5))
    expected = list(itertools.islice(AspectRatioGroupedDataset(stream, 2), 20))
    assert ids(load(records, 20)) == ids(expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_depends_on_its_number_alone(records, num_workers):
    whole = load(records, 9)
    part = load(records, 4, start=5, num_workers=num_workers)
    assert ids(part) == ids(whole[5:])
    for a, b in zip(itertools.chain(*part), itertools.chain(*whole[5:])):
        torch.testing.assert_close(a["image"], b["image"], rtol=0, atol=0)
    # the second time, an image is augmented in another way
    images = {}
    for x in itertools.chain(*whole):
        images.setdefault(x["image_id"], []).append(x["image"].float().mean().item())
    assert any(len(set(means)) > 1 for means in images.values())


def test_reading_leaves_the_random_numbers_of_the_step_alone(records):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = state()
    load(records, 3)
    assert state() == before


@pytest.mark.parametrize("world_size", [1, 2])
def test_processes_share_the_images(records, monkeypatch, world_size):
    seen = []
    for rank in range(world_size):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: world_size)
        seen += ids(load(records, 10 // world_size, total_batch_size=world_size, aspect_ratio_grouping=False))
    assert sorted(itertools.chain(*seen)) == list(range(10))


def test_an_unreadable_image_is_replaced(records):

    before = load(records, 15)
    with open(records[4]["file_name"], "r+b") as file:
        file.truncate(40)
    whole = load(records, 15)
    pairs = zip(itertools.chain(*ids(before)), itertools.chain(*ids(whole)), strict=True)
    assert len({replacement for image, replacement in pairs if image == 4}) > 1
    assert all(len(batch) == 2 for batch in whole)
    assert 4 not in itertools.chain(*ids(whole))
    assert ids(load(records, 15, num_workers=1)) == ids(whole)
    with reading(ReadingPolicy(strict=True)), pytest.raises(UserError, match=r"cannot read image .*4\.png"):
        load(records, 15)


def test_a_folder_that_disappears_ends_the_training(records, tmp_path):
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"cannot read image .*\.png"):
        load(records, 1)


def test_the_batch_is_divided_among_processes(records, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 3)
    with pytest.raises(UserError, match="total_batch_size cannot be 4: it must be a multiple of 3"):
        build_train_loader(records, mapper=None, total_batch_size=4, num_workers=0, seed=0)


def test_records_are_copied_for_the_workers(records):
    assert isinstance(
        build_train_loader(records, mapper=dict, total_batch_size=1, num_workers=0, seed=0).dataset.records,
        DatasetFromList,
    )
