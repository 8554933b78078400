"""Matrices of experiments: their runs of `train_net.py`, the runs' commands, and the results in their folders.

A matrix is a LazyConfig file with a dictionary `matrix`:

- title: of its tables.
- data: name of the output folder; matrices that share one share the runs with the same cell, method and seed.
- seeds, iterations: of the students.
- overrides (optional): of all runs.
- methods (optional): by name, losses as in `configs/common/methods.py`, or a list of overrides of the distillation
  config; or a list of names of those in `tools/matrices/methods.py`. By default, all of these.
- cells: by name, the configs `student` and `distilled` of a family. Optional are `teacher` (`config`, `iterations`,
  `seed`), which is trained first, and from which the students start; `methods` for this cell only; and the `iterations`
  of this cell's students. Paths of configs are relative to `projects/CLoCKDistill/configs`.
- tuning (optional): the cell, seed and four factors, in ascending order, with which `experiments.py tune` chooses the
  methods' weights, and `iterations` and `overrides` that differ from the runs'.
"""

import copy
import functools
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from clockdistill.config_file import execute_config
from clockdistill.engine.config import apply_overrides
from clockdistill.errors import UserError

# all paths are relative to the root of the repository
CONFIGS = "projects/CLoCKDistill/configs"
TRAIN_NET = "projects/CLoCKDistill/train_net.py"
OUTPUT = Path("output/experiments")
MATRICES = Path("tools/matrices")
METHODS = MATRICES / "methods.py"
FACTORS = MATRICES / "factors.json"
RECORD = "run.json"

PLAIN, TEACHER, FULL = "plain", "teacher", "clockdistill"
KEYS = {"title", "data", "seeds", "iterations", "cells"}
OPTIONAL_KEYS = {"methods", "overrides", "tuning"}
CELL_KEYS = {"student", "distilled"}
OPTIONAL_CELL_KEYS = {"teacher", "methods", "iterations"}
TEACHER_KEYS = {"config", "iterations", "seed"}
TUNING_KEYS = {"cell", "seed", "factors"}
OPTIONAL_TUNING_KEYS = {"iterations", "overrides"}
NUM_FACTORS = 4
WEIGHT = re.compile(r"alpha|beta|(\w+_)?weight")


