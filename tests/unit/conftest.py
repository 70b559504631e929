import sys

import pytest


@pytest.fixture(autouse=True)
def no_loop_is_left():
    """End the processes in which a test has run loops."""
    yield
    looped = sys.modules.get("tests.unit.worker.looped")
    if looped is not None:
        looped.end_forked()
