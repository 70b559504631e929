"""Each kind of stage is known everywhere."""

from typing import get_args

import pytest

from common.errors import ConfigError
from common.search.kinds import FOLLOWING, KINDS, KindName
from common.search.search_file import parse_search
from common.search.stage import Stage
from master.report.kinds import REPORTS
from tests.unit.master.made import record

TEXT = """
name = "x"
task = "digits"
[space]
learning_rate = {{ log_uniform = [1e-3, 1e-1] }}
[stages.coarse]
trials = 4
epochs = 1
[stages.next]
epochs = 1
kind = {kind}
"""


def test_each_kind_has_its_traits_and_its_words() -> None:
    assert set(get_args(KindName)) == set(KINDS) == set(REPORTS)
    assert {name for name, kind in KINDS.items() if kind.name != name} == set()


def test_what_comes_after_a_search_says_what_it_trains_on() -> None:
    assert set(KINDS) - {"search"} == FOLLOWING
    assert all(KINDS[name].budget_words for name in FOLLOWING)
    for name in FOLLOWING:
        stage = Stage.model_validate({"name": "next", "trials": 4, "epochs": 2.0, "kind": name})
        assert str(REPORTS[name].describe_plan(stage, "coarse-0007")).startswith("Stage next")


def test_a_stage_of_which_nothing_completed_confirms_nothing() -> None:
    failed = [record(0, {"x": 1}, state="failed")]
    searched = [record(i, {"x": 1}, val_acc=0.9) for i in range(3)]
    assert REPORTS["confirm"].describe_findings(failed, searched) == []
    assert len(REPORTS["seeds"].describe_findings(failed, searched)) == 1


@pytest.mark.parametrize("kind", ["[]", "3", "{ a = 1 }", '"nonsense"'])
def test_what_is_no_kind_is_refused_in_words(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"\[stages\.next\]"):
        parse_search(TEXT.format(kind=kind))
