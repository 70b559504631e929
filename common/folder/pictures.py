"""Reading the picture of a kept model's first layer, a PNG in the shared folder."""

from __future__ import annotations

import errno
from pathlib import Path

from common import safe_read

MAX_BYTES = 16 << 20  # thousands of filters; larger files are not this program's
SIGNATURE = b"\x89PNG\r\n\x1a\n"  # checked, so that a link to another kind of file is not shown


def read(path: Path) -> bytes:
    """Return the content of a picture.

    Raises:
        FileNotFoundError: there is none: it is not an image model, or the janitor has just removed
            it.
        OSError: it cannot be read, is not a regular file, is too large, or is not a PNG.
    """
    content = safe_read.read_bytes(path, MAX_BYTES)
    if not content.startswith(SIGNATURE):
        raise OSError(errno.EINVAL, "is no PNG; set it aside", str(path))
    return content
