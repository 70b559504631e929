"""Programs that a launch starts in the background and does not wait for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import CheckpointError
from common.folder.durable import make_folder
from common.folder.records import SearchFolder
from common.safe_read import open_to_append
from master.launchers.stayed import FOLDER

LOG = "report.log"
NICE = ("nice", "-n", "10")  # training has priority over drawing


def draw_reports_in_background(folder: SearchFolder, stages: Sequence[str]) -> Path | None:
    """Start ``master report`` for stages that have ended, and do not wait for it.

    It imports a plotting library, and takes about a second to draw each stage. It outlives this
    process and does not receive Ctrl-C. Its output, with the reason if it fails, is in the logs of
    the search.

    Args:
        folder: The folder of the launched search.
        stages: The stages whose reports are drawn, from the folder alone.

    Returns:
        The log, or None if the program could not be started.
    """
    words = ["report", "--checkpoints", str(folder.root.absolute()), "--search", folder.name]
    words += [word for stage in stages for word in ("--stage", stage)]
    command = [
        *(NICE if shutil.which(NICE[0]) else ()),
        sys.executable,
        "-P",
        "-m",
        "master",
        *words,
    ]
    try:
        log = make_folder(folder.path / FOLDER) / LOG
        with os.fdopen(open_to_append(log), "ab") as output:
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except (OSError, CheckpointError):
        return None
    return log
