"""Health of a container: Redis answers to the address and the password that the programs in it use."""

import os
import sys
from pathlib import Path

from common.broker import open_broker
from common.errors import SearchError

try:
    open_broker(os.environ["REDIS_URL"], Path(os.environ["CHECKPOINT_DIR"])).close()
except SearchError as error:
    sys.exit(str(error))
