"""Hostile records, names and small files.

They are skipped and reported, without a traceback and without access to another place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import example, given
from hypothesis import strategies as st

from common.broker.embedded_folder import Place
from common.errors import CheckpointError, QueueError
from common.folder import ledger
from common.folder.checkpoint_name import CheckpointName
from common.folder.record import Record
from common.folder.records import SearchFolder, StageFolder, home_of, read_record, searches
from common.queue import wire
from common.search.trial import Result, Trial, TrialState
from master.results import ranking
from master.run import checking
from master.stages.standings import make_seen, trial_of
from master.strategy.borders import borders
from master.strategy.box import propose
from master.strategy.freezing import freeze
from tests.unit.fuzzing import BYTES, JSON, TEXT, fuzzed, refusal, with_changes, with_flips
from tests.unit.test_fuzz_search_file import SEARCH, VALID, toml

NAME = "coarse-0001-try=1.json"
TRIAL = Trial(
    "coarse-0001",
    "coarse",
    1,
    7,
    1.0,
    {
        "learning_rate": 0.1,
        "dropout": 0.5,
        "depth": 1,
        "width": 16,
        "hidden": "big",
        "optimizer": "sgd",
    },
    '{"hidden":"big"}',
)
RESULT = Result(
    TrialState.COMPLETED,
    "x",
    0.9,
    0.3,
    1.0,
    "val_acc=0.9000-trial=coarse-0001-epoch=001-try=1.pt",
    "w",
    1.0,
    0.5,
    "cpu",
    4,
    0.9,
)
MORE = {
    "curves": {"epoch": [1.0, 2.0], "val_acc": [0.5, None]},
    "metrics": {"val_f1": 0.5},
    "diagnosis": {"word": "noisy", "sentence": "It is.", "figures": {"a": 1.0}},
    "snapshots": ["a.pt"],
    "traceback": "line",
}
VALID_RECORD = json.loads(Record.of("0" * 16, TRIAL, 1, RESULT, **MORE).model_dump_json())
RECORD = json.dumps(VALID_RECORD).encode()
FILE_NAMES = st.one_of(
    TEXT,
    st.from_regex(
        (
            r"[a-z_]{1,9}=-?\d{1,400}\.\d{4,12}-trial=coarse-\d{4,12}-epoch=\d{3,"
            r"400}-try=\d{1,400}\.(pt|npz)"
        ),
        fullmatch=True,
    ),
    st.from_regex(r"coarse-\d{4,40}-try=\d{1,400}\.(json|pt|json\.damaged)", fullmatch=True),
    st.sampled_from(
        [
            "coarse-0001-try=1.json",
            "val_acc=0.9000-trial=coarse-0001-epoch=001-try=1.pt",
            ".tmp-1-a",
            "trials",
        ]
    ),
).filter(
    lambda name: (
        name not in ("", ".", "..")
        and not set(name) & {"/", "\0"}
        and len(name.encode("utf-8", "surrogatepass")) < 250
    )
)


@contextmanager
def stage_folder() -> Iterator[StageFolder]:
    with TemporaryDirectory() as root:
        folder = SearchFolder(Path(root), "digits").stage("coarse")
        folder.make()
        yield folder


@fuzzed
@given(
    with_changes(VALID_RECORD).map(lambda value: json.dumps(value).encode())
    | BYTES
    | with_flips(RECORD)
)
@example(json.dumps({**VALID_RECORD, "index": -(10**30), "epochs": 1e308}).encode())
def test_a_changed_record(content: bytes) -> None:
    with stage_folder() as folder:
        (folder.trials / NAME).write_bytes(content)
        record = refusal(CheckpointError, lambda: read_record(folder.trials / NAME))
        told: list[str] = []
        assert [found.trial for found in folder.records(told.append)] == (
            [record.trial] if record else []
        )
        assert len(told) == (record is None)
        if record is not None:
            look_at(record)


def look_at(record: Record) -> None:
    """What the commands make of a record that was taken for one."""
    table = ranking.frame([record, Record.of("0" * 16, TRIAL, 2, RESULT)])
    for draw in (ranking.as_json, ranking.csv, ranking.markdown):
        assert isinstance(draw(table, set()), str)
    ranking.table(table)
    json.loads(ranking.as_json(table, set()), parse_constant=lambda word: 1 / 0)
    assert isinstance(wire.result_out(record.result()), str)
    refusal(CheckpointError, lambda: borders([record], SEARCH.space))
    assert trial_of(record).id == record.trial
    if record.stage != "coarse":
        return  # no stage of this search
    seen = refusal(CheckpointError, lambda: make_seen([record], {"coarse": 0}, 1.0, {}))
    if seen is not None:
        assert (
            propose(SEARCH.space, SEARCH.space, seen).space.parameters.keys()
            == SEARCH.space.parameters.keys()
        )
        freeze(SEARCH.space, SEARCH.space, seen * 30)


@fuzzed
@given(st.lists(FILE_NAMES, max_size=8, unique=True))
def test_any_names_in_the_folder(names: list[str]) -> None:
    with stage_folder() as folder:
        for place in (folder.path, folder.trials, folder.resume):
            for name in names:
                path = place / name
                if not path.exists():
                    path.write_bytes(b"{}")
        folder.records(lambda problem: None)
        refusal(CheckpointError, lambda: all_inside(folder))  # a file may stand in a folder's place
        assert all(0 <= attempt < 10**9 for attempt in folder.highest_attempts().values())
        for name in names:
            refusal(CheckpointError, lambda: home_of(folder.path / name))  # noqa: B023


def all_inside(folder: StageFolder) -> None:
    found = [
        path
        for name in folder.checkpoints() + folder.checkpoints("min")
        for path in folder.belongings(name)
    ]
    found += [*folder.find_left_behind(), *(file.path for file in folder.attempts(folder.resume))]
    assert all(path.resolve().is_relative_to(folder.path.resolve()) for path in found)


@fuzzed
@given(FILE_NAMES)
def test_a_name_is_read_as_it_is_written(text: str) -> None:
    name = CheckpointName.parse(text)
    if name is not None:
        again = CheckpointName.parse(str(name))
        assert again is not None and again.tried == name.tried and "/" not in str(name)


@fuzzed
@given(
    st.lists(FILE_NAMES, max_size=4, unique=True),
    with_changes(VALID).map(toml) | BYTES.map(lambda content: content.decode("latin-1")),
)
def test_any_folders_below_the_root(names: list[str], text: str | None) -> None:
    with TemporaryDirectory() as root:
        for name in [*names, "digits"]:
            (Path(root) / name).mkdir()
            (Path(root) / name / "search.toml").write_text(
                f'id = "0123456789abcdef"\nprotocol = 2\n{text or ""}', errors="replace"
            )
        for folder in searches(Path(root)):
            refusal(CheckpointError, folder.search)


@fuzzed
@given(BYTES, st.integers(1, 3))
def test_any_ledger(content: bytes, n_looks: int) -> None:
    with TemporaryDirectory() as root:
        folder = SearchFolder(Path(root), "digits")
        folder.path.mkdir()
        (folder.path / ledger.NAME).write_bytes(content)
        before = ledger.count(folder) + (not content.endswith(b"\n") and bool(content))
        looks = ledger.note(folder, [{"correct": 1}] * n_looks)
        assert (looks.first, looks.last) == (before + 1, before + n_looks)
        assert ledger.count(folder) == before + n_looks
        assert (folder.path / ledger.NAME).read_bytes().startswith(content)


NOTE = {"format": 1, "fingerprint": "f", "passed": True}
PLACE = {"host": "h", "boot_id": "b", "socket": "/tmp/s"}


@fuzzed
@given(
    with_changes(NOTE).map(lambda v: json.dumps(v).encode())
    | with_changes(PLACE).map(lambda v: json.dumps(v).encode())
    | BYTES
)
def test_any_note_of_a_check_or_of_a_server(content: bytes) -> None:
    with TemporaryDirectory() as root:
        path = Path(root) / "note.json"
        path.write_bytes(content)
        known = checking._read_note(cast(Any, SimpleNamespace(check_file=path)), "f")
        assert known in (None, content)
        place = refusal((CheckpointError, QueueError), lambda: Place.read(path))
        assert place is None or all(isinstance(value, str) for value in vars(place).values())


@fuzzed
@given(JSON)
def test_any_json_as_a_record(value: Any) -> None:
    with stage_folder() as folder:
        (folder.trials / NAME).write_text(json.dumps(value))
        assert refusal(CheckpointError, lambda: read_record(folder.trials / NAME)) is None
