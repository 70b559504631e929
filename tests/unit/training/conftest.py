import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Use one thread, and keep the processor mode that an engine sets from other tests.

    With tiny models, more threads would only wait for each other.
    """
    torch.set_num_threads(1)
    yield
    torch.set_flush_denormal(False)
