"""Which search a command is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from common.records import SearchFolder, searches
from common.search import Search, check_name, default_text, load_search, parse_search, read_text

CONFIG = Path("search.toml")


@dataclass(frozen=True)
class Chosen:
    """A search, the text that describes it, and its folder."""

    search: Search
    text: str
    base: Path  # what the task's path is relative to
    folder: SearchFolder


def choose(root: Path, config: Path | None, name: str | None, say: Callable[[str], None], builtin: bool = False) -> Chosen:
    """Finds the search: --config, --search, ./search.toml, the only one in the folder, or (``builtin``) digits.

    Args:
        say: told which one was taken, unless it was named.

    Raises:
        ConfigError: none, several, or an invalid file; the message lists what there is.
        CheckpointError: its folder is damaged.
    """
    if config is not None and name is not None:
        raise ConfigError(f"--config {config} and --search {name}: give one of the two")
    if config is not None:
        return _from_file(root, config)
    if name is not None:
        return _from_folder(SearchFolder(root, check_name(name)))
    if CONFIG.is_file():
        chosen = _from_file(root, CONFIG)
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
        raise ConfigError(f"no search in {root}, and no ./{CONFIG}; start one with `master launch`, or name the folder with --checkpoints")
    search = parse_search(default_text(), "built-in search")
    say(f"the built-in search {search.name!r}; `master init` writes its file for you to edit")
    return Chosen(search, default_text(), Path(), SearchFolder(root, search.name))


def _from_file(root: Path, path: Path) -> Chosen:
    search = load_search(path)
    return Chosen(search, read_text(path), path.parent, SearchFolder(root, search.name))


def _from_folder(folder: SearchFolder) -> Chosen:
    search = folder.search()
    if search is None:
        known = ", ".join(f.name for f in searches(folder.root)) or "none"
        raise ConfigError(f"--search {folder.name}: no such search in {folder.root} (there: {known})")
    if search.name != folder.name:
        raise ConfigError(f"{folder.search_file}: name = {search.name!r} is not its folder's name; rename one of the two")
    return Chosen(search, read_text(folder.search_file), folder.path, folder)
