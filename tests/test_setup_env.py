"""What set-up decides: which interpreter, what is missing, what must stay as it is. Nothing is installed here."""

import json
import os
import re
import stat
import sys
from pathlib import Path

import pytest

import setup_env

REQUIREMENTS = setup_env.read_requirements((setup_env.ROOT / "requirements.txt").read_text())


def pinned() -> dict[str, str]:
    """Every requirement at its last pinned version, as an interpreter that set-up made would have it."""
    return {name: lines[-1].split(";")[0].split("==")[1] for name, lines in REQUIREMENTS.items()}


def interpreter(**changes) -> dict:
    state = {
        "executable": "/some/python",
        "base_executable": "/base/python",
        "python": [3, 12, 1],
        "installed": pinned(),
        "detectron2": True,
        "clockdistill": True,
        "pip": True,
        "venv": True,
        "virtualenv": False,
        "site_packages": "/some/site-packages",
    }
    return state | changes


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.11.0+cu130", (2, 11, 0)),
        ("2.4.0a0+git1", (2, 4, 0)),
        ("0.1.5.post20221221", (0, 1, 5)),
        ("80.10.2", (80, 10, 2)),
        ("unknown", ()),
    ],
)
def test_release_is_the_leading_numbers(version, expected):
    assert setup_env.release(version) == expected


def test_every_requirement_is_pinned_exactly_and_every_python_has_one_line():
    for name, lines in REQUIREMENTS.items():
        assert all(re.fullmatch(r'[\w.-]+==[\w.]+(; python_version (<|>=) "3\.11")?', line) for line in lines)
        assert len(lines) == 1 or [re.search("<|>=", line).group() for line in lines] == ["<", ">="], name


def test_complete_interpreter_needs_nothing():
    assert setup_env.plan(REQUIREMENTS, pinned())[0] == []


def test_bare_interpreter_needs_everything_and_has_nothing_to_keep():
    lines, constraints = setup_env.plan(REQUIREMENTS, dict.fromkeys(REQUIREMENTS))
    assert lines == [line for group in REQUIREMENTS.values() for line in group]
    assert constraints == []


@pytest.mark.parametrize("version", ["2.4", "2.10.0+cpu", "3.0.1"])
def test_torch_from_2_4_stays_and_cannot_be_changed(version):
    lines, constraints = setup_env.plan(REQUIREMENTS, pinned() | {"torch": version, "yacs": None})
    assert lines == REQUIREMENTS["yacs"]
    assert f"torch=={version}" in constraints


def test_older_torch_is_replaced_together_with_torchvision():
    lines, constraints = setup_env.plan(REQUIREMENTS, pinned() | {"torch": "2.3.1"})
    assert lines == REQUIREMENTS["torch"] + REQUIREMENTS["torchvision"]
    assert not any(line.startswith("torch") for line in constraints)


def test_missing_torchvision_follows_the_torch_that_is_there():
    lines, constraints = setup_env.plan(REQUIREMENTS, pinned() | {"torch": "2.9.1", "torchvision": None})
    assert lines == ["torchvision"]
    assert "torch==2.9.1" in constraints


def test_other_version_stays_except_that_of_the_formatter():
    changes = {"numpy": "1.26.4", "opencv-python-headless": "", "ruff": "0.1.0", "setuptools": "82.0"}
    lines, constraints = setup_env.plan(REQUIREMENTS, pinned() | changes)
    assert lines == REQUIREMENTS["ruff"]
    assert "numpy==1.26.4" in constraints
    assert not any(line.startswith("opencv") for line in constraints)  # its version is not known


def test_named_interpreter_is_used_only_with_torch_and_detectron2():
    complete = interpreter()
    assert setup_env.choose(complete, named=True) == Path("/some/python")
    assert setup_env.choose(complete, named=False) == setup_env.VENV_PYTHON
    for lacking in (
        interpreter(detectron2=False),
        interpreter(installed=pinned() | {"torch": None}),
        interpreter(installed=pinned() | {"torch": "2.3.0"}),
    ):
        assert setup_env.choose(lacking, named=True) == setup_env.VENV_PYTHON


def test_venv_comes_from_the_base_interpreter_or_from_virtualenv():
    assert setup_env.venv_command(interpreter())[:3] == ["/base/python", "-m", "venv"]
    assert setup_env.venv_command(interpreter(venv=False, virtualenv=True))[:3] == ["/some/python", "-m", "virtualenv"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"venv": False}, "apt install python3.12-venv"),
        ({"python": [3, 9, 18]}, "3.9 is not supported"),
        ({"python": [3, 14, 0]}, "3.14 is not supported"),
    ],
)
def test_interpreter_that_cannot_serve_is_refused_with_the_mend(changes, message):
    with pytest.raises(setup_env.SetupError, match=re.escape(message)):
        setup_env.venv_command(interpreter(**changes))


def test_probe_sees_what_this_interpreter_has(monkeypatch, tmp_path):
    (tmp_path / "detectron2").mkdir()  # a mere folder of that name, such as a clone's parent, is no package
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    state = setup_env.probe()
    assert state["python"] == list(sys.version_info[:3])
    assert set(state["installed"]) == set(REQUIREMENTS)
    assert state["installed"]["pytest"] == pytest.__version__
    assert setup_env.find_origin("no_such_module") is None
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    assert setup_env.find_origin("detectron2") is None


