from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.record import Record
from common.search import Stage
from common.space import Choice, Space
from master.stages import propose
from tests.unit.master.made import COARSE, FINE, SAME, between, exploded, peak, ranking, record, sampled

LOG = {"log_uniform": [1e-6, 1e1]}


def narrowed(
    records: list[Record], raw: dict[str, object], following: Stage = SAME, first: Space | None = None
) -> tuple[Space, dict[str, str]]:
    space = Space.parse(raw)
    proposal = propose(records, space, first or space, COARSE, following)
    return proposal.space, proposal.notes


def ends(space: Space, name: str) -> tuple[float, float]:
    return space.numeric[name].low, space.numeric[name].high


def around(n_best: int, low: float, high: float, name: str = "learning_rate", n_rest: int = 80) -> list[Record]:
    """Best trials between two values, the rest over six decades."""
    return ranking([*between(low, high, n_best), *between(1e-6, 1e1, n_rest)], name)


def test_a_range_becomes_the_span_of_the_best_with_a_margin() -> None:
    space, notes = narrowed(around(20, 1e-3, 1e-2), {"x": LOG} | {"learning_rate": LOG})
    low, high = ends(space, "learning_rate")
    assert math.log10(low) == pytest.approx(-3.175, abs=0.01)  # a decade's span with a fortieth of the seven decades
    assert math.log10(high) == pytest.approx(-1.825, abs=0.01)
    assert "low end cut: the best 20" in notes["learning_rate"] and "high end cut" in notes["learning_rate"]


def test_the_best_are_at_least_twenty_or_15_percent() -> None:
    of_100 = ranking([*between(1e-3, 1e-2, 20), *between(1e-6, 1e1, 80)], "x")
    of_400 = ranking([*between(1e-3, 1e-2, 20), *[1e-5] * 30, *between(1e-6, 1e1, 350)], "x")
    assert math.log10(ends(narrowed(of_100, {"x": LOG})[0], "x")[0]) > -3.3
    assert math.log10(ends(narrowed(of_400, {"x": LOG})[0], "x")[0]) < -5.2  # 60 of 400 hold those at 1e-5


def test_fewer_than_ten_completed_do_not_narrow() -> None:
    nine = [*ranking(between(1e-3, 1e-2, 9), "learning_rate"), *exploded(between(1e-6, 1e1, 50))]
    space, notes = narrowed(nine, {"learning_rate": LOG}, FINE)
    assert ends(space, "learning_rate") == (1e-6, 1e1)
    assert "not narrowed: 9 completed trials are fewer than 10" in notes["learning_rate"]
    ten = [*ranking(between(1e-3, 1e-2, 10), "learning_rate"), *exploded(between(1e-6, 1e1, 50))]
    assert ends(narrowed(ten, {"learning_rate": LOG})[0], "learning_rate") != (1e-6, 1e1)


def test_completed_trials_without_a_metric_do_not_count() -> None:
    records = [record(i, {"x": 1e-3}, val_acc=math.nan) for i in range(30)]
    assert "0 completed" in narrowed(records, {"x": LOG})[1]["x"]


@pytest.mark.parametrize(("n_beyond", "is_cut"), [(4, False), (5, True)])
def test_an_end_is_cut_only_if_five_ended_trials_lie_beyond(n_beyond: int, is_cut: bool) -> None:
    records = [*ranking(between(1e-3, 1e-2, 20), "x"), *exploded([5.0] * n_beyond, "x")]
    space, notes = narrowed(records, {"x": LOG})
    assert (ends(space, "x")[1] < 1) is is_cut
    assert ends(space, "x")[0] == 1e-6  # nobody tried the low end
    assert is_cut or "only 4 trials ended beyond" in notes["x"]


def test_longer_training_extends_the_learning_rate_a_decade_downwards() -> None:
    records = around(20, 1e-3, 1e-2)
    same, longer = narrowed(records, {"learning_rate": LOG})[0], narrowed(records, {"learning_rate": LOG}, FINE)
    assert ends(longer[0], "learning_rate")[0] == pytest.approx(ends(same, "learning_rate")[0] / 10)
    assert ends(longer[0], "learning_rate")[1] == ends(same, "learning_rate")[1]
    assert "a decade lower" in longer[1]["learning_rate"]


def test_the_decade_does_not_pass_the_users_limits() -> None:
    limited = {"learning_rate": {"log_uniform": [1e-6, 1e1], "limits": [4e-4, 1e1]}}
    with pytest.raises(Exception, match="leaves what is allowed"):
        Space.parse(limited)
    limited = {"learning_rate": {"log_uniform": [4e-4, 1e1], "limits": [4e-4, 1e1]}}
    space, _ = narrowed(around(20, 1e-3, 1e-2), limited, FINE)
    assert ends(space, "learning_rate")[0] == 4e-4


