"""What a task and the engine read of a configuration whose values are lists and tables."""

from __future__ import annotations

from worker.own.trial import Read
from worker.training.math.recipe import Recorded, read_recipe

HP = {"learning_rate": 0.1, "layers": [64, {"units": [8]}], "scale": 0.5}


def test_a_task_that_changes_a_list_changes_its_own_copy() -> None:
    for hp in (Recorded(HP), Read(HP)):
        layers = hp["layers"]
        assert isinstance(layers, list)
        layers.pop()["units"].append(1)
        assert hp["layers"] == [64, {"units": [8]}]


def test_trials_of_equal_lists_share_an_array_and_their_loss_gets_a_copy() -> None:
    first, same = (read_recipe(hp, own_loss=True) for hp in (HP, {**HP, "scale": 0.1}))
    other = read_recipe({**HP, "layers": [64]}, own_loss=True)
    assert hash(first.key) == hash(same.key) and first.key == same.key != other.key
    first.plain["layers"].append(1)
    assert HP["layers"] == [64, {"units": [8]}]