def fake_python(folder: Path, script: str) -> Path:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def test_pip_shows_large_files_only(tmp_path, capsys):
    python = fake_python(
        tmp_path,
        """echo "Collecting torch==2.11.0"
        echo "  Downloading torch-2.11.0-cp311-manylinux.whl.metadata (29 kB)"
        echo "Downloading https://host/path/torch-2.11.0-cp311-manylinux.whl (530.6 MB)"
        echo "Installing collected packages: torch" """,
    )
    setup_env.run_pip(python, "torch")
    assert capsys.readouterr().out.splitlines() == ["  downloading torch (530.6 MB)", "  unpacking"]


def test_pip_failure_shows_its_message_and_a_sentence(tmp_path, capsys):
    python = fake_python(tmp_path, 'echo "ERROR: No matching distribution found for torch"; exit 1')
    with pytest.raises(setup_env.SetupError, match="pip could not install"):
        setup_env.run_pip(python, "torch")
    assert "No matching distribution" in capsys.readouterr().err


def test_failed_pip_leaves_the_set_up_unfinished(monkeypatch, tmp_path):
    """The next call must start afresh, not take a half-filled .venv for a good one."""
    monkeypatch.setattr(setup_env, "VENV_PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(setup_env, "UNFINISHED", tmp_path / ".venv-unfinished")
    monkeypatch.setattr(setup_env, "LOCK", tmp_path / ".venv-lock")
    monkeypatch.setattr(setup_env, "venv_command", lambda state: ["true"])
    monkeypatch.setattr(setup_env, "probe_other", lambda python: interpreter(installed=dict.fromkeys(REQUIREMENTS)))

    def fail(*arguments):
        raise setup_env.SetupError("pip")

    monkeypatch.setattr(setup_env, "run_pip", fail)
    with pytest.raises(setup_env.SetupError):
        setup_env.set_up(interpreter(), named=False)
    assert setup_env.UNFINISHED.exists()


def test_floors_agree_with_setup_py():
    text = (setup_env.ROOT / "setup.py").read_text()
    assert '"torch>={}.{}"'.format(*setup_env.FLOORS["torch"]) in text
    listed = set(re.findall(r'^        "([\w-]+)', text, re.MULTILINE))
    assert listed <= set(REQUIREMENTS)


def test_operators_are_built_again_for_newer_sources_and_another_torch(tmp_path, monkeypatch):
    sources = tmp_path / "clockdistill" / "layers" / "csrc"
    sources.mkdir(parents=True)
    (sources / "kernel.cpp").touch()
    record = tmp_path / "record.json"
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    monkeypatch.setattr(setup_env, "PACKAGE_DIR", tmp_path)
    monkeypatch.setattr(setup_env, "OPERATORS", record)
    (tmp_path / "setup.py").touch()
    assert not setup_env.operators_are_current("2.11.0")
    record.write_text('{"torch": "2.11.0+cu130"}')
    assert setup_env.operators_are_current("2.11.0")
    assert not setup_env.operators_are_current("2.12.0")
    os.utime(sources / "kernel.cpp", (record.stat().st_mtime + 1,) * 2)
    assert not setup_env.operators_are_current("2.11.0")


@pytest.mark.parametrize(
    ("problem", "gpu", "nvcc", "current"),
    [
        ("no GPU was there at the build", True, True, False),
        ("no nvcc was found at the build", True, True, False),
        ("no GPU was there at the build", False, True, True),
        ("no GPU was there at the build", True, False, True),
        ("they did not compile", True, True, True),  # nor would they the next time
    ],
)
def test_operators_are_built_again_where_cuda_has_become_possible(tmp_path, monkeypatch, problem, gpu, nvcc, current):
    for name in ("setup.py", "clockdistill/layers/csrc/kernel.cpp", "nvidia0", "bin/nvcc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch(mode=0o755)
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"torch": "2.11.0", "cuda": None, "problem": problem}))
    for name, value in dict(ROOT=tmp_path, PACKAGE_DIR=tmp_path, OPERATORS=record).items():
        monkeypatch.setattr(setup_env, name, value)
    monkeypatch.setattr(setup_env, "GPU", tmp_path / ("nvidia0" if gpu else "none"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path if nvcc else tmp_path / "none"))
    monkeypatch.setenv("PATH", "")
    assert setup_env.operators_are_current("2.11.0") == current


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            dict(cpu=True, cuda="13.0", architectures="9.0", problem=""),
            "Operators compiled for the CPU and for CUDA (9.0)",
        ),
        (
            dict(cpu=True, cuda=None, problem="no nvcc was found"),
            "Operators compiled for the CPU; without CUDA, since no nvcc was found",
        ),
        (
            dict(cpu=False, cuda=None, problem="they did not compile"),
            "Operators left to pure PyTorch, since they did not compile",
        ),
    ],
)
def test_what_was_compiled_is_said(record, line):
    assert setup_env.describe_operators(record) == line
