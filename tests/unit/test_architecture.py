"""The dependency rules of the house, read off the imports, and what is packaged and tracked."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("coarsefine", "common", "master", "worker")
MOST_MODULES = 16
MUST_NOT_IMPORT = {
    "common": {"master", "worker", "coarsefine", "torch"},
    "master": {"worker", "coarsefine", "torch"},
    "worker": {"master", "coarsefine"},
    "coarsefine": {"torch", "pandas"},
}
# It imports nothing of the house, so any package may import it.
FREE = "coarsefine.isolation."
# What `--help` may load besides the standard library, since it has to answer at once.
LIGHT = {"click", "common"}
HEAVY = {
    "redis", "numpy", "pandas", "scipy", "sklearn", "torch", "pydantic", "rich", "plotly",
    "tomlkit", "optuna", "pyarrow", "tensorboard",
}  # fmt: skip
GENERATED = (
    "*.pt", "*.pyc", "*.rdb", "*.aof", "*.sock", "*.log", "*.whl", "leaderboard.csv", "ranges.toml",
    "report.html", "plotly-*.min.js", "redis_password",
    "__pycache__", ".venv", "*.egg-info", "secrets", "appendonlydir", ".hypothesis", ".mypy_cache",
    ".ruff_cache", ".pytest_cache",
)  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One imported module, absolute, and whether it is loaded with the importing module itself."""

    module: str
    line: int
    at_top: bool

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def imports(source: str, package: str) -> list[Import]:
    """All imports of a source text; relative ones are resolved against ``package``."""
    return list(_imports(ast.parse(source), package, at_top=True))


def _imports(node: ast.AST, package: str, at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = _base(child, package)
            yield from (
                Import(f"{base}.{alias.name}", child.lineno, at_top) for alias in child.names
            )
        elif isinstance(child, ast.Call) and _loads_by_name(child):
            yield Import(
                str(child.args[0].value),  # type: ignore[attr-defined]
                child.lineno,
                at_top,
            )
        inside = isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        ) or _only_for_types(child)
        yield from _imports(child, package, at_top and not inside)


