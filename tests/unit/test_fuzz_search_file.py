"""Hostile search files, ranges and URLs.

The result is a clear refusal or a search that can be sampled.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import tomlkit
from hypothesis import example, given
from hypothesis import strategies as st
from tomlkit.exceptions import TOMLKitError

from common.broker.urls import parse
from common.errors import CheckpointError, ConfigError, ProtocolError
from common.redact import redact
from common.search.protocol import PROTOCOL
from common.search.search_file import (
    STAGE_PATTERN,
    check_name,
    default_text,
    load_search,
    parse_search,
)
from common.search.space import Space
from master.stages.sampling import configurations
from master.stages.source import first_source
from master.strategy.box import Proposal
from master.strategy.ranges import (
    load_ranges,
    read_frozen,
    read_proposal,
    write_frozen,
    write_proposal,
)
from tests.unit.fuzzing import BYTES, JSON, TEXT, fuzzed, refusal, with_changes, with_flips

VALID: dict[str, Any] = {
    "name": "digits",
    "task": "my_task.py:MyTask",
    "seed": 231,
    "metric": "val_acc",
    "mode": "max",
    "sampler": "sobol",
    "keep": 5,
    "explosion_factor": 3.0,
    "space": {
        "learning_rate": {"log_uniform": [1e-6, 10.0], "limits": [1e-9, 100.0]},
        "dropout": {"uniform": [0.0, 0.8]},
        "depth": {"int_uniform": [1, 4]},
        "width": {"log_int_uniform": [8, 256]},
        "hidden": {"choice": [32, 64, "big", True]},
        "optimizer": {"choice": ["sgd", "adam"]},
        "momentum": {"uniform": [0.5, 0.9], "step": 0.1, "when": "optimizer == 'sgd'"},
        "beta2": {"fixed": 0.9, "when": "optimizer in ['adam'] and depth >= 2 or width < 9"},
        "guess": {"normal": [0.5, 0.1], "low": 0.3, "when": "momentum > 0.6"},
        "rate": {"log_normal": [-3.0, 1.0], "high": 2.0},
        "layers": {"choice": [[64, 64], [], {"kind": "deep", "units": [1, 2]}]},
    },
    "subject_to": ["latency_ms < 20", "1 <= size and size < 9"],
    "stages": {
        "coarse": {
            "trials": 20,
            "repeats": 2,
            "epochs": 0.5,
            "patience": 2.0,
            "chance_epochs": 1.0,
            "snapshots": 2,
        },
        "seeds": {"trials": 5, "epochs": 3, "kind": "seeds"},
    },
    "stragglers": {"lease_s": 30.0, "stuck_s": 300.0, "slow_factor": 4.0, "limit_s": 60.0},
    "resources": {"gpus": 1, "on_cpu": True},
}
SEARCH = parse_search(tomlkit.dumps(VALID))
FILE = tomlkit.dumps(VALID).encode()
RANGES = {
    "ranges": SEARCH.space.plain(),
    "next": {"stage": "fine", "digest": "0123456789abcdef", "ranges": SEARCH.space.plain()},
}


def toml(value: Any) -> str | None:
    """A nested value as TOML, None where it has no such form."""
    try:
        text = tomlkit.dumps(value)
        tomllib.loads(text)
    except (TOMLKitError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return text


@contextmanager
def written(content: bytes, name: str = "search.toml") -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        yield path


def sampled(space: Space) -> None:
    """Whatever is accepted can be sampled, written and read again."""
    assert Space.parse(tomllib.loads(tomlkit.dumps({"space": space.plain()}))["space"]) == space


@fuzzed
@given(with_changes(VALID))
@example({**VALID, "name": "x" * 50_000})
@example({**VALID, "space": {"learning_rate": {"choice": ["y" * 50_000, "y" * 50_000]}}})
@example({**VALID, "task": "../" * 1000 + "a\0b.py:X"})
def test_a_changed_search_file(value: Any) -> None:
    text = toml(value)
    search = (
        refusal(ConfigError, lambda: parse_search(text, "search.toml"))
        if text is not None
        else None
    )
    if search is None:
        return
    assert check_name(search.name) and "/" not in search.name
    for stage in search.stages:
        assert STAGE_PATTERN.fullmatch(stage.name)
        if stage.kind == "search":
            indices = range(min(3, stage.trials))
            trials = refusal(
                ConfigError,
                lambda: configurations(
                    search,
                    stage,  # noqa: B023
                    first_source(search),
                    indices,  # noqa: B023
                ),
            )
            assert trials is None or len(trials) == len(indices)
    sampled(search.space)


BUDGETED: dict[str, Any] = {
    **{key: value for key, value in VALID.items() if key != "stages"},
    "sampler": "staged",
    "budget": {
        "epochs": 300,
        "max_epochs": 20,
        "patience": 2.0,
        "chance_epochs": 1.0,
        "snapshots": 2,
        "slots": 2,
    },
    "strategy": {"clip": 1.0, "plain": 0.2, "density": 0.5, "overlap": True, "resumes": False},
    "stages": {
        "again": {"kind": "confirm", "epochs": 20, "best": 2, "seeds": 2},
        "one": {"kind": "distill", "epochs": 20, "trials": 1},
    },
}
LAUNCHED: dict[str, Any] = {  # as it lies in the search's folder
    **BUDGETED,
    "id": "0123456789abcdef",
    "protocol": PROTOCOL,
    "plan": [
        {"name": "coarse", "trials": 9, "epochs": 1.0, "rungs": [1.0, 2.0], "keep": [9, 3]},
        {
            "name": "fine",
            "trials": 3,
            "epochs": 2.0,
            "rungs": [2.0, 7.0, 20.0],
            "keep": [3, 1, 1],
            "patience": 2.0,
        },
    ],
}


@fuzzed
@example({**LAUNCHED, "plan": False})  # found by fuzzing
@given(
    with_changes(BUDGETED)
    | with_changes(LAUNCHED)
    | with_changes(LAUNCHED["plan"]).map(lambda plan: {**LAUNCHED, "plan": plan})
)
@example({name: value for name, value in LAUNCHED.items() if name != "protocol"})
@example({**LAUNCHED, "plan": 3})
@example(
    {
        **LAUNCHED,
        "plan": [{"name": "../up", "trials": 3, "epochs": 1.0, "rungs": [1.0], "keep": [3]}],
    }
)
@example({**BUDGETED, "budget": {"epochs": 1e9, "max_epochs": 1}})
@example({**BUDGETED, "budget": {"full_trainings": 3, "max_epochs": 1_000_000}})
def test_a_changed_search_file_with_a_budget(value: Any) -> None:
    """Its plan can be launched.

    Rungs ascend, promoted trials were there before, and stage names are unique.
    """
    text = toml(value)
    search = (
        refusal((ConfigError, ProtocolError), lambda: parse_search(text, "search.toml"))
        if text is not None
        else None
    )
    if search is None or search.budget is None:
        return
    assert len({stage.name for stage in search.stages}) == len(search.stages)
    for stage in search.stages:
        assert list(stage.plan.rungs) == sorted(set(stage.plan.rungs)) and len(
            stage.plan.rungs
        ) == len(stage.plan.keep)
        assert (
            list(stage.plan.keep) == sorted(stage.plan.keep, reverse=True)
            and stage.plan.keep[-1] >= 1
        )
        assert STAGE_PATTERN.fullmatch(stage.name) and search.max_epochs >= (
            stage.final_epochs if stage.searches else 0
        )
    trials = refusal(
        ConfigError,
        lambda: configurations(search, search.stages[0], first_source(search), range(3)),
    )
    assert trials is None or len(trials) == 3


@fuzzed
@given(
    BYTES
    | TEXT.map(lambda text: text.encode("utf-8", "replace"))
    | with_flips(FILE)
    | with_flips(default_text().encode())
)
def test_a_damaged_search_file(content: bytes) -> None:
    with written(content) as path:
        refusal(ConfigError, lambda: load_search(path))


@fuzzed
@given(
    with_changes(RANGES).map(toml).filter(lambda text: text is not None).map(str.encode)
    | with_flips(toml(RANGES).encode())
    | BYTES
)  # type: ignore[union-attr, arg-type]
def test_a_changed_ranges_file(content: bytes) -> None:
    space = SEARCH.space
    with written(content, "ranges.toml") as path:
        for read, kind in (
            (read_frozen, CheckpointError),
            (read_proposal, ConfigError),
            (load_ranges, ConfigError),
        ):
            found = refusal(kind, lambda: read(path, space))  # noqa: B023
            if found is not None:
                sampled(found)
        write_frozen(path, space)
        assert path.read_bytes() == content, "the first launch counts"
        refusal(CheckpointError, lambda: write_proposal(path, "fine", Proposal(space, {})))
        assert {entry.name for entry in path.parent.iterdir()} <= {
            "ranges.toml",
            "ranges.proposed.toml",
        }


@fuzzed
@given(st.dictionaries(TEXT, JSON, max_size=3))
def test_a_space_of_anything(raw: dict[str, Any]) -> None:
    space = refusal(ConfigError, lambda: Space.parse(raw))
    if space is not None:
        assert space.n_groups() >= 0 and set(space.parameters) == set(raw)


PASSWORDS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20).map("s3cret".__add__)
SCHEMES = st.sampled_from(
    ["redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "http", ""]
)
HOSTS = st.sampled_from(["localhost", "h:1", "h:x", "[::1]:1", "", "a,b:2", "h:99999"])
ENDS = st.sampled_from(["", "/0", "/x", "/svc/2", "?a=1", "?ssl_password=s3cretQ&b=2"])


@fuzzed
@given(PASSWORDS, SCHEMES, st.booleans(), HOSTS, ENDS)
def test_no_password_is_shown(
    password: str, scheme: str, encoded: bool, host: str, rest: str
) -> None:
    url = f"{scheme}://me:{quote(password, safe='') if encoded else password}@{host}{rest}"
    try:
        shown = repr(parse(url).kind)
    except ConfigError as error:
        shown = str(error)
    assert "s3cret" not in shown + redact(url)


@fuzzed
@given(TEXT | BYTES.map(lambda b: b.decode("latin-1")))
def test_any_text_as_a_url(url: str) -> None:
    refusal(ConfigError, lambda: parse(url))
    assert isinstance(redact(url), str)
