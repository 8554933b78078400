"""Commands, code and links in the documents fit the scripts, configs and files."""

import argparse
import functools
import importlib
import importlib.util
import itertools
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch.distributed.run import get_args_parser

import clockdistill.data  # noqa: F401  registers the datasets
import families
from clockdistill import modeling
from clockdistill.engine import load_config
from experiment_matrix import check_runs, load_matrix, runs_of
from helpers.documents import BLOCK, ROOT, code_blocks, documented_files

PROJECT = families.CONFIGS.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "datasets/README.md")),
    PROJECT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# the demo's trainings, in output/demo/FAMILY
DEMO_OUTPUTS = {"student", "distilled"}
for_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(text):
    """Yield the words of each shell command of a page, without variables that are set for it alone."""
    for language, code, _ in code_blocks(text):
        if language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield list(itertools.dropwhile(re.compile("[A-Z_]+=").match, words))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The repository, by links, with the configs and modules that the pages add to it."""
    tree = tmp_path_factory.mktemp("tree")
    project = tree / "projects" / "CLoCKDistill"
    project.mkdir(parents=True)
    for path in [*ROOT.iterdir(), *PROJECT.iterdir()]:
        if path.name not in ("projects", "clockdistill", "configs", "output"):
            (tree / path.relative_to(ROOT)).symlink_to(path)
    shutil.copytree(families.CONFIGS, project / "configs")
    for page in PAGES:
        for path, code in documented_files(page.read_text(encoding="utf-8")):
            assert not (tree / path).exists(), f"{page} overwrites {path}"
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(code, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling, "__path__", [*modeling.__path__, str(project / "clockdistill" / "modeling")])
        yield tree


class Parsed(Exception):
    """Carries a script's arguments, and stops it."""


def parse(module, arguments):
    """Let a script parse its command line, and nothing more."""

    def stop_after(method):
        @functools.wraps(method)
        def parse_and_stop(*args, **kwargs):
            raise Parsed(method(*args, **kwargs))

        return parse_and_stop

    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, stop_after(getattr(argparse.ArgumentParser, name)))
        patch.setattr(sys, "argv", [module.__name__, *arguments])
        with pytest.raises(Parsed) as parsed:
            getattr(module, "parse_args", module.main)()
    return parsed.value.args[0]


@functools.cache
def load(path, overrides=()):
    return load_config(path, list(overrides))


@functools.cache
def run_folders(matrix):
    return {run.folder.name for run in runs_of(load_matrix(matrix), {})}


def check_command(words, folder, outputs):
    """Check a command and return the folder that it leaves the shell in.

    Args:
        folder: the working directory.
        outputs: names of known output folders; those that the command sets are added.
    """
    program, *arguments = words
    if program == "cd":
        folder = Path(os.path.normpath(folder / arguments[0]))
        assert folder.is_dir()
        return folder
    if program == "export":
        assert all(re.fullmatch("[A-Z0-9_]+=.+", word) for word in arguments)
    elif program == "source":
        assert arguments[0].endswith(".venv/bin/activate")
    elif program == "grep":
        check_path(arguments[-1], outputs)
    elif program == "srun":
        return check_command(arguments, folder, outputs)
    elif program == "torchrun":
        sizes = {"$SLURM_NNODES": "2"}
        parsed = get_args_parser().parse_args([sizes.get(word, word) for word in arguments])
        return check_command(["python", parsed.training_script, *parsed.training_script_args], folder, outputs)
    elif program == "make":
        makefile = (folder / "Makefile").read_text(encoding="utf-8")
        for word in arguments:
            known = rf"\$\({word.partition('=')[0]}\)" if "=" in word else f"^{word}:"
            assert re.search(known, makefile, re.MULTILINE), f"the Makefile has no {word}"
    elif program == "pip":
        assert arguments == ["install", "--no-build-isolation", "-e", "."]
        assert (folder / "setup.py").is_file()
    elif program.endswith(".sh"):
        assert os.access(folder / program, os.X_OK), f"{program} is not an executable file"
    elif program in ("python", ".venv/bin/python") and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), f"there is no module {arguments[1]}"
        if arguments[1] == "clockdistill.data.check":
            parse(importlib.import_module(arguments[1]), arguments[2:])
    else:
        script, arguments = (arguments[0], arguments[1:]) if program.endswith("python") else (program, arguments)
        assert script.endswith(".py"), f"unknown command {script}"
        path = folder / script
        assert path.is_file(), f"{script} is not in {folder}"
        assert program.endswith("python") or os.access(path, os.X_OK), f"{script} is not executable"
        check_arguments(parse(importlib.import_module(path.stem), arguments), outputs)
    return folder