def _base(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _loads_by_name(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    constant = (
        bool(call.args)
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    )
    return name in {"import_module", "__import__"} and constant


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def module_name(path: PurePosixPath) -> str:
    """Return the module's name: ``master/launchers/local.py`` is ``master.launchers.local``.

    A package's ``__init__.py`` has the name of the package.
    """
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def enclosing(path: PurePosixPath) -> str:
    """The package that a module's relative imports start from."""
    return ".".join(path.parent.parts)


def forbidden(sources: dict[str, str]) -> list[str]:
    """Where a package imports one that it must not know, as ``file:line imports module``."""
    return [
        f"{file}:{found.line} imports {found.module}"
        for file, source in sources.items()
        for found in imports(source, enclosing(PurePosixPath(file)))
        if found.package in MUST_NOT_IMPORT[PurePosixPath(file).parts[0]]
        and not found.module.startswith(FREE)
    ]


def slow_to_start(sources: dict[str, str], entry: str) -> list[str]:
    """Return what ``entry`` loads at its start and is neither light nor standard.

    It follows imports through the modules of the house.
    """
    modules = {module_name(PurePosixPath(file)): (file, source) for file, source in sources.items()}
    waiting, seen, slow = [entry], set(), []
    while waiting:
        name = waiting.pop()
        if name in seen or name not in modules:
            continue
        seen.add(name)
        file, source = modules[name]
        parents = [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]
        waiting += parents
        for found in imports(source, enclosing(PurePosixPath(file))):
            if not found.at_top:
                continue
            if found.package in PACKAGES:
                waiting += [found.module, found.module.rpartition(".")[0]]
            elif found.package not in sys.stdlib_module_names | LIGHT:
                slow.append(f"{file}:{found.line} imports {found.module}")
    return slow


def folder_imports(sources: dict[str, str]) -> dict[str, set[str]]:
    """For each folder those that its modules import from, whether for types alone or not."""
    modules = {module_name(PurePosixPath(file)): enclosing(PurePosixPath(file)) for file in sources}
    found: dict[str, set[str]] = {folder: set() for folder in modules.values()}
    for file, source in sources.items():
        own = enclosing(PurePosixPath(file))
        for one in imports(source, own):
            # The longest beginning of `a.b.Name` that is a module.
            parts = one.module.split(".")
            known = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
            folder = next((modules[name] for name in known if name in modules), own)
            if folder != own:
                found[own].add(folder)
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the nodes of circles and those that reach one; empty where there is none."""
    left = {node: set(others) for node, others in graph.items()}
    while free := [node for node, others in left.items() if not others & left.keys()]:
        for node in free:
            del left[node]
    return sorted(left)


def house() -> dict[str, str]:
    """Every Python file of the three packages, by its path in the repository."""
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in files}


def tracked() -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listing.stdout.split("\0") if name]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_packages_keep_to_their_side() -> None:
    assert forbidden(house()) == []
    free = {name: text for name, text in house().items() if name.startswith(FREE.replace(".", "/"))}
    assert free and not [
        found.module
        for name, text in free.items()
        for found in imports(text, enclosing(PurePosixPath(name)))
        if found.package in PACKAGES
    ]


def test_no_folder_imports_in_a_circle() -> None:
    assert circle(folder_imports(house())) == []


def test_no_module_imports_in_a_circle() -> None:
    as_folders = {
        file.removesuffix(".py") + "/__init__.py": source
        for file, source in house().items()
        if not file.endswith("__init__.py")
    }
    assert circle(folder_imports(as_folders)) == []


def test_a_planted_circle_is_found() -> None:
    sources = {
        "a/b/x.py": "from a.c.y import f",
        "a/c/y.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.b.x import g",
        "a/d/z.py": "from a.b.x import g",
    }
    assert circle(folder_imports(sources)) == ["a.b", "a.c", "a.d"]
    assert circle(folder_imports({**sources, "a/c/y.py": ""})) == []


def test_no_folder_has_more_modules_than_a_newcomer_takes_in() -> None:
    folders = [
        enclosing(PurePosixPath(file)) for file in house() if not file.endswith("__init__.py")
    ]
    assert {folder: n for folder, n in Counter(folders).items() if n > MOST_MODULES} == {}


@pytest.mark.parametrize("entry", ["master.cli", "worker.cli"])
def test_commands_load_nothing_heavy_before_they_run(entry: str) -> None:
    assert entry in {module_name(PurePosixPath(file)) for file in house()}
    assert slow_to_start(house(), entry) == []


@pytest.mark.parametrize("program", ["master", "worker"])
def test_help_loads_nothing_heavy(program: str) -> None:
    """The same from outside, whatever way something might be imported."""
    code = f"""
import sys
from {program}.cli import main
sys.argv = ["{program}", "--help"]
try:
    main()
finally:
    print("loaded:", *sorted({HEAVY!r}.intersection(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "loaded:"


def test_the_package_for_users_loads_nothing_before_a_name_is_used() -> None:
    code = """
import sys
import coarsefine
print(*sorted({"torch", "pandas", "master", "worker", "common"}.intersection(sys.modules)))
print(*(f"{name}={getattr(coarsefine, name).__name__}" for name in coarsefine.__all__))
"""
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    loaded, names = run.stdout.splitlines()
    assert loaded == ""
    assert names == (
        "Data=Data Loaded=Loaded Part=Part SearchError=SearchError Task=Task Trial=OwnTrial "
        "beat=beat load=load report=report search=search"
    )


@pytest.mark.parametrize(
    ("file", "source", "line"),
    [
        (
            "common/queue/trial_queue.py",
            "import master",
            "common/queue/trial_queue.py:1 imports master",
        ),
        (
            "common/queue/trial_queue.py",
            "from worker.run.loop import Loop",
            "common/queue/trial_queue.py:1 imports worker.run.loop.Loop",
        ),
        (
            "common/queue/trial_queue.py",
            "def f():\n    import torch.nn",
            "common/queue/trial_queue.py:2 imports torch.nn",
        ),
        (
            "master/results/ranking.py",
            "import pandas, torch",
            "master/results/ranking.py:1 imports torch",
        ),
        (
            "master/results/ranking.py",
            "try:\n    from worker.run import loop\nexcept ImportError:\n    pass",
            "master/results/ranking.py:2 imports worker.run.loop",
        ),
        (
            "master/a.py",
            "import importlib\nimportlib.import_module('torch')",
            "master/a.py:2 imports torch",
        ),
        (
            "worker/tasks/digits.py",
            "from master.results.ranking import rank",
            "worker/tasks/digits.py:1 imports master.results.ranking.rank",
        ),
    ],
)
def test_a_planted_import_is_found(file: str, source: str, line: str) -> None:
    assert forbidden({file: source}) == [line]


def test_an_allowed_import_is_not_reported() -> None:
    sources = {
        "master/a.py": "from common.queue.trial_queue import TrialQueue\nfrom . import b",
        "worker/a.py": "import torch\nfrom common import trial",
    }
    assert forbidden(sources) == []


def test_a_heavy_import_is_found_behind_a_light_one() -> None:
    sources = {
        "master/__init__.py": "",
        "master/cli.py": (
            "import os\nimport click\nfrom common.options import leave\ndef run():\n"
            "    import pandas"
        ),
        "common/__init__.py": "",
        "common/options.py": (
            "from common import errors\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    import redis"
        ),
        "common/errors.py": "import numpy as np",
    }
    assert slow_to_start(sources, "master.cli") == ["common/errors.py:1 imports numpy"]
    assert slow_to_start({**sources, "common/errors.py": ""}, "master.cli") == []
    assert slow_to_start(
        {**sources, "common/errors.py": "", "master/__init__.py": "import rich"}, "master.cli"
    ) == ["master/__init__.py:1 imports rich"]


def test_packages_are_listed_as_they_are_on_disk() -> None:
    on_disk = {enclosing(PurePosixPath(file)) for file in house()}
    assert sorted(project()["tool"]["setuptools"]["packages"]) == sorted(on_disk)
    assert all((ROOT / package.replace(".", "/") / "__init__.py").is_file() for package in on_disk)


def test_every_file_that_is_not_python_is_packaged() -> None:
    patterns = project()["tool"]["setuptools"]["package-data"]
    files = [
        PurePosixPath(name)
        for name in tracked()
        if name.startswith(tuple(f"{package}/" for package in PACKAGES))
    ]
    data = [file for file in files if file.suffix != ".py"]
    assert data, "the packages have templates and scripts of Lua"
    for file in data:
        rest = file.relative_to(file.parts[0])
        assert any(rest.match(pattern) for pattern in patterns.get(file.parts[0], [])), (
            f"{file} is not packaged"
        )


def test_each_pattern_of_package_data_finds_a_file() -> None:
    for package, patterns in project()["tool"]["setuptools"]["package-data"].items():
        assert all(list((ROOT / package).glob(pattern)) for pattern in patterns)


def test_every_library_is_pinned() -> None:
    pins = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    extras = project()["project"]["optional-dependencies"].values()
    wanted = [*project()["project"]["dependencies"], *(item for extra in extras for item in extra)]
    names = {
        item.partition(">=")[0].partition("[")[0].strip().lower().replace("_", "-")
        for item in wanted
    }
    assert names <= pins


def test_nothing_generated_is_tracked() -> None:
    kept = {"checkpoints/README.md", "data/README.md"}
    assert kept <= set(tracked())
    assert generated(tracked()) == []
    made = [
        "checkpoints/digits/search.toml",
        "data/mnist/labels.gz",
        "a/b.pt",
        "secrets/redis_password",
        "x/__pycache__/y.py",
    ]
    assert generated([*made, *kept]) == made


def generated(names: list[str]) -> list[str]:
    """Those of the names that a run, an installation or a tool leaves behind."""
    return [
        name
        for name in names
        if (
            name.startswith(("checkpoints/", "data/"))
            and name not in ("checkpoints/README.md", "data/README.md")
        )
        or any(
            PurePosixPath(part).match(pattern)
            for part in PurePosixPath(name).parts
            for pattern in GENERATED
        )
    ]
