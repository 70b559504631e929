"""Nothing from the wire, the folder or a command line is unpickled or evaluated.

The tests read the syntax of every file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("common", "master", "worker", "docker", "examples")
MODULES = {
    "pickle", "cPickle", "_pickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve",
    "marshal", "jsonpickle", "yaml", "xmlrpc",
    "runpy", "code", "codeop", "imp",
}  # fmt: skip
NAMES = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "execfile",
}  # of builtins: not called, and not given another name either
READERS = {  # what a function is, and the keywords that make it safe
    "torch.load": {"weights_only": True},
    "torch.serialization.load": {"weights_only": True},
    "numpy.load": {"allow_pickle": False},
    "numpy.lib.npyio.load": {"allow_pickle": False},
}
FORBIDDEN = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.jit.load",
    "torch.hub.load",
    "torch.package.PackageImporter", "torch.hub.load_state_dict_from_url", "torch.export.load",
}  # fmt: skip
UNSAFE = {
    "read_pickle",
    "to_pickle",
    "extractall",
    "unsafe_load",
    "full_load",
    "torch_load",
    "jit_load",
}  # whatever they are called on
LOADING = {
    "exec_module",
    "spec_from_file_location",
    "source_to_code",
    "run_path",
    "run_module",
    "load_module",
    "load_source",
}
IMPORTERS = {"importlib.import_module", "importlib.__import__"}
# Where our own packages are loaded although others have their names.
LOADERS = {"coarsefine/isolation/ours.py"}
# Where modules are imported whose names stand in tables of the program itself; and a user's task,
# from a copy of bytes whose digest was compared.
OWN_NAMES = {
    "coarsefine/isolation/ours.py",
    "master/export/files.py",
    "worker/run/fork_server.py",
    "worker/tasks/importing.py",
}


def findings(source: str, file: str = "x.py") -> list[str]:
    """What a file does that might run what it reads, as ``file:line what``."""
    tree = ast.parse(source)
    return [f"{file}:{line} {what}" for line, what in _found(tree, _aliases(tree), file)]


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Return a file's names for what it imports.

    Names that only stand for another name count too.
    """
    known = {"np": "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            known |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and isinstance(
            node.value, ast.Name | ast.Attribute
        ):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            meant = _resolved(node.value, known)
            if meant in {*READERS, *FORBIDDEN, *IMPORTERS}:
                known |= {target.id: meant for target in targets if isinstance(target, ast.Name)}
    return known


def _resolved(node: ast.expr, known: dict[str, str]) -> str:
    """What a name or a dotted name is, its aliases replaced; builtins without their module."""
    first, dot, rest = ast.unparse(node).partition(".")
    name = known.get(first, first) + dot + rest
    return name.removeprefix("builtins.").removeprefix("__builtins__.")


def _found(tree: ast.AST, known: dict[str, str], file: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                (node.lineno, alias.name) for alias in node.names if _forbidden_module(alias.name)
            )
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            if _forbidden_module(node.module or ""):
                yield node.lineno, str(node.module)
            yield from (
                (node.lineno, name)
                for name in whole
                if name in FORBIDDEN or name.removeprefix("builtins.") in NAMES
            )
        elif isinstance(node, ast.Call):
            yield from (
                (node.lineno, what) for what in _called(node, _resolved(node.func, known), file)
            )
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = _resolved(node, known)
            if name in NAMES or name in FORBIDDEN:
                yield node.lineno, name


def _forbidden_module(name: str) -> bool:
    return name.partition(".")[0] in MODULES


def _called(node: ast.Call, name: str, file: str) -> Iterator[str]:
    last = name.rpartition(".")[2]
    if last in UNSAFE or (last in LOADING and file not in LOADERS):
        yield name
    if name in (*IMPORTERS, "__import__"):
        named = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if not isinstance(named, str):
            if file not in OWN_NAMES:
                yield f"{name} of a name made at run time"
        elif _forbidden_module(named):
            yield f"{name} of {named}"
    if name == "getattr" and any(
        isinstance(word, ast.Constant) and word.value in NAMES for word in node.args
    ):
        yield f"{name} of a name that evaluates"
    wanted = READERS.get(name, {})
    given = {
        word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)
    }
    if any(given.get(word) is not value for word, value in wanted.items()):
        yield f"{name} without {', '.join(f'{word}={value}' for word, value in wanted.items())}"
    for word in ("allow_pickle", "shell"):
        if given.get(word) is True:
            yield f"{name} with {word}=True"


