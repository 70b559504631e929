"""Whether a folder still holds the search that a worker knows, or another, or nobody can tell."""

from __future__ import annotations

import os
import re

from common import bounded, durable
from common.errors import CheckpointError
from common.records import SearchFolder
from common.search import MAX_FILE_BYTES

ID_LINE = re.compile(rb'^id\s*=\s*"([^"\n]*)"', re.MULTILINE)  # as launch writes it; what follows may be cut off
REMEDY = "`master recover --config FILE` puts your own copy in its place"


class SearchFileError(CheckpointError):
    """The folder is there, but its ``search.toml`` is lost, damaged or cannot be read for now: whose folder it is nobody can tell."""


def is_of(folder: SearchFolder, search_id: str) -> bool:
    """Whether the folder is this search's; False only where it names another.

    Raises:
        SearchFileError: nobody can tell; another look may.
        CheckpointError: the whole folder is gone.
    """
    file = folder.search_file
    try:
        named = ID_LINE.search(bounded.read_bytes(file, MAX_FILE_BYTES))
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(folder.path):
            raise durable.explained(error, folder.path) from error
        raise SearchFileError(f"{file}: cannot be read ({error.strerror}); {REMEDY}") from error
    if named is None:
        raise SearchFileError(f"{file}: is damaged, no search is named in it; {REMEDY}")
    return named[1] == search_id.encode()
