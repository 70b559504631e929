"""Check whether a folder still holds the search that a worker knows."""

from __future__ import annotations

import os
import re

from common import safe_read
from common.errors import CheckpointError
from common.folder import durable
from common.folder.records import SearchFolder
from common.search.search_file import MAX_FILE_BYTES
from common.shell_command import shell_command

# The line as `master launch` writes it. The rest of the file may be cut off.
ID_LINE = re.compile(rb'^id\s*=\s*"([^"\n]*)"', re.MULTILINE)


class SearchFileError(CheckpointError):
    """The folder exists, but its ``search.toml`` is missing, damaged or unreadable for now.

    So it is unknown which search the folder belongs to.
    """


def is_of(folder: SearchFolder, search_id: str) -> bool:
    """Return whether the folder belongs to this search.

    Return False only if its file names another search.

    Raises:
        SearchFileError: the file does not tell. A later call may succeed.
        CheckpointError: the whole folder is gone.
    """
    file = folder.search_file
    try:
        named = ID_LINE.search(safe_read.read_bytes(file, MAX_FILE_BYTES))
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(folder.path):
            raise durable.explain_os_error(error, folder.path) from error
        raise SearchFileError(f"{file}: cannot be read ({error.strerror}); {_remedy()}") from error
    if named is None:
        raise SearchFileError(f"{file}: is damaged, no search is named in it; {_remedy()}")
    return named[1] == search_id.encode()


def _remedy() -> str:
    return f"`{shell_command('master recover --config FILE')}` puts your own copy in its place"