@dataclass(frozen=True)
class Run:
    """A run of `train_net.py`.

    Attributes:
        factor: by which the weights of all distillation losses are multiplied.
        teacher: the run that must be done before this one.
    """

    data: str
    cell: str
    method: str
    seed: int
    iterations: int
    config: str
    overrides: tuple[str, ...]
    factor: float = 1.0
    teacher: "Run | None" = None

    def __str__(self) -> str:
        return f"{self.data} {self.cell} {self.method} seed {self.seed}"

    @property
    def folder(self) -> Path:
        return OUTPUT / self.data / self.cell / self.method.replace(" ", "_") / f"seed{self.seed}"

    @property
    def arguments(self) -> list[str]:
        """Arguments of `train_net.py`."""
        return [
            *("--config-file", path_of(self.config), "--resume", *self.overrides),
            *(f"train.seed={self.seed}", f"train.max_iter={self.iterations}", "train.eval_period=0"),
            f"train.output_dir={self.folder}",
        ]

    @property
    def command(self) -> str:
        return shlex.join([TRAIN_NET, *self.arguments])

    @property
    def record(self) -> dict:
        """Contents of `run.json`: command, commit, device, seconds and whether it is done; {} before the start.

        Raises:
            UserError: the folder is that of another command.
        """
        path = self.folder / RECORD
        record = read_json(path) if path.is_file() else {}
        if record and record["command"] != self.command:
            raise UserError(f"{path} has another command than the matrix: remove {self.folder} to run it again")
        return record

    @property
    def is_done(self) -> bool:
        return self.record.get("done", False)

    @property
    def progress(self) -> float:
        """Fraction of the iterations that is done, according to the log."""
        if self.is_done:
            return 1.0
        path = self.folder / "metrics.json"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return min(1.0, (json.loads(lines[-1])["iteration"] + 1) / self.iterations) if lines else 0.0

    @property
    def metrics(self) -> dict[str, float | None]:
        """COCO's metrics of a run that is done."""
        return read_json(self.folder / "results.json")["bbox"]


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache
def load_matrix(path: str) -> dict:
    """Load a matrix, with its `name` and `folder`.

    Raises:
        UserError: the file does not exist or does not execute, or a key is missing or unknown.
    """
    if not Path(path).is_file():
        raise UserError(f"matrix {path} does not exist: see {MATRICES} for examples")
    matrix = execute_config(path).get("matrix")
    if matrix is None:
        raise UserError(f"{path} has no `matrix`: see {MATRICES} for examples")
    require(path, "matrix", matrix, KEYS, OPTIONAL_KEYS)
    for cell, configs in matrix.cells.items():
        require(path, f"matrix.cells.{cell}", configs, CELL_KEYS, OPTIONAL_CELL_KEYS)
        if "teacher" in configs:
            require(path, f"matrix.cells.{cell}.teacher", configs.teacher, TEACHER_KEYS, set())
    if "tuning" in matrix:
        require(path, "matrix.tuning", matrix.tuning, TUNING_KEYS, OPTIONAL_TUNING_KEYS)
        if len(matrix.tuning.factors) != NUM_FACTORS:
            raise UserError(f"{path} has {len(matrix.tuning.factors)} matrix.tuning.factors: give {NUM_FACTORS}")
    # references in the methods are to the runs' configs
    matrix = OmegaConf.to_container(matrix, resolve=False)
    methods = matrix.get("methods")
    if not isinstance(methods, dict):
        if not isinstance(methods, list | None):
            raise UserError(f"{path} has matrix.methods={methods!r}: give a dictionary or a list of names")
        known = OmegaConf.to_container(execute_config(str(METHODS)).methods, resolve=False)
        if unknown := sorted(set(methods or ()) - known.keys()):
            raise UserError(f"{path} has an unknown method {unknown[0]}: choose from {', '.join(known)}")
        matrix["methods"] = known if methods is None else {name: known[name] for name in methods}
    return matrix | {"name": Path(path).stem, "folder": str(Path(path).resolve().parent)}


def check_runs(runs: Sequence[Run]) -> None:
    """Raise a `UserError` if a config does not exist, or an override sets an unknown key."""
    checked = set()
    for run in runs:
        if (run.config, run.overrides) not in checked:
            checked.add((run.config, run.overrides))
            try:
                apply_overrides(load(run.config), run.overrides)
            except UserError as error:
                raise UserError(f"{run}: {error}") from error


def require(path: str, name: str, section: DictConfig, keys: set[str], optional: set[str]) -> None:
    """Raise a `UserError` unless a section of a matrix has these keys and, besides, only optional ones."""
    if missing := sorted(keys - section.keys()):
        raise UserError(f"{path} has no {name}.{missing[0]}: see {MATRICES} for examples")
    if unknown := sorted(section.keys() - keys - optional):
        raise UserError(f"{path} has an unknown key {name}.{unknown[0]}: choose {', '.join(sorted(keys | optional))}")


def runs_of(matrix: dict, factors: Mapping[str, float]) -> list[Run]:
    """List the runs of a matrix, seed by seed, so that all methods get their first results early.

    Args:
        factors: of the methods' weights, by name. A method that is missing keeps its weights, or has CLoCKDistill's
            factor if it is a variant of it, which means a list of overrides.
    """

    def factor_of(method: str, losses_or_overrides: dict | list | None) -> float:
        default = factors.get(FULL, 1.0) if isinstance(losses_or_overrides, list) else 1.0
        return factors.get(method, default)

    runs = []
    for cell in matrix["cells"]:
        teacher = teacher_of(matrix, cell)
        methods = {PLAIN: None, **methods_of(matrix, cell)}
        runs += [teacher] if teacher else []
        runs += [
            student_run(matrix, cell, method, seed, factor_of(method, value), teacher)
            for seed, (method, value) in itertools.product(matrix["seeds"], methods.items())
        ]
    return runs


