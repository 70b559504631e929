"""What all tests share: a PATH in which messages name the commands as ``master`` and ``worker``."""

import os
import sys
from pathlib import Path

os.environ["PATH"] = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
)
os.environ.pop("COLUMNS", None)
