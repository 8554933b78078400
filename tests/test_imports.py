"""Imports run one way: layers <- modeling <- distillation <- engine; data and evaluation know nothing of models."""

import ast
from pathlib import Path

import pytest

import clockdistill

PACKAGE = Path(clockdistill.__file__).parent
# by subpackage or module; one that is not listed may import modules of the top level only
MAY_IMPORT = {
    "layers": set(),
    "modeling": {"layers"},
    "distillation": {"layers", "modeling"},
    "data": set(),
    "evaluation": {"data", "layers"},
    "export": {"evaluation", "layers", "modeling"},
    "engine": {"data", "distillation", "evaluation", "export", "layers", "modeling"},
    "collect_env": {"layers"},
}


def imported_modules(path):
    """Full names of all that a file imports, inside functions too."""
    package = ["clockdistill", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            yield from (".".join([*start, *filter(None, [node.module]), alias.name]) for alias in node.names)


@pytest.mark.parametrize(
    "part", sorted({p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in PACKAGE.rglob("*.py")})
)
def test_imports_run_one_way(part):
    files = [*PACKAGE.glob(f"{part}.py"), *PACKAGE.glob(f"{part}/**/*.py")]
    modules = {name for path in files for name in imported_modules(path)}
    parts = {name.split(".")[1] for name in modules if name.startswith("clockdistill.")}
    assert (parts - {part}) & MAY_IMPORT.keys() <= MAY_IMPORT.get(part, set())
