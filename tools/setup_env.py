"""Set up the environment (`make env`). Uses the standard library only, since nothing is installed yet.

Create .venv with the pinned packages, Detectron2 and this project with its operators compiled; do only what is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "requirements-detectron2.txt"]
STAMP = VENV / "installed-requirements.txt"  # what REQUIREMENTS contained when they were last installed
PACKAGE = ROOT / "projects" / "CLoCKDistill" / "clockdistill"
BUILD_RECORD = PACKAGE / "_C.json"  # written by setup.py
QUERY = (
    "import clockdistill, importlib.metadata; "
    "print(clockdistill.__file__, importlib.metadata.version('torch').split('+')[0])"
)
CHECK = "import cv2, detectron2.engine; from clockdistill.collect_env import operators_info; print(operators_info())"


def fail(message: str):
    sys.exit(f"error: {message}")


def is_installed(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # a folder of that name has no origin


def venv_command(version: tuple[int, int] = sys.version_info[:2]) -> list[str]:
    """The command that creates .venv from this interpreter."""
    name = "python{}.{}".format(*version)
    if not (3, 10) <= version <= (3, 13):
        fail(f"{name} is not supported: choose one of Python 3.10 to 3.13, e.g. `make env PYTHON=python3.12`")
    module = "venv" if is_installed("venv") and is_installed("ensurepip") else "virtualenv"
    if not is_installed(module):
        fail(f"{sys.executable} has no venv module: install it (Debian and Ubuntu: `apt install {name}-venv`)")
    return [sys.executable, "-m", module, "--clear", str(VENV)]


def detectron2_arguments(site_packages: Path) -> list[str]:
    """pip's arguments for Detectron2. Its wheel is tagged for Python 3.10; for another, pip insists on --target."""
    pretend = ["--python-version=3.10", "--only-binary=:all:", "--no-deps", "--upgrade", f"--target={site_packages}"]
    return [*pretend, "--require-hashes", "-r", str(REQUIREMENTS[1])]


def pip_install(python: str | Path, *arguments: str) -> None:
    # Without the warnings about Detectron2's wheel, which asks for NumPy 1 and black and needs neither.
    quiet = ["--disable-pip-version-check", "--no-warn-conflicts"]
    command = [str(python), "-m", "pip", "install", *quiet, *arguments]
    if subprocess.run(command, cwd=ROOT).returncode:
        fail("pip failed, see above: fix the cause, or delete .venv, and run make again")


def pinned_packages() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in REQUIREMENTS)


def packages_are_current() -> bool:
    return VENV_PYTHON.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == pinned_packages()


def package_is_current(python: str | Path) -> bool:
    """Whether an interpreter has this very package, and its operators were built from these sources for its torch."""
    sources = [ROOT / "setup.py", *(PACKAGE / "layers" / "csrc").iterdir()]
    if not BUILD_RECORD.exists() or BUILD_RECORD.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        return False
    built_for = json.loads(BUILD_RECORD.read_text(encoding="utf-8"))["torch"]
    found = subprocess.run([str(python), "-c", QUERY], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    # The version that torch reports has a suffix such as +cu130, which its package on PyPI lacks.
    return found.stdout.strip() == f"{PACKAGE / '__init__.py'} {built_for.split('+')[0]}"


def set_up(python: str | Path) -> bool:
    """Install what is missing; return whether anything was."""
    packages_missing = python == VENV_PYTHON and not packages_are_current()
    if packages_missing:
        if not VENV_PYTHON.exists() and subprocess.run(venv_command()).returncode:
            fail("cannot create .venv, see above")
        print("Installing the packages into .venv (up to 3 GB to download, 5 GB on disk)", flush=True)
        pip_install(python, "-r", str(REQUIREMENTS[0]))
        pip_install(python, "-q", *detectron2_arguments(next(VENV.glob("lib/python3.*/site-packages"))))
    package_missing = not package_is_current(python)
    if package_missing:
        print("Installing clockdistill and compiling its operators (about half a minute)", flush=True)
        pip_install(python, "-q", "--no-build-isolation", "-e", ".[export]")
    if not packages_missing and not package_missing:
        return False
    if subprocess.run([str(python), "-W", "ignore", "-c", CHECK], cwd=ROOT).returncode:
        fail(f"{python} cannot import what the project needs, see above")
    if packages_missing:
        STAMP.write_text(pinned_packages(), encoding="utf-8")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--named", action="store_true", help="use this interpreter if it has torch and Detectron2")
    parser.add_argument("--which", action="store_true", help="only print the path of the interpreter that is used")
    args = parser.parse_args()
    python = sys.executable if args.named and is_installed("torch") and is_installed("detectron2") else VENV_PYTHON
    if args.which:
        print(python)
    else:
        print(f"{python}: {'ready' if set_up(python) else 'nothing to install'}")


if __name__ == "__main__":
    main()