def tuning_runs(matrix: dict) -> list[Run]:
    """List the runs that choose the factors of the methods' weights.

    Raises:
        UserError: the matrix has no `tuning`.
    """
    if "tuning" not in matrix:
        raise UserError(f"the matrix {matrix['name']} has no tuning: tune the weights with tools/matrices/street.py")
    tuning = matrix["tuning"]
    cell, seed, factors = (tuning[key] for key in ("cell", "seed", "factors"))
    iterations = tuning.get("iterations", iterations_of(matrix, cell))
    trials = matrix | dict(
        data=f"{matrix['data']}_tuning",
        cells={cell: matrix["cells"][cell] | {"iterations": iterations}},
        overrides=[*matrix.get("overrides", ()), *tuning.get("overrides", ())],
    )
    teacher = teacher_of(trials, cell)
    return [
        student_run(trials, cell, method, seed, factor, teacher, label=f"{method} x{factor}")
        for method, factor in itertools.product(methods_of(matrix, cell), factors)
    ]


def methods_of(matrix: dict, cell: str) -> dict:
    return matrix["methods"] | matrix["cells"][cell].get("methods", {})


def iterations_of(matrix: dict, cell: str) -> int:
    return matrix["cells"][cell].get("iterations", matrix["iterations"])


def teacher_of(matrix: dict, cell: str) -> Run | None:
    teacher = matrix["cells"][cell].get("teacher")
    overrides = tuple(matrix.get("overrides", ()))
    return teacher and Run(matrix["data"], cell, TEACHER, **teacher, overrides=overrides)


def student_run(
    matrix: dict, cell: str, method: str, seed: int, factor: float, teacher: Run | None, label: str = ""
) -> Run:
    """Describe the run of a method, which differs from the plain student's only in its distillation."""
    configs, overrides = matrix["cells"][cell], list(matrix.get("overrides", ()))
    if teacher:
        overrides.append(f"train.init_checkpoint={teacher.folder}/model_final.pth")
    config = configs["student" if method == PLAIN else "distilled"]
    if method != PLAIN:
        if teacher:
            files = dict(config="config.yaml", checkpoint="model_final.pth")
            overrides += [f"distillation.teacher.{key}={teacher.folder}/{name}" for key, name in files.items()]
        overrides += distillation_overrides(config, methods_of(matrix, cell)[method], factor)
    iterations = iterations_of(matrix, cell)
    return Run(matrix["data"], cell, label or method, seed, iterations, config, tuple(overrides), factor, teacher)


def distillation_overrides(config: str, method: dict | list, factor: float) -> list[str]:
    """Turn a method into overrides of a distillation config.

    Args:
        method: losses to replace the config's, or overrides.
        factor: of the weights of all losses, or, if the config has `distillation.balance`, of the ratios there.
    """
    if isinstance(method, dict):
        off = [f"distillation.losses.{name}=null" for name in load(config).distillation.losses if name not in method]
        overrides = [*off, *(f"+distillation.losses.{name}={as_override(loss)}" for name, loss in method.items())]
    else:
        overrides = method.copy()
    if factor != 1:
        distillation = apply_overrides(load(config), overrides).distillation
        overrides += [f"distillation.{key}={value * factor:.6g}" for key, value in weights_of(distillation)]
    return overrides


def with_teachers(runs: Sequence[Run]) -> list[Run]:
    """Put the teachers that runs need before them, and leave out repeated runs."""
    return list(dict.fromkeys(run for student in runs for run in (student.teacher, student) if run))


def path_of(config: str) -> str:
    return str(Path(CONFIGS) / config)


def load(config: str) -> DictConfig:
    return copy.deepcopy(execute_once(path_of(config)))


@functools.cache
def execute_once(path: str) -> DictConfig:
    return execute_config(path)


def weights_of(distillation: DictConfig) -> Iterator[tuple[str, float]]:
    """Yield key and value of every loss's weights."""
    if distillation.get("balance"):
        yield from ((f"balance.{name}", ratio) for name, ratio in distillation.balance.items())
        return
    for name, loss in distillation.losses.items():
        for key in loss or ():
            if WEIGHT.fullmatch(key):
                yield f"losses.{name}.{key}", loss[key]


def as_override(value: object) -> str:
    """Write a value of a config, such as a LazyCall, in hydra's syntax."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_override(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_override, value)) + "]"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return json.dumps(value)
