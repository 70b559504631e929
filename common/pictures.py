"""Reads the picture of a kept model's first layer, which lies in the shared folder: a PNG of ours, or nothing."""

from __future__ import annotations

import errno
from pathlib import Path

from common import bounded

MAX_BYTES = 16 << 20  # thousands of filters; what is larger is not ours
SIGNATURE = b"\x89PNG\r\n\x1a\n"  # a link to another kind of file must not show it on a page


def read(path: Path) -> bytes:
    """The content of a picture.

    Raises:
        FileNotFoundError: there is none: the model is no image model, or the janitor has removed it a moment ago.
        OSError: it cannot be read, is no ordinary file, too large or no PNG.
    """
    content = bounded.read_bytes(path, MAX_BYTES)
    if not content.startswith(SIGNATURE):
        raise OSError(errno.EINVAL, "is no PNG; set it aside", str(path))
    return content