def check_arguments(args, outputs):
    """Check the config files, overrides and checkpoints of a parsed command line."""
    if getattr(args, "config_file", None):
        cfg = load(args.config_file, tuple(getattr(args, "opts", ())))
        outputs.add(Path(cfg.train.output_dir).name)
        check_path(cfg.train.init_checkpoint, outputs)
        for key in ("config", "checkpoint"):
            check_path(OmegaConf.select(cfg, f"distillation.teacher.{key}") or "", outputs)
    for matrix in getattr(args, "matrices", []):
        if not str(matrix).startswith("/data/"):  # a file of the reader's
            outputs |= run_folders(str(matrix))
    model = getattr(args, "model", None) or []
    models = [f"exported={model}"] if isinstance(model, str) else model
    for text in (*getattr(args, "compare", []), *models):
        if exported := re.fullmatch(r"[^=]+=([^:]+\.(?:onnx|xml|pt2))", text):
            check_path(exported[1], outputs)
            continue
        config, checkpoint = re.fullmatch("[^=]+=(.+?):(.+)", text).groups()
        outputs.add(Path(load(config).train.output_dir).name)
        check_path(checkpoint, outputs)


def test_the_matrix_for_own_data_is_complete(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (code,) = [c for _, c, _ in code_blocks((ROOT / "docs/results.md").read_text()) if c.startswith("matrix = dict(")]
    (tmp_path / "cars.py").write_text(code)
    runs = runs_of(load_matrix(str(tmp_path / "cars.py")), {})
    check_runs(runs)
    assert [run.method for run in runs[:5]] == ["teacher", "plain", "clockdistill", "balance", "fitnets"]


def check_path(path, outputs):
    """A path exists, or a documented run writes it, or it is a bare name for a file of the reader's."""
    if "output" in Path(path).parts:
        assert Path(path).parent.name in outputs | DEMO_OUTPUTS, f"no command writes {path}"
    elif path and not path.startswith("https://") and Path(path).name != path:
        assert Path(path).is_file(), f"{path} does not exist"


@for_each_page
def test_commands_parse_and_their_configs_and_overrides_exist(page, tree, monkeypatch):
    folder = tree
    text = page.read_text(encoding="utf-8")
    # a page whose commands are for the project's folder may leave out the way there
    if not re.search("^( {4})?cd ", text, re.MULTILINE) and "./train_net.py" in text:
        folder = tree / "projects" / "CLoCKDistill"
    outputs = {path.stem for path in families.TRAINING_CONFIGS}
    for words in commands(text):
        monkeypatch.chdir(folder)
        try:
            folder = check_command(words, folder, outputs)
        except (Exception, SystemExit, pytest.fail.Exception) as error:
            pytest.fail(f"{page.relative_to(ROOT)}: {shlex.join(words)}\n{error}", pytrace=False)


@for_each_page
def test_code_compiles(page):
    for language, code, _ in code_blocks(page.read_text(encoding="utf-8")):
        assert language in ("bash", "python", "json", "folders"), f"unknown language {language}"
        if language == "python":
            compile(code, str(page), "exec")


def anchors(page):
    """GitHub's anchors of a page's headings."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


@for_each_page
def test_links_and_images_exist(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if not path.startswith("https://"):
            linked = page.parent / path if path else page
            assert linked.exists(), f"{target} does not exist"
            assert not anchor or anchor in anchors(linked), f"{linked.name} has no heading for #{anchor}"


def test_model_zoo_lists_every_config():
    text = (ROOT / "docs/model_zoo.md").read_text(encoding="utf-8")
    listed = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `\w+.*?\|", text, re.MULTILINE)))
    assert sorted(listed) == sorted(path.stem for path in families.TRAINING_CONFIGS)


def test_overrides_of_the_model_zoo_apply_to_their_configs():
    text = (ROOT / "docs/model_zoo.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|]+\| (`[^|]+\.py`) \| `([^|]+)` \|$", text, re.MULTILINE)
    assert len(rows) > 8
    documented = []
    for globs, overrides in rows:
        for pattern in re.findall("`([^`]+)`", globs):
            parts = [part.split(",") for part in re.split(r"\{(.*?)\}", pattern)]
            paths = [path for name in itertools.product(*parts) for path in families.CONFIGS.glob("".join(name))]
            assert len(paths) > 1, f"no configs {pattern}"
            documented += [load_config(str(path), overrides.split()).model for path in paths]
    for variant in families.VARIANTS:
        assert "." not in variant or families.training_config(variant).model in documented, variant
