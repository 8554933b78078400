"""Datasets, loaders and evaluators of a LazyConfig."""

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from omegaconf import DictConfig, OmegaConf

from ..config_file import build
from ..data.catalog import ReadingPolicy, reading
from ..errors import MissingDataset, UserError

logger = logging.getLogger(__name__)


def build_loader(cfg: DictConfig, name: str) -> Iterable:
    """Build `cfg.dataloader.train` or `.test`.

    Raises:
        MissingDataset: a dataset is not in the catalog or not on disk.
        UserError: the data are wrong or empty, or have a different number of classes than the model.
    """
    if cfg.dataloader.get(name) is None:
        raise UserError(f"the config has no dataloader.{name}: import one from configs/common/data")
    if name == "test" and OmegaConf.is_list(OmegaConf.select(cfg, "dataloader.test.dataset.names")):
        raise UserError(
            "dataloader.test.dataset.names is a list, but a model is evaluated on one dataset at a time: name one"
        )
    with reading_data(cfg, name):
        loader = build(cfg.dataloader[name], f"dataloader.{name}")
    model_classes = cfg.model.get("num_classes", None)
    for dataset, classes in dataset_classes(cfg, name).items():
        if None not in (classes, model_classes) and len(classes) != model_classes:
            other = {"train": "test", "test": "training"}[name]
            raise UserError(
                f"{dataset} has {len(classes)} classes and the model {model_classes}: set "
                f"model.num_classes={len(classes)}, with the same categories in the {other} data"
            )
    return loader


def build_test_loader(cfg: DictConfig) -> Iterable:
    """Build `cfg.dataloader.test`, see `build_loader`.

    Raises:
        UserError: the config does not evaluate.
    """
    if not evaluates(cfg):
        raise UserError("the config has no dataloader.test with dataloader.evaluator: there is nothing to evaluate on")
    return build_loader(cfg, "test")


def evaluates(cfg: DictConfig) -> bool:
    """Return whether the config has a test set and an evaluator."""
    return cfg.dataloader.get("test") is not None and cfg.dataloader.get("evaluator") is not None


def build_evaluator(cfg: DictConfig) -> DatasetEvaluator:
    # evaluators read the dataset again
    with reading(reading_policy(cfg)):
        return build(cfg.dataloader.evaluator, "dataloader.evaluator")


def load_records(cfg: DictConfig, name: str) -> list[dict]:
    """Return the records of `cfg.dataloader.train.dataset` or `.test.dataset`.

    Raises:
        MissingDataset: the config has no such dataset, or it is not in the catalog or not on disk.
        UserError: the data are wrong or empty.
    """
    if OmegaConf.select(cfg, f"dataloader.{name}.dataset") is None:
        raise MissingDataset(f"the config has no dataloader.{name}.dataset: import one from configs/common/data")
    with reading_data(cfg, name):
        return build(cfg.dataloader[name].dataset, f"dataloader.{name}.dataset")


@contextlib.contextmanager
def reading_data(cfg: DictConfig, name: str) -> Iterator[None]:
    """Let `cfg.dataloader.train` or `.test` be read by the rules in `cfg.train`, and explain what is missing."""
    names = dataset_names(cfg, name)
    try:
        with reading(reading_policy(cfg)):
            yield
    except FileNotFoundError as error:
        raise MissingDataset(
            f"the dataset {' + '.join(names)} needs {error.filename or error}, which does not exist: set "
            "DETECTRON2_DATASETS to the folder of your datasets"
        ) from error
    except KeyError as error:
        unknown = [n for n in names if n not in DatasetCatalog.list()]
        if not unknown:
            raise
        fix = f"register it, or set dataloader.{name}.dataset.names to another dataset"
        if unknown[0].endswith(".json"):
            fix = f"write dataloader.{name}.dataset.names=coco:{unknown[0]}"
        raise MissingDataset(f"{unknown[0]} is not in Detectron2's catalog: {fix}") from error


def reading_policy(cfg: DictConfig) -> ReadingPolicy:
    return ReadingPolicy(cfg.train.get("strict_data", False), cfg.train.get("skip_bad_images", False))


def dataset_names(cfg: DictConfig, name: str) -> list[str]:
    """Return the names of the datasets of `cfg.dataloader.train` or `.test`; none if it has another kind of dataset."""
    names = OmegaConf.select(cfg, f"dataloader.{name}.dataset.names")
    return [names] if isinstance(names, str) else list(names or ())


def dataset_classes(cfg: DictConfig, name: str) -> dict[str, list[str] | None]:
    """Return the class names of the datasets of `cfg.dataloader.train` or `.test`, which must be loaded."""
    names = dataset_names(cfg, name)
    return {f"the dataset {dataset}": MetadataCatalog.get(dataset).get("thing_classes", None) for dataset in names}


def check_classes(classes: Mapping[str, Sequence[str] | None]) -> None:
    """Check that datasets and models give no class of the same name different numbers.

    A warning names the first class that has two names.

    Args:
        classes: class names by dataset or model; None if they are not known.

    Raises:
        UserError: they do.
    """
    known = [(owner, names) for owner, names in classes.items() if names is not None]
    for (first, expected), (second, found) in itertools.combinations(known, 2):
        for number, name in enumerate(expected):
            if name in found and found[number : number + 1] != [name]:
                raise UserError(
                    f"class {number} of {first} is {name}, which is class {found.index(name)} of {second}: give all "
                    "data the same categories in the same order, which in COCO's format is that of their ids"
                )
        renamed = [pair for pair in enumerate(zip(expected, found, strict=False)) if pair[1][0] != pair[1][1]]
        if renamed:
            number, (name, other) = renamed[0]
            logger.warning(
                f"{first} and {second} differ in the names of {len(renamed)} of their classes: number {number} is "
                f"called {name} and {other}. If these are not the same objects, use other data or another model."
            )
