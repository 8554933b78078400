"""Makes an interpreter ready for this project: `make env`. It runs before anything is installed: standard library only.

What an interpreter already has is kept; what is missing comes from requirements.txt at its pinned version.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
# There while .venv is being made: a set-up that was interrupted starts afresh.
UNFINISHED = ROOT / ".venv-unfinished"
LOCK = ROOT / ".venv-lock"
PACKAGE_DIR = ROOT / "projects" / "CLoCKDistill"
# what setup.py leaves beside the compiled operators, or in their place
OPERATORS = PACKAGE_DIR / "clockdistill" / "_C.json"
GPU = Path("/dev/nvidia0")

SUPPORTED = ((3, 10), (3, 13))
FLOORS = {"torch": (2, 4), "setuptools": (70, 1)}
# Each version formats a little differently, so that another one than the pinned would find fault with good files.
EXACT = ("ruff",)
MODULES = {"opencv-python-headless": "cv2", "pillow": "PIL", "hydra-core": "hydra"}
IMPORTS = "import torch, torchvision, cv2, pycocotools.mask, detectron2.engine, clockdistill"


class SetupError(Exception):
    """What went wrong and what to do about it, in one sentence."""


def read_requirements(text: str) -> dict[str, list[str]]:
    """Name of each package -> its lines, of which the markers leave one for any Python."""
    requirements: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirements.setdefault(line.split("==")[0], []).append(line)
    return requirements


def release(version: str) -> tuple[int, ...]:
    """'2.11.0+cu130' -> (2, 11, 0); what is no number ends it."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version).group().strip(".").split(".") if part)


def is_usable(name: str, lines: list[str], version: str | None) -> bool:
    """Whether the installed version ('' where it is not known, None where it is absent) can stay."""
    if version is None:
        return False
    if name in EXACT:
        return any(line.split(";")[0] == f"{name}=={version}" for line in lines)
    return not version or release(version) >= FLOORS.get(name, ())


def plan(requirements: dict[str, list[str]], installed: dict[str, str | None]) -> tuple[list[str], list[str]]:
    """What pip has to install, and the constraints that keep it from changing anything else."""
    kept = {name for name, lines in requirements.items() if is_usable(name, lines, installed.get(name))}
    wanted = {name: lines for name, lines in requirements.items() if name not in kept}
    # Torchvision is built for one version of torch: it follows whichever that is.
    if "torch" in wanted:
        wanted["torchvision"] = requirements["torchvision"]
    elif "torchvision" in wanted:
        wanted["torchvision"] = ["torchvision"]
    constraints = [f"{name}=={installed[name]}" for name in kept if name not in wanted and installed[name]]
    return [line for lines in wanted.values() for line in lines], sorted(constraints)


