import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def small_models():
    """Use one thread, and keep the processor mode that an engine sets from other tests.

    With small models, more threads would only wait for each other.
    """
    torch.set_num_threads(1)
    yield
    torch.set_flush_denormal(False)
