"""The compiler of graphs (inductor), its cache, and what compiling has cost on this machine.

Compiled code is loaded from the cache folder, so only its owner may write there. The folder belongs
to one processor model and one torch version: code made for another processor would crash the
process.
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
from torch import Tensor, nn
from torch.fx import GraphModule

# Measurements on two cores: the first compilation of a cache folder, and a start from the cache.
FIRST_GUESS_S = {"cold": 20.0, "warm": 4.0}
REMEMBERED = 5  # last compilations that are remembered; their median is the next estimate
# Keys of what is in the cache. More of them would only make the file slow to read.
KNOWN_KEPT = 500
CXX = "g++"
MADE: set[str] = set()  # keys compiled in this process, by any Compiler
# Inductor reads it whenever it looks for its cache. Its own default is below /tmp.
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# The user's own choice, read now: inductor sets its default in the environment when it is imported.
OWN_CACHE = os.environ.get(CACHE_VARIABLE)


class CompilerMissing(Exception):
    """Nothing can be compiled. The message says why."""


class Costs:
    """What compiling has cost and gained here so far, in a small JSON file.

    It only serves estimates, so a broken file is started anew.
    """

    def __init__(self, file: Path | None) -> None:
        """Read ``file``. With None, remember for this process alone."""
        self._file = file
        self._read: dict[str, Any] = self._load()

    def cost_s(self, key: str) -> float:
        """Estimate the seconds that compiling this takes."""
        kind = self._kind(key)
        return float(median(self._read.get(kind) or [FIRST_GUESS_S[kind]]))

    def gain(self, kind: str, guess: float) -> float:
        """Estimate how many times as fast as eager steps a backend of this kind is."""
        return float(median(self._read.get(f"gain/{kind}") or [guess]))

    def note_cost(self, key: str, seconds: float) -> None:
        """Record the seconds that a compilation took."""
        self._note(self._kind(key), seconds)
        known = [one for one in self._read.get("known", []) if one != key]
        self._read["known"] = [*known, key][-KNOWN_KEPT:]
        self._save()

    def note_gain(self, kind: str, ratio: float) -> None:
        """Record how many times as fast as eager steps a backend was."""
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
            numbers = {
                name: [float(value) for value in values]
                for name, values in read.items()
                if name != "known"
            }
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
    """Inductor, with one thread per process and its own cache."""

    def __init__(self, folder: Path | None = None) -> None:
        """Set the cache folder. The default is in the user's cache."""
        self._folder = folder if folder is not None else default_folder()
        self._opened = False
        self._costs = Costs(None)
        self._module_key = ""  # of the last module that was compiled

    @property
    def costs(self) -> Costs:
        """The recorded costs. They are of this process alone if the folder cannot be used."""
        with contextlib.suppress(CompilerMissing):
            self._open()
        return self._costs

    def missing(self) -> str | None:
        """Return why nothing can be compiled here, or None if no reason is seen."""
        program = os.environ.get("CXX", CXX)
        if shutil.which(program) is None:
            return f"no C++ compiler ({program}) is installed"
        try:
            self._open()
        except CompilerMissing as error:
            return str(error)
        return None

    def compile(
        self, graph: GraphModule, examples: Sequence[Tensor], key: str
    ) -> Callable[..., Sequence[Tensor]]:
        """Compile a graph into a function of tensors with the same shapes and strides.

        Args:
            graph: of in-place and other tensor operations.
            examples: tensors like those of later calls. No two of them share memory.
            key: a name of the graph, for the memory of costs.

        Raises:
            CompilerMissing: nothing can be compiled.
            Exception: whatever the compiler raises.
        """
        why = self.missing()
        if why is not None:
            raise CompilerMissing(why)
        started = time.perf_counter()
        with _environment(CACHE_VARIABLE, OWN_CACHE or str(self._folder / "inductor")):
            # The import takes a second, so it is done only when something is compiled.
            from torch._inductor import standalone_compile

            options = {"config_patches": {"compile_threads": 1, "cpp.threads": 1}}
            compiled = standalone_compile(
                graph, list(examples), dynamic_shapes="from_example_inputs", options=options
            )
        # What this process has compiled before comes back at once. That says nothing about the next
        # process.
        if key not in MADE:
            MADE.add(key)
            self.costs.note_cost(key, time.perf_counter() - started)
        return compiled

    def compile_module(self, module: nn.Module, key: str) -> Callable[[Any], Any]:
        """Return the module's call by ``torch.compile``. It compiles at its first calls.

        The module itself is left as it is, with the names of its state dict. From now on, this
        process keeps all that it compiles in the cache folder.

        Args:
            module: the module.
            key: a name of its structure. Modules of the same structure share what is compiled.

        Raises:
            CompilerMissing: nothing can be compiled.
        """
        on_cpu = all(one.device.type == "cpu" for one in module.parameters())
        why = self.missing() if on_cpu else None  # for a GPU, torch looks for what it needs
        if why is not None:
            raise CompilerMissing(why)
        self._open()
        if key != self._module_key:
            torch.compiler.reset()  # torch compiles one function only so many times
            self._module_key = key
        os.environ[CACHE_VARIABLE] = OWN_CACHE or str(self._folder / "inductor")
        # With the generators of eager steps, noise is the same as without compiling.
        options: dict[str, Any] = {"compile_threads": 1, "fallback_random": True}
        compiled: Callable[[Any], Any] = torch.compile(module, options=options)
        return compiled

    def _open(self) -> None:
        """Make the cache folder, accessible to its owner alone.

        Raises:
            CompilerMissing: it cannot be made, or it belongs to another user.
        """
        if self._opened:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = self._folder.stat()
            if found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) & 0o077:
                self._folder.chmod(0o700)
        except OSError as error:
            raise CompilerMissing(
                f"the cache folder {self._folder} cannot be used ({error.strerror})"
            ) from error
        if found.st_uid != os.getuid():
            raise CompilerMissing(
                f"the cache folder {self._folder} belongs to another user; set XDG_CACHE_HOME to "
                "a folder of your own"
            )
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
    """Return ``$XDG_CACHE_HOME/coarsefine/...`` (default: ``~/.cache``).

    There is one folder for each processor model and torch version.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # no home, as for a container's bare user
        cache = Path(tempfile.gettempdir()) / f"coarsefine-cache-{os.getuid()}"
    return cache / "coarsefine" / f"steps-{_machine()}"


def _machine() -> str:
    """Return a short hash of the processor, its instructions and the torch version."""
    told = [platform.machine(), platform.processor(), torch.__version__]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told += sorted(
            {line for line in lines if line.startswith(("model name", "flags", "Features"))}
        )
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