def find_nvcc() -> str | None:
    """Where torch would look for it, to be sure of it without an import of torch."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc", path=os.path.join(home, "bin")) or shutil.which("nvcc")


def operators_are_current(torch: str | None) -> bool:
    """Whether setup.py has done with these sources and this version of torch what it could."""
    sources = [ROOT / "setup.py", *(PACKAGE_DIR / "clockdistill" / "layers" / "csrc").iterdir()]
    if not OPERATORS.exists() or OPERATORS.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        return False
    record = json.loads(OPERATORS.read_text(encoding="utf-8"))
    if torch and release(record["torch"]) != release(torch):
        return False
    # built where there was no GPU or no nvcc, as on the login node of a cluster, and now there are both
    lacked_gpu = record.get("cuda") is None and re.match("no (GPU|nvcc) was ", record.get("problem", ""))
    return not (lacked_gpu and GPU.exists() and find_nvcc())


def probe() -> dict:
    """What this interpreter has. Nothing is imported, so that it takes no time."""
    installed = {}
    for name in read_requirements((ROOT / "requirements.txt").read_text(encoding="utf-8")):
        if find_origin(MODULES.get(name, name)) is None:
            installed[name] = None
            continue
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = ""
    package = find_origin("clockdistill")
    return {
        "executable": sys.executable,
        "base_executable": getattr(sys, "_base_executable", sys.executable),
        "python": list(sys.version_info[:3]),
        "installed": installed,
        "detectron2": find_origin("detectron2") is not None,
        "clockdistill": package is not None
        and PACKAGE_DIR in Path(package).resolve().parents
        and operators_are_current(installed["torch"]),
        "pip": find_origin("pip") is not None,
        "venv": find_origin("venv") is not None and find_origin("ensurepip") is not None,
        "virtualenv": find_origin("virtualenv") is not None,
        "site_packages": sysconfig.get_path("purelib"),
    }


def find_origin(module: str) -> str | None:
    """The file a module comes from; None where there is none, as for a mere folder of that name."""
    spec = importlib.util.find_spec(module)
    return spec.origin if spec else None


def probe_other(python: Path) -> dict:
    result = subprocess.run([python, __file__, "--probe"], stdout=subprocess.PIPE)
    if result.returncode:
        raise SetupError(f"{python} does not run; remove {VENV} and run make again.")
    return json.loads(result.stdout)


def has_detector_stack(state: dict) -> bool:
    """Whether an interpreter is used as it stands: it has Detectron2 and a torch that is new enough."""
    return state["detectron2"] and is_usable("torch", [], state["installed"]["torch"])


def venv_command(state: dict) -> list[str]:
    """The command that makes .venv from this interpreter. SetupError where it cannot."""
    version = "{}.{}".format(*state["python"])
    if not SUPPORTED[0] <= tuple(state["python"][:2]) <= SUPPORTED[1]:
        raise SetupError(
            f"Python {version} is not supported: name one of 3.10 to 3.13, as in `make env PYTHON=python3.12`."
        )
    if state["venv"]:
        return [state["base_executable"], "-m", "venv", "--clear", str(VENV)]
    if state["virtualenv"]:
        return [state["executable"], "-m", "virtualenv", "--clear", "-q", str(VENV)]
    raise SetupError(
        f"This Python cannot make virtual environments: install its venv module (Debian and Ubuntu: "
        f"`apt install python{version}-venv`) and run make again."
    )


def run_pip(python: Path, *arguments: str) -> None:
    """pip without its chatter: one line for each large file. Where it fails, its last lines."""
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = []
    for line in process.stdout:
        output.append(line)
        file = re.match(r"\s*Downloading (?:\S*/)?(\S+?)-\S* \(([\d.]+ [MG]B)\)", line)
        if file:
            print("  downloading {} ({})".format(*file.groups()), flush=True)
        elif line.startswith("Installing collected packages"):
            print("  unpacking", flush=True)
    if process.wait():
        sys.stderr.writelines(output[-20:])
        raise SetupError("pip could not install what is missing (its message is above): mend that and run make again.")


def install(python: Path, state: dict) -> bool:
    """Install what the interpreter lacks; whether that was anything."""
    lines, constraints = plan(
        read_requirements((ROOT / "requirements.txt").read_text(encoding="utf-8")), state["installed"]
    )
    if not lines and state["detectron2"] and state["clockdistill"]:
        return False
    if not state["pip"]:
        raise SetupError(f"{python} has no pip: run `{python} -m ensurepip`, then make again.")
    if lines:
        names = list(dict.fromkeys(line.split("==")[0] for line in lines))
        size = "about 3 GB to download, 5 GB on disk" if "torch" in names else "at most 200 MB to download"
        print(f"Installing into {python.parent.parent}, {size}: {', '.join(names)}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            wanted, kept = Path(folder, "wanted.txt"), Path(folder, "kept.txt")
            wanted.write_text("\n".join(lines), encoding="utf-8")
            kept.write_text("\n".join(constraints), encoding="utf-8")
            run_pip(python, "-r", str(wanted), "-c", str(kept))
    if not state["detectron2"]:
        print("Installing Detectron2, 7 MB", flush=True)
        # The wheel names Python 3.10 and pip takes it for another version only into a folder, so that is said.
        for_any_python = ["--no-deps", "--only-binary=:all:", "--python-version=3.10", "--upgrade"]
        target = f"--target={state['site_packages']}"
        run_pip(python, *for_any_python, target, "--require-hashes", "-r", "requirements-detectron2.txt")
    if not state["clockdistill"]:
        print("Installing clockdistill from this folder, its operators compiled: about half a minute", flush=True)
        run_pip(python, "--no-deps", "--no-build-isolation", "-e", ".")
        print(describe_operators(json.loads(OPERATORS.read_text(encoding="utf-8"))), flush=True)
    return True


def describe_operators(record: dict) -> str:
    """One line: what was compiled, and if not everything, why."""
    if record["cuda"]:
        return f"Operators compiled for the CPU and for CUDA ({record['architectures']})"
    built = "Operators compiled for the CPU; without CUDA" if record["cpu"] else "Operators left to pure PyTorch"
    return f"{built}, since {record['problem']}"


def choose(this: dict, named: bool) -> Path:
    """The interpreter to work with: the named one where that has torch and Detectron2, else .venv's."""
    return Path(this["executable"]) if named and has_detector_stack(this) else VENV_PYTHON


def lock() -> IO:
    """Waits until no other set-up works on .venv; the lock lasts as long as the file is open."""
    file = LOCK.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Waiting for another set-up of this folder to end", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def make_venv(this: dict) -> None:
    command = venv_command(this)
    print("Creating .venv", flush=True)
    UNFINISHED.touch()
    if subprocess.run(command).returncode:
        raise SetupError("The virtual environment could not be made: mend what the message above says.")


def complete(python: Path) -> str:
    """Give an interpreter what it lacks; one line about it."""
    start = time.monotonic()
    state = probe_other(python)
    done = "nothing to install"
    if install(python, state):
        if subprocess.run([python, "-W", "ignore", "-c", IMPORTS], cwd=ROOT).returncode:
            raise SetupError("What was installed does not import: mend what the message above says.")
        state = probe_other(python)
        done = f"ready after {time.monotonic() - start:.0f} s"
    version = ".".join(map(str, state["python"]))
    return f"{python} (Python {version}, torch {state['installed']['torch']}): {done}"


def set_up(this: dict, named: bool) -> None:
    python = choose(this, named)
    if python != VENV_PYTHON:
        print(complete(python))
        return
    with lock():
        if UNFINISHED.exists() or not python.exists():
            make_venv(this)
        print(complete(python))
        UNFINISHED.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--named", action="store_true", help="use this very interpreter if it has torch and Detectron2")
    parser.add_argument("--which", action="store_true", help="only print the interpreter that is set up")
    parser.add_argument("--probe", action="store_true", help="only print what this interpreter has, as JSON")
    args = parser.parse_args()
    try:
        if args.probe:
            print(json.dumps(probe()))
        elif args.which:
            print(choose(probe(), args.named))
        else:
            set_up(probe(), args.named)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