@pytest.mark.parametrize("name", ["weight_decay", "dropout", "label_smoothing", "l2", "input_dropout", "augment_noise"])
def test_longer_training_keeps_the_strong_side_of_regularisation(name: str) -> None:
    records = ranking([*[0.1 + 0.005 * i for i in range(20)], *[i / 100 for i in range(80)]], name)
    shorter, longer = narrowed(records, {name: {"uniform": [0.0, 0.8]}})[0], narrowed(records, {name: {"uniform": [0.0, 0.8]}}, FINE)
    assert ends(shorter, name)[1] < 0.3
    assert ends(longer[0], name)[1] == 0.8
    assert ends(longer[0], name)[0] == ends(shorter, name)[0] > 0
    assert "strong regularisation pays" in longer[1][name]


def test_max_norm_is_strong_at_its_low_side() -> None:
    records = ranking([*[3 + 0.01 * i for i in range(20)], *[i / 20 for i in range(100)]], "max_norm")
    low, high = ends(narrowed(records, {"max_norm": {"uniform": [0.1, 5.0]}}, FINE)[0], "max_norm")
    assert low == 0.1 and high < 4


def test_a_border_with_support_moves_the_range_past_it() -> None:
    raw: dict[str, object] = {"learning_rate": {"log_uniform": [1e-6, 1e-3]}}
    records = sampled(Space.parse(raw), peak(0.1))
    space, notes = narrowed(records, raw)
    low, high = ends(space, "learning_rate")
    assert high == 0.0316  # half of three decades, rounded inwards
    assert low > 1e-4
    assert "moved past it" in notes["learning_rate"]


def test_a_side_moves_only_once() -> None:
    first = Space.parse({"learning_rate": {"log_uniform": [1e-6, 1e-3]}})
    second: dict[str, object] = {"learning_rate": {"log_uniform": [1e-4, 3.16e-2]}}
    records = sampled(Space.parse(second), peak(100.0))
    space, notes = narrowed(records, second, first=first)
    assert ends(space, "learning_rate")[1] == 3.16e-2
    assert "moved already" in notes["learning_rate"]


def test_the_other_side_may_move_still() -> None:
    first = Space.parse({"x": {"log_uniform": [1e-4, 1e-3]}})
    second: dict[str, object] = {"x": {"log_uniform": [1e-4, 3.16e-3]}}
    space, _ = narrowed(sampled(Space.parse(second), peak(1e-6, "x")), second, first=first)
    assert ends(space, "x")[0] < 1e-4


def test_a_border_with_weak_support_moves_nothing() -> None:
    raw: dict[str, object] = {"x": {"log_uniform": [1e-6, 1e-3]}}
    records = ranking([9.9e-4, 9.8e-4, 9.7e-4, *between(1e-6, 5e-4, 60)], "x")
    space, notes = narrowed(records, raw)
    assert ends(space, "x")[1] == 1e-3
    assert "support 3: too weak" in notes["x"]


@pytest.mark.parametrize(("name", "value", "high"), [("dropout", 0.79, 0.999), ("momentum", 0.79, 0.999)])
def test_a_moved_range_stays_within_what_the_hyperparameter_allows(name: str, value: float, high: float) -> None:
    space, _ = narrowed(ranking([value] * 12, name), {name: {"uniform": [0.0, 0.8]}})
    assert ends(space, name)[1] == pytest.approx(min(high, 1.2))


def test_a_border_with_few_completed_trials_still_moves() -> None:
    raw: dict[str, object] = {"x": {"log_uniform": [1e-6, 1e-3]}}
    assert ends(narrowed(ranking([9e-4] * 5, "x"), raw)[0], "x") == (1e-6, 0.0316)


def hidden(n_best: dict[int, int], n_rest: dict[int, int]) -> list[Record]:
    best = [option for option, n in n_best.items() for _ in range(n)]
    rest = [option for option, n in n_rest.items() for _ in range(n)]
    return ranking([*best, *rest], "hidden")


def test_an_option_goes_if_its_absence_from_the_best_is_unlikely() -> None:
    raw: dict[str, object] = {"hidden": {"choice": [32, 64, 128]}}
    space, notes = narrowed(hidden({64: 10, 128: 10}, {32: 30, 64: 10, 128: 10}), raw)
    assert space.parameters["hidden"] == Choice((64, 128))
    assert "dropped 32" in notes["hidden"]


def test_an_option_stays_with_fewer_than_eight_ended_trials() -> None:
    raw: dict[str, object] = {"hidden": {"choice": [32, 64]}}
    assert narrowed(hidden({64: 20}, {32: 7, 64: 5}), raw)[0].parameters["hidden"] == Choice((32, 64))
    assert narrowed(hidden({64: 20}, {32: 8, 64: 5}), raw)[0].parameters["hidden"] == Choice((64,))


