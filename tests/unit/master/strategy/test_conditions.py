"""Hyperparameters that exist only under a condition, in every way to draw."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.search.parameters import Fixed
from common.search.space import Space
from common.search.stage import Stage, Strategy
from common.search.values import Hyperparameters
from master.samplers.coding import code
from master.samplers.optuna import OptunaSampler
from master.samplers.protocol import with_fixed
from master.strategy.borders import borders_of
from master.strategy.box import propose
from master.strategy.drawing import Drawn, draw, draw_many
from master.strategy.freezing import Frozen, freeze
from master.strategy.places import Places
from master.strategy.ranges import check_ranges, read_frozen, write_frozen
from tests.unit.master.made import first_trials, searching
from tests.unit.master.strategy.made import CHILD_ONLY, DENSITY_ONLY, PLAIN_ONLY, searched, seen

RAW: dict[str, object] = {
    "learning_rate": {"log_uniform": [1e-4, 1.0]},
    "momentum": {"uniform": [0.5, 0.99], "when": "optimizer == 'sgd'"},
    "nesterov": {"choice": [True, False], "when": "momentum >= 0.7"},
    "optimizer": {"choice": ["sgd", "adam"]},
    "beta2": {"normal": [0.99, 0.002], "high": 0.9999, "when": "optimizer == 'adam'"},
    "eps": {"fixed": 1e-6, "when": "optimizer != 'sgd'"},
    "layers": {"choice": [[64], [64, 64]]},
}
SPACE = Space.parse(RAW)


def goodness(hp: Hyperparameters) -> float:
    """Best by sgd with a momentum of 0.9."""
    rate = abs(math.log10(hp["learning_rate"]) + 2)  # type: ignore[arg-type]
    momentum = hp.get("momentum")
    return -rate - (1.0 if momentum is None else abs(momentum - 0.9))  # type: ignore[operator]


SEARCHED = searched(60, goodness, SPACE)
FROZEN = freeze(SPACE, SPACE, SEARCHED)
OPTIONS = (PLAIN_ONLY, DENSITY_ONLY, CHILD_ONLY, Strategy(), Strategy(clip=0.0))


def check(values: Hyperparameters) -> None:
    """The configuration has exactly what exists, in the order of the space, within its range."""
    own = {"learning_rate", "optimizer", "layers"}
    if values["optimizer"] == "sgd":
        own |= {"momentum"} | ({"nesterov"} if values["momentum"] >= 0.7 else set())  # type: ignore[operator]
    else:
        own |= {"beta2", "eps"}
    assert list(values) == [name for name in RAW if name in own]
    assert 0.5 <= values.get("momentum", 0.5) <= 0.99  # type: ignore[operator]
    assert 0.98 <= values.get("beta2", 0.99) <= 0.9999  # type: ignore[operator]
    assert values.get("eps", 1e-6) == 1e-6 and values.get("nesterov", True) in (True, False)


@given(seed=st.integers(0, 2**63 - 1), start=st.integers(0, 100), n=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_every_way_to_draw_gives_what_exists_and_is_a_pure_function(
    seed: int, start: int, n: int
) -> None:
    for frozen in (freeze(SPACE, SPACE, []), FROZEN):
        for options in OPTIONS:
            drawn = draw_many(SPACE, frozen, seed, "fine", range(start, start + n), options)
            for index, one in enumerate(drawn, start):
                check(one.hyperparameters)
                assert one == draw(SPACE, frozen, seed, "fine", index, options)


@pytest.mark.parametrize("sampler", ["staged", "random", "sobol"])
def test_the_first_stage_of_every_sampler_gives_what_exists(sampler: str) -> None:
    stage = Stage(name="coarse", trials=200, epochs=1)
    trials = first_trials(searching(SPACE, stage, sampler=sampler), range(64))
    for trial in trials:
        check(trial.hyperparameters)
    assert 16 < sum("momentum" in trial.hyperparameters for trial in trials) < 48


def test_a_space_without_conditions_draws_what_it_drew_before() -> None:
    plain = Space.parse(
        {name: {k: v for k, v in raw.items() if k != "when"} for name, raw in RAW.items()}  # type: ignore[attr-defined]
    )
    whole = draw_many(plain, freeze(plain, plain, []), 3, "coarse", range(40), Strategy())
    pruned = draw_many(SPACE, freeze(SPACE, SPACE, []), 3, "coarse", range(40), Strategy())
    for one, other in zip(whole, pruned, strict=True):
        assert SPACE.prune(one.hyperparameters) == other.hyperparameters


def children(parents: list[Hyperparameters], n: int = 300) -> list[Drawn]:
    """Children of these alone."""
    trials = [seen(i, SPACE.prune(own), (1.0, -float(i))) for i, own in enumerate(parents)]
    return draw_many(SPACE, freeze(SPACE, SPACE, trials), 7, "fine", range(n), CHILD_ONLY)


ADAM: Hyperparameters = {
    "learning_rate": 0.01,
    "optimizer": "adam",
    "beta2": 0.99,
    "eps": 1e-6,
    "layers": [64],
}
SGD: Hyperparameters = {
    "learning_rate": 0.01,
    "momentum": 0.9,
    "nesterov": True,
    "optimizer": "sgd",
    "layers": [64],
}


def test_a_child_whose_condition_becomes_true_draws_what_its_parents_lack() -> None:
    values = [
        one.hyperparameters["momentum"]
        for one in children([ADAM])
        if one.hyperparameters["optimizer"] == "sgd"
    ]
    assert len(values) > 10
    assert min(values) < 0.6 and max(values) > 0.9  # type: ignore[operator, type-var]


def test_a_child_takes_from_the_other_parent_what_the_first_lacks() -> None:
    found = [
        one
        for one in children([ADAM, SGD])
        if one.hyperparameters["optimizer"] == "sgd" and len(one.parents) == 2
    ]
    near = sum(abs(one.hyperparameters["momentum"] - 0.9) < 0.2 for one in found)  # type: ignore[operator]
    assert near > 0.9 * len(found) > 10


def test_densities_find_the_good_branch_and_its_values() -> None:
    drawn = draw_many(SPACE, FROZEN, 1, "fine", range(100), DENSITY_ONLY)
    by_sgd = [one.hyperparameters for one in drawn if one.hyperparameters["optimizer"] == "sgd"]
    assert len(by_sgd) > 65
    assert np.mean([hp["momentum"] for hp in by_sgd]) > 0.8


def test_what_a_stage_knows_reads_back(tmp_path: Path) -> None:
    assert any(None in known.z for known in (*FROZEN.parents, *FROZEN.good, *FROZEN.bad))
    assert Frozen.from_json(json.loads(json.dumps(FROZEN.as_json())), SPACE) == FROZEN
    write_frozen(tmp_path / "ranges.toml", SPACE)
    assert read_frozen(tmp_path / "ranges.toml", SPACE) == SPACE
    for values in (ADAM, SGD):
        path = tmp_path / f"{values['optimizer']}.toml"
        fixed = Space({name: Fixed(value) for name, value in values.items()})
        write_frozen(path, fixed, ["coarse-0001"])
        assert read_frozen(path, SPACE).parameters == fixed.parameters


def test_a_configuration_that_lacks_what_should_exist_is_not_known() -> None:
    places = Places(SPACE, SPACE)
    assert places.row({k: v for k, v in SGD.items() if k != "nesterov"}) is None
    row = places.row(SGD)
    assert row is not None and row[list(SPACE.sampled).index("beta2")] is None
    assert places.row(SGD | {"beta2": 0.99}) == row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momentum": {"uniform": [0.5, 0.9], "when": "optimizer == 'adam'"}}, r"it is \"opt"),
        ({"learning_rate": {"log_uniform": [1e-3, 1], "when": "momentum > 0.6"}}, r"it has none"),
    ],
)
def test_a_condition_stays_the_same_in_all_stages(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=r"a condition stays the same") as error:
        check_ranges({**RAW, **change}, "[ranges]", SPACE)
    assert error.match(message)
    narrowed = {**RAW, "momentum": {"uniform": [0.6, 0.9]}}
    momentum = check_ranges(narrowed, "[ranges]", SPACE).parameters["momentum"]
    assert momentum.when == SPACE.parameters["momentum"].when


def test_borders_are_those_of_the_trials_that_have_the_hyperparameter() -> None:
    top = [ADAM] * 12 + [SGD | {"momentum": 0.99}] * 6 + [SGD | {"momentum": 0.6}] * 2
    found = {border.hyperparameter: border for border in borders_of(top, SPACE)}
    assert set(found) == {"momentum"}
    assert (found["momentum"].support, found["momentum"].of) == (6, 8)
    assert "6 of the best 8 in the outer 10%" in found["momentum"].advice
    wide = Space.parse({**RAW, "momentum": {"uniform": [0.5, 0.8], "when": "optimizer == 'sgd'"}})
    trials = [
        seen(i, hp | {"momentum": 0.8} if "momentum" in hp else hp, (1.0, -float(i)))
        for i, hp in enumerate(top)
    ]
    proposal = propose(wide, wide, trials)
    assert proposal.space.ranged["momentum"].high > 0.8
    assert "support 8 of the best 8" in proposal.notes["momentum"]
    assert proposal.space.parameters["momentum"].when == wide.parameters["momentum"].when


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_optuna_suggests_what_exists_and_is_told_what_existed(sampler: str) -> None:
    search = searching(SPACE, Stage(name="coarse", trials=20, epochs=1), sampler=sampler)
    own = OptunaSampler(search, SPACE)
    known = list(SEARCHED[:12])
    for index in range(12, 18):
        one = own.ask([*known, seen(99, SGD)], index)
        check(one.hyperparameters)
        known.append(seen(index, one.hyperparameters, (1.0, goodness(one.hyperparameters))))


def test_a_library_without_conditions_suggests_what_exists() -> None:
    full = {name: own.from_unit(0.6) for name, own in SPACE.sampled.items()}
    check(with_fixed(SPACE, full))
    for name, own in SPACE.sampled.items():
        assert code(own).encode(full[name]) is not None, name
