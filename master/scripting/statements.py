"""The statements of a script or notebook, and those that one of its names needs."""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.errors import TaskError

PACKAGE = "coarsefine"
LAUNCHING = {"search", "load"}  # names of the package that belong to the script alone
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
WITHIN = {"listcomp", "setcomp", "dictcomp", "genexpr"}  # scopes that run with their statement
OF_IPYTHON = {"display", "get_ipython"}  # IPython puts them among the built-in names
KNOWN = (frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__"}) - OF_IPYTHON


@dataclass(frozen=True)
class Source:
    """Source text of a file or a cell, and what messages call it."""

    place: str
    text: str
    lines: int | None = None  # only statements that begin before this line have run


@dataclass(frozen=True)
class Statement:
    """A statement at the top of a script or cell.

    Attributes:
        text: As it was written, with its comments.
        place: For messages, such as ``script.py, line 7``.
        node: As it was parsed.
        binds: The names that it assigns, imports or defines.
        reads: The names that it reads, also within functions when they are called.
        reads_at_once: Those that it reads when it runs. A function reads its decorators and
            defaults, a class the names of its body.
        touches: The names whose objects it may change: ``x[0] = 1``, ``x.append(1)``.
    """

    text: str
    place: str
    node: ast.stmt
    binds: frozenset[str]
    reads: frozenset[str]
    reads_at_once: frozenset[str]
    touches: frozenset[str]

    @property
    def is_import(self) -> bool:
        """Whether it is an import and nothing else."""
        return isinstance(self.node, ast.Import | ast.ImportFrom)

    @property
    def defines(self) -> bool:
        """Whether it defines a function or class, whose names are read later."""
        return isinstance(self.node, DEFINITIONS)

    @property
    def imports_all(self) -> bool:
        """Whether it is ``from module import *``, which binds names that nobody can tell."""
        return isinstance(self.node, ast.ImportFrom) and self.node.names[0].name == "*"

    @property
    def rebinds(self) -> bool:
        """Whether it replaces what its names were before.

        ``import a.b`` and ``import a.c`` both bind ``a``, and both count.
        """
        node = self.node
        with_value = isinstance(node, ast.AnnAssign) and node.value is not None
        return self.defines or isinstance(node, ast.Assign) or with_value

    @property
    def is_guarded(self) -> bool:
        """Whether it is ``if __name__ == "__main__":``, which does not run in a worker."""
        return isinstance(self.node, ast.If) and "__name__" in _loaded(self.node.test)


def read_statements(sources: Sequence[Source]) -> list[Statement]:
    """Return the top-level statements in the order in which they ran.

    A source that is not Python, such as a cell with a syntax error, is skipped.
    """
    found = []
    for source in sources:
        try:
            tree = ast.parse(source.text)
        except (SyntaxError, ValueError):
            continue
        found += [
            _read(node, source)
            for node in tree.body
            if source.lines is None or node.lineno < source.lines
        ]
    return found


def choose_statements(statements: Sequence[Statement], target: str) -> list[Statement]:
    """Return the statements that the target needs, in the order in which they ran.

    A statement is needed if it binds a needed name or changes its object. An earlier binding of a
    name counts only if something read it. Imports come once.

    Args:
        statements: all that ran.
        target: the name of a function or class.

    Raises:
        TaskError: what binds a needed name runs a search, or is skipped in a worker.
    """
    launching = _launching(statements)
    imported = {name for own in statements if own.is_import for name in own.binds}
    end = len(statements)
    needed = _expand({target}, statements, end)
    kept: list[Statement] = []
    for place in range(end - 1, -1, -1):
        own = statements[place]
        bound = own.binds & needed
        if not bound and (not own.touches & needed or own.is_guarded or place in launching):
            continue
        _check(own, bound, target, place in launching)
        # Setting a seed twice in a row, as in a cell that ran twice, is setting it once.
        if not (kept and kept[-1].text == own.text and own.touches <= imported and not bound):
            kept.append(own)
        if own.rebinds:
            needed -= own.binds
        needed |= _expand(own.reads_at_once, statements, place)
    if needed - KNOWN:
        kept += [own for own in statements if own.imports_all and own not in kept]
    return kept[::-1]


def find_unbound(chosen: Sequence[Statement]) -> list[str]:
    """Return the names that the statements read and none of them binds."""
    if any(own.imports_all for own in chosen):
        return []
    bound = {name for own in chosen for name in own.binds}
    read = {name for own in chosen for name in own.reads}
    return sorted(read - bound - KNOWN)


def _check(own: Statement, bound: frozenset[str], target: str, launches: bool) -> None:
    if not launches and not own.is_guarded:
        return
    name = min(bound)
    why = (
        "runs or loads a search"
        if launches
        else 'is below `if __name__ == "__main__":`, which no worker runs'
    )
    raise TaskError(
        f"{target} needs {name!r}, but the statement that sets it ({own.place}) {why}; set {name} "
        "in a statement of its own, above"
    )


def _expand(names: set[str] | frozenset[str], found: Sequence[Statement], end: int) -> set[str]:
    """Return the names, with those that functions and classes among them read when called."""
    wanted: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in wanted:
            continue
        wanted.add(name)
        last = next((own for own in reversed(found[:end]) if name in own.binds), None)
        if last is not None and last.defines:
            waiting += last.reads
    return wanted


def _read(node: ast.stmt, source: Source) -> Statement:
    text = _text(node, source.text)
    table = symtable.symtable(text, source.place, "exec")
    symbols = table.get_symbols()
    binds = {own.get_name() for own in symbols if own.is_assigned() or own.is_imported()}
    at_once = {own.get_name() for own in symbols if own.is_referenced()}
    reads = at_once.union(*map(_globals, table.get_children()))
    if isinstance(node, ast.ClassDef):
        bodies = [child for child in table.get_children() if child.get_type() == "class"]
        at_once = at_once.union(*map(_class_names, bodies))
    elif not isinstance(node, DEFINITIONS):
        at_once = reads
    return Statement(
        text,
        f"{source.place}, line {node.lineno}",
        node,
        frozenset(binds),
        frozenset(reads),
        frozenset(at_once),
        frozenset(_touched(node)),
    )


def _text(node: ast.stmt, source: str) -> str:
    if not isinstance(node, DEFINITIONS):
        return ast.get_source_segment(source, node) or ""
    first = min(own.lineno for own in (node, *node.decorator_list))
    return "\n".join(source.splitlines()[first - 1 : node.end_lineno])  # with its last comment


def _globals(table: symtable.SymbolTable) -> set[str]:
    """Return the global names that a function or class reads or sets, with those inside it."""
    if table.get_type() == "class":
        own = _class_names(table)
    else:
        own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return own.union(*map(_globals, table.get_children()))


def _class_names(table: symtable.SymbolTable) -> set[str]:
    """Return the names that the body of a class reads, without those of its methods.

    A name that the body also sets may be read before that, and is global then.
    """
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    inner = [c for c in table.get_children() if c.get_type() == "class" or c.get_name() in WITHIN]
    return own.union(*map(_globals, inner))


def _touched(node: ast.AST) -> Iterator[str]:
    """Yield the names whose objects a statement may change."""
    if isinstance(node, DEFINITIONS):
        return
    if isinstance(node, ast.Expr):
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            yield from _root(call.func)
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Attribute | ast.Subscript) and not isinstance(child.ctx, ast.Load):
            yield from _root(child)
        elif not isinstance(child, ast.expr):
            yield from _touched(child)


def _root(node: ast.expr) -> Iterator[str]:
    """Yield the name that a chain such as ``a.b[0].c()`` begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Name):
        yield node.id


def _launching(statements: Sequence[Statement]) -> set[int]:
    """Return the places of the statements that run or load a search, or call what does."""
    modules, names = set(), set()
    for own in statements:
        for node in ast.walk(own.node):
            if isinstance(node, ast.Import):
                modules |= {a.asname or a.name for a in node.names if a.name == PACKAGE}
            elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
                names |= {a.asname or a.name for a in node.names if a.name in LAUNCHING}
    found: set[int] = set()
    for place, own in enumerate(statements):
        uses = bool(_loaded(own.node) & names) or any(
            isinstance(node, ast.Attribute)
            and node.attr in LAUNCHING
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
            for node in ast.walk(own.node)
        )
        if uses and own.defines:
            names |= own.binds
        elif uses:
            found.add(place)
    return found


def _loaded(node: ast.AST) -> set[str]:
    return {
        child.id
        for child in ast.walk(node)
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Load)
    }