def test_an_option_stays_if_its_absence_may_be_chance() -> None:
    """Eight of 200 trials miss the best 30 with probability 0.27."""
    raw: dict[str, object] = {"hidden": {"choice": [32, 64]}}
    assert narrowed(hidden({64: 30}, {32: 8, 64: 162}), raw)[0].parameters["hidden"] == Choice((32, 64))


def test_an_option_that_always_explodes_goes() -> None:
    raw: dict[str, object] = {"optimizer": {"choice": ["sgd", "adam"]}}
    records = [*ranking(["sgd"] * 20, "optimizer"), *exploded(["adam"] * 10, "optimizer")]  # type: ignore[list-item]
    assert narrowed(records, raw)[0].parameters["optimizer"] == Choice(("sgd",))


def test_a_million_trials_are_weighed_without_overflow() -> None:
    from master.stages import _chance_of_none

    assert _chance_of_none(1_000_000, 100_000, 150_000) == 0.0
    assert _chance_of_none(200, 8, 30) == pytest.approx(math.comb(192, 30) / math.comb(200, 30), rel=1e-9)
    assert _chance_of_none(10, 6, 5) == 0.0


def test_fixed_values_stay_and_have_no_note() -> None:
    space, notes = narrowed(around(20, 1e-3, 1e-2, "x"), {"x": LOG, "optimizer": "sgd"})
    assert space.plain()["optimizer"] == "sgd" and list(notes) == ["x"]


def test_whole_numbers_stay_whole_and_never_become_one() -> None:
    records = ranking([*[3] * 30, *[1, 2, 3, 4, 5, 6, 7, 8] * 10], "depth")
    space, _ = narrowed(records, {"depth": {"int_uniform": [1, 8]}})
    low, high = ends(space, "depth")
    assert isinstance(low, int) and isinstance(high, int)
    assert 1 <= low <= 3 <= high <= 4 and low < high


PARAMETERS = st.sampled_from(
    [
        {"log_uniform": [1e-6, 1e1]},
        {"log_uniform": [1e-3, 2e-3]},
        {"uniform": [0.0, 0.8]},
        {"uniform": [-5.0, 1000.0]},
        {"uniform": [0.2, 0.3], "limits": [0.1, 0.35]},
        {"int_uniform": [1, 2]},
        {"int_uniform": [3, 400]},
        {"log_int_uniform": [1, 3]},
        {"log_int_uniform": [16, 1024]},
        {"choice": [1, 2, 3]},
    ]
)


@given(raw=st.dictionaries(st.sampled_from(["learning_rate", "dropout", "x", "y"]), PARAMETERS, min_size=1), data=st.data())
@settings(max_examples=120, deadline=None)
def test_whatever_the_ranking_the_proposal_can_be_sampled_and_holds_the_best(raw: dict[str, object], data: st.DataObject) -> None:
    if raw.get("dropout", {}) in ({"uniform": [-5.0, 1000.0]},) or raw.get("learning_rate") == {"uniform": [-5.0, 1000.0]}:
        return
    if "dropout" in raw and max(next(iter(raw["dropout"].values()))) > 0.999:  # type: ignore[attr-defined]
        return
    first = Space.parse(raw)
    weights = [data.draw(st.floats(-1, 1)) for _ in first.parameters]
    floor, n = data.draw(st.floats(-1, 1)), data.draw(st.integers(1, 120))

    def accuracy(space: Space) -> object:
        def value(h: dict[str, object]) -> float | None:
            total = sum(w * p.to_unit(h[n]) for w, (n, p) in zip(weights, space.sampled.items(), strict=True))  # type: ignore[arg-type]
            return total if total >= floor else None

        return value

    space = first
    for stage, following in ((COARSE, FINE), (FINE, FINE)):
        records = sampled(space, accuracy(space), n)  # type: ignore[arg-type]
        proposal = propose(records, space, first, stage, following)
        assert Space.parse(proposal.space.plain()) == proposal.space  # nothing empty, upside down, or beyond what is allowed
        assert proposal.notes.keys() == proposal.space.sampled.keys() and all(proposal.notes.values())
        for name in first.numeric:
            (low, high), (least, most) = ends(proposal.space, name), first.limits(name)
            assert least <= low < high <= most
        completed = [r for r in records if r.val_acc is not None]
        if completed:
            best = max(completed, key=lambda r: r.val_acc or 0.0).hyperparameters
            for name, parameter in proposal.space.numeric.items():
                assert parameter.low <= best[name] <= parameter.high  # type: ignore[operator]
        space = proposal.space
