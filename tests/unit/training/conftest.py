import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Tiny models: threads would only wait for each other; and an engine sets a mode of the processor that other tests should not meet."""
    torch.set_num_threads(1)
    yield
    torch.set_flush_denormal(False)
