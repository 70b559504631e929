"""The reference tests cover exactly what the search file accepts.

No option lacks a test, and no test covers a removed option.
"""

import pytest

from common.search.hyperparameters import LOSSES, PERCEPTRON, SCHEDULES, UPDATES
from tests.unit.training.references import accepted, covered, covers
from worker.tasks.models import ACTIVATIONS, INITS
from worker.training.math.losses import OBJECTIVES
from worker.training.math.optimizers import RULES
from worker.training.math.schedules import KINDS


def told(pairs):
    return sorted(name if option is None else f"{name} = {option}" for name, option in pairs)


def test_every_option_is_held_against_a_reference():
    assert told(accepted() - covered()) == []


def test_every_cover_is_of_an_option_that_the_search_file_accepts():
    assert told(covered() - accepted()) == []


@pytest.mark.parametrize(
    ("built", "entry"),
    [
        (RULES, UPDATES["optimizer"]),
        (KINDS, SCHEDULES["schedule"]),
        (OBJECTIVES, LOSSES["loss"]),
        (ACTIVATIONS, PERCEPTRON["activation"]),
        (INITS, PERCEPTRON["init"]),
    ],
)
def test_what_is_accepted_is_what_is_built(built, entry):
    assert set(built) == set(entry.options)


def test_only_tests_cover():
    with pytest.raises(AssertionError, match="is not a test"):
        covers("momentum")(told)
