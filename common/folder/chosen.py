"""Which search a command works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import CheckpointError, ConfigError, ProtocolError
from common.folder.records import SearchFolder, searches
from common.search.search_file import (
    Search,
    check_name,
    default_text,
    load_search,
    parse_search,
    read_text,
)
from common.shell_command import shell_command

CONFIG = Path("search.toml")


@dataclass(frozen=True)
class Chosen:
    """A search, the text of its file, and its folder."""

    search: Search
    text: str
    base: Path  # the task's path is relative to it
    folder: SearchFolder


def choose(
    root: Path,
    config: Path | None,
    name: str | None,
    say: Callable[[str], None],
    builtin: bool = False,
) -> Chosen:
    """Find the search.

    The first that is given counts: --config, --search, ./search.toml, the only search in the
    folder, or, with ``builtin``, the built-in search for digits.

    Args:
        root: the checkpoint root.
        config: the value of --config.
        name: the value of --search.
        say: called with a message about which search was chosen, unless it was named.
        builtin: whether the command may begin a search.

    Raises:
        ConfigError: there is none, there are several, or the file is invalid. The message lists
            what there is.
        CheckpointError: its folder is damaged.
        ProtocolError: another version of this program has launched it. A command that may begin a
            search (``builtin``) checks this itself.
    """
    if config is not None and name is not None:
        raise ConfigError(f"--config {config} and --search {name}: give one of the two")
    if config is not None:
        return _from_file(root, config, builtin)
    if name is not None:
        return _from_folder(SearchFolder(root, check_name(name)))
    if CONFIG.is_file():
        chosen = _from_file(root, CONFIG, builtin)
        say(f"search {chosen.search.name!r} from ./{CONFIG}")
        return chosen
    return _without_a_word(root, say, builtin)


def _without_a_word(root: Path, say: Callable[[str], None], builtin: bool) -> Chosen:
    found = searches(root)
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise ConfigError(f"{root} holds several searches: {names}; choose one with --search NAME")
    if found:
        say(f"search {found[0].name!r} from {found[0].search_file}")
        return _from_folder(found[0])
    if not builtin:
        raise ConfigError(
            f"no search in {root}, and no ./{CONFIG}; start one with "
            f"`{shell_command('master launch --stage all')}`, or name the folder with --checkpoints"
        )
    search = parse_search(default_text(), "built-in search")
    say(
        f"the built-in search {search.name!r}; `{shell_command('master init')}` writes its file "
        "for you to edit"
    )
    return Chosen(search, default_text(), Path(), SearchFolder(root, search.name))


def _from_file(root: Path, path: Path, may_begin: bool) -> Chosen:
    search = load_search(path)
    chosen = Chosen(search, read_text(path), path.parent, SearchFolder(root, search.name))
    if not may_begin:
        _refuse_other_protocol(chosen.folder)
    return chosen


def _refuse_other_protocol(folder: SearchFolder) -> None:
    """Refuse a search that another version has launched.

    A command that reads nothing but the records would not notice otherwise.
    """
    try:
        folder.search()
    except ProtocolError:
        raise
    except CheckpointError:
        # A command that needs the file reports the damage, and `master recover` repairs it.
        return


def _from_folder(folder: SearchFolder) -> Chosen:
    search = folder.search()
    if search is None:
        known = ", ".join(f.name for f in searches(folder.root)) or "none"
        raise ConfigError(
            f"--search {folder.name}: no such search in {folder.root} (there: {known})"
        )
    if search.name != folder.name:
        raise ConfigError(
            f"{folder.search_file}: name = {search.name!r} is not its folder's name; rename one "
            "of the two"
        )
    return Chosen(search, read_text(folder.search_file), folder.path, folder)


def not_launched(chosen: Chosen) -> ConfigError:
    """Return the error for a command that needs a launched search."""
    search, first = chosen.search, chosen.search.stages[0].name
    return ConfigError(
        f"search {search.name!r} has not been launched in {chosen.folder.root}; run "
        f"`{shell_command('master launch --stage', first)}`"
    )
