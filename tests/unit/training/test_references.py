"""What the search file accepts is what the reference tests cover: no option without a test, no cover of what is gone."""

import pytest

from tests.unit.training.references import accepted, covered, covers


def told(pairs):
    return sorted(name if option is None else f"{name} = {option}" for name, option in pairs)


def test_every_option_is_held_against_a_reference():
    assert told(accepted() - covered()) == []


def test_every_cover_is_of_an_option_that_the_search_file_accepts():
    assert told(covered() - accepted()) == []


def test_only_tests_cover():
    with pytest.raises(AssertionError, match="is not a test"):
        covers("momentum")(told)
