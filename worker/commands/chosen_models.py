"""Which models `worker predict` uses, and whether the files that its options name are there.

Nothing here imports torch, which takes seconds, so a wrong option is told at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import CheckpointError, ConfigError
from common.folder.records import SearchFolder, home_of
from common.options import DATA_FOLDER
from common.search.search_file import check_name
from common.shell_command import shell_command

READABLE = (".npy", ".npz", ".csv")  # kinds of files with inputs
WRITABLE = (".csv", ".npz")

# The folder of a search, and weights files of its models.
Models = tuple[SearchFolder, list[Path]]


@dataclass(frozen=True)
class Request:
    """The options of ``worker predict``.

    They name checkpoints, the best models of a stage, or a file with an ensemble.
    """

    models: Sequence[Path]  # weights files
    inputs: Path
    root: Path
    search: str | None = None
    stage: str | None = None
    top: int = 1
    ensemble: Path | None = None  # a file that `master ensemble --json` printed
    out: Path | None = None
    device: str = "auto"
    weights: str | None = None  # None means those that the search ranks by
    data: Path = DATA_FOLDER


def choose_models(request: Request) -> Models:
    """Return the folder of the search, and the paths of its weights files.

    Raises:
        ConfigError: an option is wrong, or a file that it names is missing.
        CheckpointError: a weights file is missing, or is of another search than the first.
    """
    if not request.inputs.exists():
        raise ConfigError(f"--inputs {request.inputs}: no such file")
    for option, path, known in (
        ("--inputs", request.inputs, READABLE),
        ("--out", request.out, WRITABLE),
    ):
        if path is not None and path.suffix.lower() not in known:
            raise ConfigError(
                f"{option} {path}: {path.suffix or 'no ending'} is not a known kind of file; use "
                f"{', '.join(known[:-1])} or {known[-1]}"
            )
    given = [bool(request.models), request.ensemble is not None, request.search is not None]
    if sum(given) != 1:
        raise ConfigError(
            "which model? Give CHECKPOINT..., or --ensemble FILE, or --search NAME with --stage "
            "and --top; one of the three"
        )
    if request.search is not None:
        return _best(request, request.search)
    paths = list(request.models) or _read_list(request)
    for path in paths:
        require_file(path)
    folder = home_of(paths[0])[0]
    for path in paths[1:]:
        if home_of(path)[0].path != folder.path:
            raise CheckpointError(
                f"{path}: is of another search than {paths[0]}; an ensemble is of one search"
            )
    return folder, paths


def require_file(weights: Path) -> None:
    """Raise CheckpointError if there is no such weights file."""
    if not weights.exists():
        raise CheckpointError(
            f"{weights}: no such file; `{shell_command('master rank')}` lists those there are"
        )


def _read_list(request: Request) -> list[Path]:
    """Return the models of the first ensemble in a file of `master ensemble --json`.

    A model of weight w is returned w times.
    """
    assert request.ensemble is not None  # `choose_models` has checked it
    try:
        raw = json.loads(request.ensemble.read_text(encoding="utf-8"))
        home = request.root.resolve() / check_name(str(raw["search"]))
        members = raw["ensembles"][0]["members"]
        paths = [
            home / str(member["checkpoint"])
            for member in members
            for _ in range(int(member["weight"]))
        ]
    except OSError as error:
        raise ConfigError(
            f"--ensemble {request.ensemble}: cannot be read ({error.strerror}); check the path and "
            "its permissions"
        ) from None
    except (ValueError, KeyError, IndexError, TypeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"--ensemble {request.ensemble}: not what `{shell_command('master ensemble --json')}` "
            f"prints ({told}); write it again"
        ) from None
    if not paths:
        raise ConfigError(
            f"--ensemble {request.ensemble}: holds no model; write it again with "
            f"`{shell_command('master ensemble --json')}`"
        )
    return paths


def _best(request: Request, search_name: str) -> Models:
    folder = SearchFolder(request.root.resolve(), check_name(search_name))
    search = folder.search()
    if search is None:
        raise ConfigError(f"--search {search_name}: no such search in {request.root}")
    launched = [stage.name for stage in search.stages if folder.stage(stage.name).ranges.exists()]
    name = (
        search.stage(request.stage).name
        if request.stage
        else (launched or [search.stages[0].name])[-1]
    )
    stage = folder.stage(name)
    latest = {
        found.trial_id: found
        for found in sorted(stage.checkpoints(search.mode), key=lambda found: found.attempt)
    }
    names = [found for found in stage.checkpoints(search.mode) if latest[found.trial_id] == found][
        : request.top
    ]
    if not names:
        raise CheckpointError(
            f"{stage.path}: holds no checkpoint; "
            f"`{shell_command('master rank --search', search.name, '--stage', name)}` shows the "
            "results"
        )
    return folder, [stage.path / str(found) for found in names]
