"""What the set-up decides and which commands it runs. Nothing is installed here."""

import json
import os
import re
import sys

import pytest
import torch

import clockdistill
import setup_env

ROOT = setup_env.ROOT


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A complete .venv and a package, in an empty folder."""
    package = tmp_path / "projects" / "CLoCKDistill" / "clockdistill"
    for name in ("requirements.txt", "requirements-detectron2.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    (package / "layers" / "csrc").mkdir(parents=True)
    for source in (tmp_path / "setup.py", package / "layers" / "csrc" / "kernel.cpp", package / "__init__.py"):
        source.touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venv" / "lib" / "python3.12" / "site-packages").mkdir(parents=True)
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    monkeypatch.setattr(setup_env, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup_env, "VENV_PYTHON", python)
    monkeypatch.setattr(setup_env, "REQUIREMENTS", [tmp_path / path.name for path in setup_env.REQUIREMENTS])
    monkeypatch.setattr(setup_env, "STAMP", tmp_path / ".venv" / "installed-requirements.txt")
    monkeypatch.setattr(setup_env, "PACKAGE", package)
    monkeypatch.setattr(setup_env, "BUILD_RECORD", package / "_C.json")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    setup_env.STAMP.write_text(setup_env.pinned_packages())
    setup_env.BUILD_RECORD.write_text(json.dumps({"torch": torch.__version__}))
    return tmp_path


@pytest.fixture
def commands(monkeypatch):
    """The arguments of each call of pip; the final import check passes."""
    calls = []
    monkeypatch.setattr(setup_env, "pip_install", lambda python, *arguments: calls.append(arguments))
    monkeypatch.setattr(setup_env, "CHECK", "")
    return calls


def package_is_current():
    return setup_env.package_is_current(sys.executable)


@pytest.mark.parametrize("version", [(3, 9), (3, 14)])
def test_unsupported_python_is_rejected(version):
    with pytest.raises(SystemExit, match=r"error: python3\.\d+ is not supported: choose one of Python 3\.10 to 3\.13"):
        setup_env.venv_command(version)


@pytest.mark.parametrize(
    ("modules", "expected"), [({"venv", "ensurepip"}, "venv"), ({"venv", "virtualenv"}, "virtualenv")]
)
def test_venv_is_created_by_venv_or_virtualenv(monkeypatch, modules, expected):
    monkeypatch.setattr(setup_env, "is_installed", modules.__contains__)
    assert setup_env.venv_command((3, 12))[:3] == [sys.executable, "-m", expected]


def test_missing_venv_module_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr(setup_env, "is_installed", {"venv"}.__contains__)
    with pytest.raises(SystemExit, match=r"has no venv module: .*`apt install python3\.12-venv`"):
        setup_env.venv_command((3, 12))


def test_folder_is_not_an_installed_module(monkeypatch, tmp_path):
    """A clone of Detectron2 next to the project is a folder of that name."""
    (tmp_path / "some_clone").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not setup_env.is_installed("some_clone")
    assert setup_env.is_installed("pytest")


def test_complete_venv_needs_nothing(project, commands):
    assert not setup_env.set_up(setup_env.VENV_PYTHON)
    assert commands == []
    setup_env.VENV_PYTHON.unlink()
    assert not setup_env.packages_are_current()


def test_changed_requirements_are_installed(project, commands):
    setup_env.REQUIREMENTS[0].write_text("another\n")
    assert setup_env.set_up(setup_env.VENV_PYTHON)
    assert [arguments[-1] for arguments in commands] == list(map(str, setup_env.REQUIREMENTS))
    assert "--require-hashes" in commands[1]
    assert f"--target={project / '.venv/lib/python3.12/site-packages'}" in commands[1]
    assert not setup_env.set_up(setup_env.VENV_PYTHON)


def test_failed_check_leaves_the_set_up_unfinished(project, commands, monkeypatch):
    setup_env.STAMP.unlink()
    monkeypatch.setattr(setup_env, "CHECK", "import no_such_module")
    with pytest.raises(SystemExit, match="cannot import what the project needs"):
        setup_env.set_up(setup_env.VENV_PYTHON)
    assert not setup_env.packages_are_current()


def test_other_interpreter_gets_the_package_only(project, commands):
    setup_env.STAMP.unlink()
    setup_env.BUILD_RECORD.unlink()
    assert setup_env.set_up(sys.executable)
    assert [arguments[-1] for arguments in commands] == [".[export]"]


def test_pip_failure_ends_the_set_up(monkeypatch):
    with pytest.raises(SystemExit, match="error: pip failed, see above"):
        setup_env.pip_install(sys.executable, "--no-such-option")


@pytest.mark.parametrize("source", ["setup.py", "projects/CLoCKDistill/clockdistill/layers/csrc/kernel.cpp"])
def test_newer_sources_are_compiled_again(project, source):
    assert package_is_current()
    os.utime(project / source, (setup_env.BUILD_RECORD.stat().st_mtime + 1,) * 2)
    assert not package_is_current()


def test_operators_are_compiled_again_for_another_torch(project):
    setup_env.BUILD_RECORD.write_text('{"torch": "2.0.0+cpu"}')
    assert not package_is_current()


def test_package_of_another_folder_is_replaced(project, monkeypatch):
    monkeypatch.setattr(setup_env, "PACKAGE", setup_env.PACKAGE.rename(project / "clockdistill"))
    monkeypatch.setattr(setup_env, "BUILD_RECORD", setup_env.PACKAGE / "_C.json")
    assert not package_is_current()


def test_every_dependency_is_pinned():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+(; python_version (<|>=) "3\.11")?', line) for line in lines)
    listed = re.findall(r'^        "([\w-]+)', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert "torch" in listed
    assert set(listed) <= {line.split("==")[0] for line in lines}


def test_pre_commit_runs_the_pinned_ruff():
    version = re.search(r"^ruff==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE).group(1)
    assert f"rev: v{version}\n" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_citation_has_the_version_of_the_package():
    assert f"\nversion: {clockdistill.__version__}\n" in (ROOT / "CITATION.cff").read_text()