def test_the_house_evaluates_nothing() -> None:
    files = sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))
    assert len(files) > 100
    assert [
        line
        for path in files
        for line in findings(path.read_text(), path.relative_to(ROOT).as_posix())
    ] == []


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle", "pickle"),
        ("def f():\n    from joblib import load", "joblib"),
        ("import yaml", "yaml"),
        ("eval('1')", "eval"),
        ("exec(code, names)", "exec"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("from torch import load\nload(path)", "torch.load without weights_only=True"),
        ("from torch import load as read\nread(path)", "torch.load without weights_only=True"),
        ("import torch as th\nth.load(path)", "torch.load without weights_only=True"),
        ("import torch\nread = torch.load\nread(path)", "torch.load without weights_only=True"),
        (
            "from torch.serialization import load\nload(path)",
            "torch.serialization.load without weights_only=True",
        ),
        ("torch.jit.load(path)", "torch.jit.load"),
        ("from torch.jit import load", "torch.jit.load"),
        ("from torch import jit\njit.load(path)", "torch.jit.load"),
        ("import torch.jit as fast\nfast.load(path)", "torch.jit.load"),
        ("torch.hub.load(name, 'x')", "torch.hub.load"),
        (
            "import importlib\nimportlib.import_module('pickle')",
            "importlib.import_module of pickle",
        ),
        (
            "from importlib import import_module\nimport_module('pickle')",
            "importlib.import_module of pickle",
        ),
        (
            "from importlib import import_module as bring\nbring(name)",
            "importlib.import_module of a name made at run time",
        ),
        ("__import__('pickle')", "__import__"),
        ("import builtins\nbuiltins.exec(code)", "exec"),
        ("import builtins as b\nb.eval(code)", "eval"),
        ("from builtins import exec as run\nrun(code)", "builtins.exec"),
        ("f = eval\nf(code)", "eval"),
        ("list(map(eval, lines))", "eval"),
        ("getattr(module, 'eval')(code)", "getattr of a name that evaluates"),
        ("import runpy\nrunpy.run_module(name)", "runpy.run_module"),
        ("from runpy import run_path", "runpy"),
        ("np.load(path)", "numpy.load without allow_pickle=False"),
        ("np.load(path, allow_pickle=True)", "numpy.load without allow_pickle=False"),
        ("from numpy import load\nload(path)", "numpy.load without allow_pickle=False"),
        ("np.save(path, x, allow_pickle=True)", "numpy.save with allow_pickle=True"),
        ("pd.read_pickle(path)", "pd.read_pickle"),
        ("archive.extractall(path)", "archive.extractall"),
        ("subprocess.run(command, shell=True)", "subprocess.run with shell=True"),
        ("os.system(command)", "os.system"),
        ("from os import system as run\nrun(command)", "os.system"),
        ("spec.loader.exec_module(module)", "spec.loader.exec_module"),
    ],
)
def test_a_planted_evaluation_is_found(source: str, what: str) -> None:
    assert any(found.endswith(f" {what}") for found in findings(source))


def test_what_is_safe_is_not_reported() -> None:
    loads = (
        "torch.load(f, map_location='cpu', weights_only=True)\n"
        "np.load(f, allow_pickle=False)\nread(f, weights_only=True)"
    )
    plain = (
        "re.compile('a')\nmodule.eval()\ntorch.compile(step)\njson.load(f)\n"
        "importlib.import_module('json')"
    )
    assert (
        findings(
            f"import importlib, json, re, torch\nfrom torch import load as read\n{plain}\n{loads}"
        )
        == []
    )
