"""Nothing from the wire, the folder or a command line is unpickled or evaluated: read off the syntax of every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("common", "master", "worker", "docker", "examples")
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "yaml", "xmlrpc"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
READERS = {  # name of a function, and the keywords that make it safe
    "torch.load": {"weights_only": True},
    "np.load": {"allow_pickle": False},
    "numpy.load": {"allow_pickle": False},
}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
UNSAFE = {"read_pickle", "to_pickle", "extractall", "unsafe_load", "full_load", "torch_load", "jit_load"}
# Where code is loaded on purpose: a user's task, as bytes whose digest was compared.
LOADERS = {"worker/tasks/loader.py"}


def findings(source: str, file: str = "x.py") -> list[str]:
    """What a file does that might run what it reads, as ``file:line what``."""
    return [f"{file}:{line} {what}" for line, what in _found(ast.parse(source), file)]


def _found(tree: ast.AST, file: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in _called(node, ast.unparse(node.func), file))


def _called(node: ast.Call, name: str, file: str) -> Iterator[str]:
    last = name.rpartition(".")[2]
    if name in CALLS or name in SHELLS or last in UNSAFE or name.endswith("builtins.eval"):
        yield name
    if last in ("exec_module", "spec_from_file_location", "source_to_code", "run_path") and file not in LOADERS:
        yield name
    wanted = READERS.get(name, {})
    given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
    if any(given.get(word) is not value for word, value in wanted.items()):
        yield f"{name} without {', '.join(f'{word}={value}' for word, value in wanted.items())}"
    for word in ("allow_pickle", "shell"):
        if given.get(word) is True:
            yield f"{name} with {word}=True"


def test_the_house_evaluates_nothing() -> None:
    files = sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))
    assert len(files) > 100
    assert [line for path in files for line in findings(path.read_text(), path.relative_to(ROOT).as_posix())] == []


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
        ("np.load(path)", "np.load without allow_pickle=False"),
        ("np.load(path, allow_pickle=True)", "np.load without allow_pickle=False"),
        ("np.save(path, x, allow_pickle=True)", "np.save with allow_pickle=True"),
        ("pd.read_pickle(path)", "pd.read_pickle"),
        ("archive.extractall(path)", "archive.extractall"),
        ("subprocess.run(command, shell=True)", "subprocess.run with shell=True"),
        ("os.system(command)", "os.system"),
        ("spec.loader.exec_module(module)", "spec.loader.exec_module"),
    ],
)
def test_a_planted_evaluation_is_found(source: str, what: str) -> None:
    assert any(found.endswith(f" {what}") for found in findings(source))


def test_what_is_safe_is_not_reported() -> None:
    loads = "torch.load(f, map_location='cpu', weights_only=True)\nnp.load(f, allow_pickle=False)"
    assert findings(f"import json, re\nre.compile('a')\n{loads}\nmodule.eval()") == []
