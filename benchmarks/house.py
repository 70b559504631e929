"""Measures of how readable the code is: folders, names, line lengths.

Several checkouts are shown side by side.

    python benchmarks/house.py [TREE ...]
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("coarsefine", "common", "master", "worker")
# Past participles that do not end in "ed". A function whose name begins with one is named after its
# result instead of what it does.
IRREGULAR = frozenset(
    (  # noqa: SIM905
        "made told said known taken given found held seen shown drawn begun written left sent kept "
        "built thought spent grown done gone chosen laid met paid spoken bred dealt"
    ).split()
)
# Where a trial's data is between its claim and the report of its end: two modules of `common`, and
# `worker` without arithmetic and models.
PATH = (
    *("common/search/trial.py", "common/folder/record.py"),
    *("worker/run/", "worker/own/", "worker/training/"),
)
OFF_PATH = ("worker/training/math/", "worker/training/model/")
NO_PARTICIPLE = frozenset(["need", "feed", "seed", "speed", "embed", "shed", "proceed", "exceed"])


def files_of(tree: Path) -> list[Path]:
    """Return the tracked Python files of the packages."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", *PACKAGES], cwd=tree, capture_output=True, text=True, check=True
    )
    return [tree / name for name in listing.stdout.split("\0") if name.endswith(".py")]


def functions_of(module: ast.Module) -> Iterator[str]:
    """Yield the names of functions and methods, without properties and special methods."""
    for node in ast.walk(module):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith(
            "__"
        ):
            continue
        decorators = {ast.unparse(one).rpartition(".")[2] for one in node.decorator_list}
        if not decorators & {"property", "cached_property", "setter"}:
            yield node.name


def is_participle(name: str) -> bool:
    """Return whether the first word of a function's name is a past participle."""
    word = name.strip("_").partition("_")[0]
    return word in IRREGULAR or (word.endswith("ed") and word not in NO_PARTICIPLE)


def is_data_class(node: ast.AST) -> bool:
    """Return whether a node is a class that is made to hold values: a dataclass or the like."""
    if not isinstance(node, ast.ClassDef):
        return False
    bases = {ast.unparse(base) for base in node.bases}
    decorators = {ast.unparse(one).partition("(")[0] for one in node.decorator_list}
    return bool(bases & {"NamedTuple", "BaseModel"} or "dataclass" in decorators)


def measure(tree: Path) -> dict[str, str]:
    """Return the figures of one checkout, by their titles."""
    files = files_of(tree)
    modules = Counter(
        file.parent.relative_to(tree).as_posix() for file in files if file.name != "__init__.py"
    )
    parsed = [ast.parse(file.read_text()) for file in files]
    on_path = [
        module
        for file, module in zip(files, parsed, strict=True)
        if (name := file.relative_to(tree).as_posix()).startswith(PATH)
        and not name.startswith(OFF_PATH)
    ]
    names = [name for module in parsed for name in functions_of(module)]
    participles = [name for name in names if is_participle(name)]
    lines = [(len(line), file) for file in files for line in file.read_text().splitlines()]
    docs = [
        (len(line), file)
        for file in [tree / "README.md", *(tree / "docs").glob("*.md")]
        for line in file.read_text().splitlines()
    ]
    prose = [length for length, _ in docs]
    widest = modules.most_common(1)[0]
    return {
        "modules": f"{sum(modules.values())} in {len(modules)} folders",
        "most modules in a folder": f"{widest[1]} ({widest[0]})",
        "folders with more than 16": str(sum(n > 16 for n in modules.values())),
        "functions": str(len(names)),
        "named by a past participle": f"{len(participles)} "
        f"({100 * len(participles) / len(names):.1f} %)",
        "classes": str(
            sum(isinstance(node, ast.ClassDef) for module in parsed for node in ast.walk(module))
        ),
        "data classes, claim to finish": str(
            sum(is_data_class(node) for module in on_path for node in ast.walk(module))
        ),
        "longest line of code": str(max(lines)[0]),
        "lines of code above 100": str(sum(length > 100 for length, _ in lines)),
        "longest line of the docs": str(max(prose)),
        "words of the README": str(len((tree / "README.md").read_text().split())),
    }


def main() -> None:
    """Print one column for each tree."""
    trees = [Path(name).resolve() for name in sys.argv[1:]] or [Path(__file__).resolve().parents[1]]
    columns = [measure(tree) for tree in trees]
    width = max(map(len, columns[0]))
    for row in columns[0]:
        print(f"{row:<{width}}", *(f"{column[row]:>28}" for column in columns))


if __name__ == "__main__":
    main()
