"""tools/gpu_report.sh with a stand-in for Python, so that it takes no time and needs no GPU."""

import os
import re
import shlex
import shutil
import subprocess

import pytest

from helpers.documents import ROOT
from test_docs import check_command

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="no timeout command")


def write_report(folder, python):
    """Run the script with a shell script in place of Python; return the exit status and the report."""
    stand_in = folder / "python"
    stand_in.write_text(f"#!/bin/sh\n{python}\n", encoding="utf-8")
    stand_in.chmod(0o755)
    report = folder / "new" / "report.md"
    command = [ROOT / "tools/gpu_report.sh", report]
    result = subprocess.run(command, env=os.environ | {"PYTHON": str(stand_in)}, capture_output=True, cwd=folder)
    return result.returncode, report.read_text(encoding="utf-8")


def steps(report):
    """Return title and text of each step."""
    return dict(re.findall(r"^## (.+)\n\n((?:(?!^## ).*\n)+)", report, re.MULTILINE))


def test_without_a_gpu_only_versions_are_reported(tmp_path, monkeypatch):
    status, report = write_report(tmp_path, "true")
    assert status == 0
    assert "\nno GPU, " in report
    left_out = {title for title, text in steps(report).items() if "Left out: there is no GPU." in text}
    assert steps(report).keys() - left_out == {"Versions"}
    assert len(left_out) > 8
    monkeypatch.chdir(ROOT)
    commands = [shlex.split(text.splitlines()[0]) for text in steps(report).values()]
    for words in commands:
        if "python" in words and "setup.py" not in words:
            check_command(words[words.index("python") :], ROOT, set())
        for word in words:
            assert not word.startswith("tests/") or (ROOT / word).is_file()


def test_failures_are_counted(tmp_path):
    python = 'case "$*" in -c*) echo "Some GPU";; *test_gpu*) exit 3;; *) echo "did $1";; esac'
    status, report = write_report(tmp_path, python)
    assert status == 1
    assert "\nSome GPU, " in report
    assert "**Failed with exit status 3** after" in steps(report)["Tests of the detectors"]
    assert "did tools/demo.py" in steps(report)["Demo"]
    assert "Passed after" in steps(report)["Demo"]
    if shutil.which("compute-sanitizer") is None:
        assert "Left out: compute-sanitizer is not installed." in steps(report)["compute-sanitizer, memcheck"]


def test_no_interpreter(tmp_path):
    result = subprocess.run(
        [ROOT / "tools/gpu_report.sh", tmp_path / "report.md"],
        env=os.environ | {"PYTHON": "/no/python"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: there is no /no/python: run `make env` or set PYTHON")
    assert not (tmp_path / "report.md").exists()
