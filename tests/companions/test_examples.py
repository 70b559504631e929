"""The examples with other libraries, as their first lines say: `master launch`, real workers."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split

from tests.integration.commands import DEADLINE_S, Place, place
from worker.own import load_state

EXAMPLES = Path(__file__).parents[2] / "examples"
LEAST = {  # accuracy that the best trial reaches
    "lightning": 0.8,
    "transformers": 0.2,
    "keras": 0.8,
    "skorch": 0.8,
    "lightgbm": 0.9,
    "jax": 0.8,
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    """All examples, run at once: each process imports a library for seconds."""
    with ExitStack() as stack:
        places = {name: stack.enter_context(place(tmp_path_factory.mktemp(name))) for name in LEAST}
        processes = {}
        for name, here in places.items():
            launch = ["master", "launch", "--config", str(EXAMPLES / name / "search.toml")]
            processes[name] = here.start(
                *launch, "--stage", "all", "--workers", "1", log="launch.log"
            )
        for name, process in processes.items():
            assert process.wait(DEADLINE_S) == 0, places[name].output("launch.log")
        yield places


@pytest.mark.parametrize("name", list(LEAST))
def test_an_example_learns_and_leaves_its_best_state(name: str, ran: dict[str, Place]) -> None:
    here = ran[name]
    rows = here.rank("fine")
    assert rows and {row["state"] for row in rows} <= {"completed", "exploded", "stopped"}
    best = rows[0]
    assert best["val_acc"] > LEAST[name], rows
    assert best["val_loss"] is not None
    (search,) = {file.parents[2].name for file in here.root.glob("*/fine/trials/*.json")}
    record = next(
        one for one in here.records(search, "fine") if one["checkpoint"] == best["checkpoint"]
    )
    state = load_state(here.root / search / "fine" / best["checkpoint"])
    CHECKS[name](state, best, record)
    logs = "".join(file.read_text() for file in (here.root / search / "logs").iterdir())
    assert "is not read by" not in logs and "without a" not in logs, logs


def digits(share: float = 0.2) -> tuple[Any, Any]:
    images, labels = load_digits(return_X_y=True)
    _, val_x, _, val_y = train_test_split(
        images, labels, test_size=share, stratify=labels, random_state=7
    )
    return val_x, val_y


def check_lightning(state: Any, best: dict[str, Any], record: dict[str, Any]) -> None:
    content = torch.load(io.BytesIO(state["lightning.ckpt"]), weights_only=True)
    weights = content["state_dict"]
    inputs, targets = digits()
    inputs = torch.tensor(inputs / 16, dtype=torch.float32)
    hidden = inputs @ weights["layers.0.weight"].T + weights["layers.0.bias"]
    outputs = hidden.relu() @ weights["layers.2.weight"].T + weights["layers.2.bias"]
    accuracy = (outputs.argmax(1).numpy() == targets).mean()
    assert accuracy == pytest.approx(best["val_acc"])
    assert {"train_loss", "val_loss", "val_acc"} <= set(record["curves"])


def check_transformers(state: Any, best: dict[str, Any], record: dict[str, Any]) -> None:
    assert {"train_loss", "val_loss", "val_acc"} <= set(record["curves"])
    assert not {name for name in record["curves"] if "runtime" in name or "per_second" in name}
    assert list(state) == ["transformers.zip"]


def check_keras(state: Any, best: dict[str, Any], record: dict[str, Any]) -> None:
    assert {"train_loss", "train_acc", "val_loss", "val_acc"} <= set(record["curves"])
    assert state["keras.weights.h5"].startswith(b"\x89HDF")


def check_skorch(state: Any, best: dict[str, Any], record: dict[str, Any]) -> None:
    assert set(record["curves"]) == {"epoch", "seconds", "train_loss", "val_loss", "val_acc"}
    assert list(state) == ["skorch.zip"]


def check_lightgbm(state: Any, best: dict[str, Any], record: dict[str, Any]) -> None:
    """One report: nothing is said that a curve would have to show."""
    model = lightgbm.Booster(model_str=state["model"])
    inputs, targets = load_breast_cancer(return_X_y=True)
    _, val_x, _, val_y = train_test_split(
        inputs, targets, test_size=0.3, stratify=targets, random_state=7
    )
    assert ((model.predict(val_x) > 0.5) == val_y).mean() == pytest.approx(best["val_acc"])
    assert model.num_trees() == best["epochs"] == record["best_epoch"] == 100
    assert record.get("diagnosis") is None and len(record["curves"]["epoch"]) == 1


def check_jax(state: Any, best: dict[str, Any], record: dict[str, Any]) -> None:
    weights = state["weights"]
    assert isinstance(weights["first"]["w"], np.ndarray)
    inputs, targets = digits()
    hidden = np.maximum(inputs / 16 @ weights["first"]["w"] + weights["first"]["b"], 0)
    outputs = hidden @ weights["second"]["w"] + weights["second"]["b"]
    assert (outputs.argmax(1) == targets).mean() == pytest.approx(best["val_acc"])
    assert len(record["curves"]["epoch"]) == 4


CHECKS: dict[str, Callable[[Any, dict[str, Any], dict[str, Any]], None]] = {
    "lightning": check_lightning,
    "transformers": check_transformers,
    "keras": check_keras,
    "skorch": check_skorch,
    "lightgbm": check_lightgbm,
    "jax": check_jax,
}
