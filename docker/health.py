"""Check a container: Redis answers at the address and with the password that its programs use."""

import os
import sys
from pathlib import Path

from common.broker.connection import open_broker
from common.errors import SearchError

try:
    open_broker(os.environ["REDIS_URL"], Path(os.environ["CHECKPOINT_DIR"])).close()
except SearchError as error:
    sys.exit(str(error))
