"""The compiler of graphs (inductor), where its work is kept between runs, and what it has cost on this machine.

Compiled code is loaded from the cache folder, so nobody but its owner may write there. The folder is one processor's and one torch's:
code made for another processor would end the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

FIRST_GUESS_S = {"cold": 20.0, "warm": 4.0}  # measured on two cores: the first compilation of a cache folder, and a start from it
REMEMBERED = 5  # of the last compilations: their median is the next one's estimate
KNOWN_KEPT = 500  # keys of what is in the cache: more would only make the file slow to read
CXX = "g++"
MADE: set[str] = set()  # by this process, whoever asked
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # inductor reads it whenever it looks for its cache; its own default is below /tmp
OWN_CACHE = os.environ.get(CACHE_VARIABLE)  # the user's own choice: inductor writes its default there as soon as it is imported


class CompilerMissing(Exception):
    """There is nothing to compile with, and why."""


class Costs:
    """What compiling has cost and gained here so far: a small file of JSON, a help for estimates alone, so a broken one is begun anew."""

    def __init__(self, file: Path | None) -> None:
        """``file``: None remembers for this process alone."""
        self._file = file
        self._read: dict[str, Any] = self._load()

    def cost_s(self, key: str) -> float:
        """What compiling this is likely to cost."""
        kind = self._kind(key)
        return float(median(self._read.get(kind) or [FIRST_GUESS_S[kind]]))

    def gain(self, kind: str, guess: float) -> float:
        """How many times as fast as eager steps others of this kind turned out to be."""
        return float(median(self._read.get(f"gain/{kind}") or [guess]))

    def note_cost(self, key: str, seconds: float) -> None:
        """Remembers what it cost."""
        self._note(self._kind(key), seconds)
        known = [one for one in self._read.get("known", []) if one != key]
        self._read["known"] = [*known, key][-KNOWN_KEPT:]
        self._save()

    def note_gain(self, kind: str, ratio: float) -> None:
        """Remembers what it brought."""
        self._note(f"gain/{kind}", ratio)
        self._save()

    def _kind(self, key: str) -> str:
        return "warm" if key in self._read.get("known", []) else "cold"

    def _note(self, name: str, value: float) -> None:
        self._read[name] = [*self._read.get(name, []), round(value, 3)][-REMEMBERED:]

    def _load(self) -> dict[str, Any]:
        if self._file is None:
            return {}
        try:
            read = json.loads(self._file.read_text(encoding="utf-8"))
            numbers = {name: [float(value) for value in values] for name, values in read.items() if name != "known"}
            return {**numbers, "known": [str(key) for key in read.get("known", [])]}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _save(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # estimates are no reason to fail
            descriptor, name = tempfile.mkstemp(dir=self._file.parent, prefix=".costs-")
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(self._read, file)
            Path(name).replace(self._file)


class Compiler:
    """Inductor, with one thread a process and a cache of its own."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder``: of the cache; by default one below the user's."""
        self._folder = folder if folder is not None else default_folder()
        self._opened = False
        self._costs = Costs(None)

    @property
    def costs(self) -> Costs:
        """What is remembered; of this process alone where the folder cannot be used."""
        with contextlib.suppress(CompilerMissing):
            self._open()
        return self._costs

    def missing(self) -> str | None:
        """Why nothing can be compiled here; None if something can, as far as can be seen."""
        program = os.environ.get("CXX", CXX)
        if shutil.which(program) is None:
            return f"no C++ compiler ({program}) is installed"
        try:
            self._open()
        except CompilerMissing as error:
            return str(error)
        return None

    def compile(self, graph: GraphModule, examples: Sequence[Tensor], key: str) -> Callable[..., Sequence[Tensor]]:
        """The graph as a compiled function of tensors of the same shapes and strides.

        Args:
            graph: of in-place and other tensor operations.
            examples: tensors like those that it will be called with, none of which shares memory with another.
            key: names what is compiled, for the memory of costs.

        Raises:
            CompilerMissing: there is nothing to compile with.
            Exception: whatever the compiler raises.
        """
        why = self.missing()
        if why is not None:
            raise CompilerMissing(why)
        started = time.perf_counter()
        with _environment(CACHE_VARIABLE, OWN_CACHE or str(self._folder / "inductor")):
            from torch._inductor import standalone_compile  # takes a second: only who compiles pays for it

            options = {"config_patches": {"compile_threads": 1, "cpp.threads": 1}}
            compiled = standalone_compile(graph, list(examples), dynamic_shapes="from_example_inputs", options=options)
        if key not in MADE:  # what this process has made already comes back at once, and says nothing about the next process
            MADE.add(key)
            self.costs.note_cost(key, time.perf_counter() - started)
        return compiled

    def _open(self) -> None:
        """Makes the folder, for its owner alone.

        Raises:
            CompilerMissing: it cannot be made, or others may write there.
        """
        if self._opened:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = self._folder.stat()
            if found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) & 0o077:
                self._folder.chmod(0o700)
        except OSError as error:
            raise CompilerMissing(f"the cache folder {self._folder} cannot be used ({error.strerror})") from error
        if found.st_uid != os.getuid():
            raise CompilerMissing(f"the cache folder {self._folder} belongs to somebody else; set XDG_CACHE_HOME to a folder of your own")
        self._costs = Costs(self._folder / "costs.json")
        self._opened = True


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/coarsefine/...`` (``~/.cache`` by default), one for each processor and torch."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # no home: a container's bare user
        cache = Path(tempfile.gettempdir()) / f"coarsefine-cache-{os.getuid()}"
    return cache / "coarsefine" / f"steps-{_machine()}"


def _machine() -> str:
    """A short name of the processor, with its instructions, and of the torch that compiles for it."""
    told = [platform.machine(), platform.processor(), torch.__version__]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told += sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
