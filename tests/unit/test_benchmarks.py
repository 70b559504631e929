"""What benchmarks and examples import of this program is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("coarsefine", "common", "master", "worker")
FILES = sorted(
    file
    for folder in ("benchmarks", "examples", "docker")
    for file in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_name_that_it_imports_is_there(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(OURS):
            continue
        try:
            module = importlib.import_module(node.module or "")
        except ModuleNotFoundError as error:
            if (error.name or "").startswith(OURS):
                raise
            continue  # a companion's library is not installed
        for alias in node.names:
            if not hasattr(module, alias.name):
                importlib.import_module(
                    f"{module.__name__}.{alias.name}"
                )  # raises if it is missing
