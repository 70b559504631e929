from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import CheckpointError
from common.folder.checkpoint_name import CheckpointName, epoch_number
from common.folder.record import Record
from common.folder.records import (
    MAX_RECORD_BYTES,
    SearchFolder,
    StageFolder,
    read_record,
    searches,
)
from common.search.trial import ENDED, Result, Trial, TrialState

SEARCH = (
    'name = "digits"\ntask = "digits"\n[space]\nlearning_rate = 0.1\n[stages.coarse]\n'
    "trials = 1\nepochs = 1\n"
)
TRIAL = Trial(
    "coarse-0042",
    "coarse",
    42,
    7,
    1.0,
    {"learning_rate": 0.1, "hidden": 64, "nesterov": True, "optimizer": "sgd"},
    '{"hidden":64}',
)
NUMBERS = st.one_of(st.none(), st.floats())


def record(attempt: int = 1, trial: Trial = TRIAL, **more: object) -> Record:
    return Record.of(
        "0" * 16,
        trial,
        attempt,
        Result(TrialState.COMPLETED, val_acc=0.5, val_loss=1.0, epochs=1.0),
        **more,
    )


def same(a: object, b: object) -> bool:
    """Equal, and NaN equal to itself, kinds included."""
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    folder = StageFolder(tmp_path / "coarse")
    folder.make()
    return folder


def told(folder: StageFolder) -> tuple[list[Record], list[str]]:
    warnings: list[str] = []
    return folder.records(warnings.append), warnings


# -- records


@given(
    acc=NUMBERS,
    loss=NUMBERS,
    curve=st.lists(NUMBERS, max_size=4),
    state=st.sampled_from(sorted(ENDED)),
    reason=st.one_of(st.none(), st.text()),
    value=st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
)
@settings(max_examples=200)
def test_a_record_survives_its_file_with_kinds_and_odd_numbers(
    acc: float | None,
    loss: float | None,
    curve: list[float | None],
    state: TrialState,
    reason: str | None,
    value: object,
) -> None:
    trial = Trial(
        "coarse-0001",
        "coarse",
        1,
        2**63 - 1,
        0.5,
        {"x": value},  # type: ignore[dict-item]
        "{}",
    )
    result = Result(state, reason, acc, loss, 0.5, "a.pt", "w", 1.5, 0.1, "cpu", 8)
    before = Record.of("0" * 16, trial, 3, result, curves={"train_loss": curve}, traceback=reason)
    text = before.model_dump_json(exclude_none=True)
    json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    after = Record.model_validate_json(text)
    assert same(after.model_dump(), before.model_dump())
    assert same(vars(after.result()), vars(result))
    assert (
        after.trial,
        after.stage,
        after.index,
        after.seed,
        after.budget_epochs,
        after.group,
    ) == (
        trial.id,
        trial.stage,
        trial.index,
        trial.seed,
        trial.epochs,
        trial.group,
    )
    assert same(after.hyperparameters, trial.hyperparameters)


def test_records_are_written_and_read_back(folder: StageFolder) -> None:
    folder.write_records(
        [record(), record(trial=Trial("coarse-0007", "coarse", 7, 1, 1.0, {}, "{}"))]
    )
    assert sorted(p.name for p in folder.trials.iterdir()) == [
        "coarse-0007-try=1.json",
        "coarse-0042-try=1.json",
    ]
    records, warnings = told(folder)
    assert [r.trial for r in records] == ["coarse-0007", "coarse-0042"] and warnings == []
    assert folder.record("coarse-0042", 1) == record()
    assert folder.record("coarse-0042", 1) == record()
    assert folder.record("coarse-0042", 2) is None


def test_the_first_word_about_an_attempt_counts(folder: StageFolder) -> None:
    folder.write_records([record(val_acc=0.1)])
    folder.write_records([record(val_acc=0.9)])
    assert told(folder)[0][0].val_acc == 0.1


def test_the_highest_attempt_is_the_trial(folder: StageFolder) -> None:
    folder.write_records([record(attempt) for attempt in (2, 10, 9)])
    records, _ = told(folder)
    assert [r.attempt for r in records] == [10]
    assert folder.highest_attempts() == {"coarse-0042": 10}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"\xff\xfe",
        b'{"format": 1}',
        b"[" * 10_000,
        record(1).model_dump_json().encode(),
    ],
)
def test_a_damaged_record_is_told_and_the_attempt_below_it_counts(
    folder: StageFolder, content: bytes
) -> None:
    folder.write_records([record(1)])
    damaged = folder.record_path("coarse-0042", 2)
    damaged.write_bytes(content)
    records, warnings = told(folder)
    assert [r.attempt for r in records] == [1]
    assert (
        len(warnings) == 1 and warnings[0].startswith(str(damaged)) and "set aside" in warnings[0]
    )
    assert damaged.exists()
    assert folder.record("coarse-0042", 2) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("state", "running"), ("state", "pending"), ("attempt", 0), ("attempt", -1)],
)
def test_what_no_attempt_ends_with_is_damaged(
    folder: StageFolder, field: str, value: object
) -> None:
    folder.write_records([record()])
    path = folder.record_path(TRIAL.id, 1)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    records, warnings = told(folder)
    assert records == [] and len(warnings) == 1 and str(path) in warnings[0]


def test_a_record_that_cannot_be_read_for_now_is_not_set_aside(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_records([record()])
    path = folder.record_path(TRIAL.id, 1)

    def fails(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("common.safe_read.read_bytes", fails)
        with pytest.raises(CheckpointError, match="Input/output error"):
            folder.records(print, set_aside=True)
        with pytest.raises(CheckpointError, match="Input/output error"):
            folder.set_damaged_aside(TRIAL.id, 1, "0" * 16)
        assert told(folder)[0] == []  # who only looks goes on
    assert told(folder) == ([record()], [])
    folder.set_damaged_aside(TRIAL.id, 1, "0" * 16)
    assert path.exists()  # sound, and this search's
    folder.set_damaged_aside(TRIAL.id, 1, "1" * 16)
    assert not path.exists()


def test_a_record_that_is_far_too_large_is_not_read(folder: StageFolder) -> None:
    path = folder.record_path("coarse-0042", 1)
    with path.open("wb") as file:
        file.truncate(MAX_RECORD_BYTES + 1)
    assert "more than the 16,777,216 that such a file can have" in told(folder)[1][0]


def test_a_folder_in_a_records_place_is_told(folder: StageFolder) -> None:
    folder.record_path("coarse-0042", 1).mkdir()
    assert len(told(folder)[1]) == 1
    with pytest.raises(CheckpointError):
        read_record(folder.record_path("coarse-0042", 1))


def test_foreign_and_temporary_files_are_passed_over(folder: StageFolder) -> None:
    for name in (
        ".tmp-1-abc",
        "notes.txt",
        "coarse-0042-try=1.json.bak",
        "coarse-42-try=1.json",
        "coarse-0042.json",
    ):
        (folder.trials / name).write_text("x")
    assert told(folder) == ([], [])


def test_a_folder_that_is_not_there_has_no_records(tmp_path: Path) -> None:
    assert told(StageFolder(tmp_path / "none")) == ([], [])


def test_resume_states_are_found_by_attempt(folder: StageFolder) -> None:
    assert folder.find_states("coarse-0042") == []
    for attempt in (9, 10, 2):
        folder.resume_path("coarse-0042", attempt).write_bytes(b"x")
    folder.resume_path("coarse-0043", 99).write_bytes(b"x")
    assert folder.find_states("coarse-0042")[0] == folder.resume_path("coarse-0042", 10)
    assert folder.highest_attempts() == {"coarse-0042": 10, "coarse-0043": 99}


def test_a_record_without_a_value_is_known_by_its_accuracy() -> None:
    assert record().measured == 0.5
    assert record(metric="val_loss", mode="min").measured == 1.0
    assert record(metric="val_f1").measured is None
    assert record(metric="val_f1", value=0.25).measured == 0.25


# -- names


@given(
    value=st.floats(0, 1),
    stage=st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,31}", fullmatch=True),
    index=st.integers(0, 999_999),
    epoch=st.integers(0, 100_000),
    attempt=st.integers(1, 10**6),
)
def test_checkpoint_names_round_trip(
    value: float, stage: str, index: int, epoch: int, attempt: int
) -> None:
    name = CheckpointName(round(value, 4), f"{stage}-{index:04d}", epoch, attempt)
    assert CheckpointName.parse(str(name)) == name


def test_a_checkpoint_is_named_as_promised() -> None:
    assert (
        str(CheckpointName(0.93612, "coarse-0042", 1, 1))
        == "val_acc=0.9361-trial=coarse-0042-epoch=001-try=1.pt"
    )


@given(st.one_of(st.floats(-1e14, 1e14), st.floats(-0.01, 0.01), st.floats(-1e-12, 1e-12)))
def test_every_value_makes_a_name_that_reads_back_as_itself(value: float) -> None:
    name = CheckpointName(value, "coarse-0042", 1, 1, "val_mae")
    parsed = CheckpointName.parse(str(name))
    assert parsed is not None and str(parsed) == str(name)
    assert abs(parsed.value - value) <= (
        1e-3 * abs(value) + 1e-9 if abs(value) < 1e-3 else 1e-4 + 1e-15 * abs(value)
    )


def test_small_losses_are_told_apart_and_stay_in_order() -> None:
    losses = [0.0, 1.234e-7, 3.1e-5, 0.00031, 0.0004, 0.000412, 0.009, 0.01, 0.5, 9.75]
    names = [str(CheckpointName(loss, "coarse-0042", 1, 1, "val_loss")) for loss in losses]
    assert sorted(names) == names and len(set(names)) == len(names)
    assert names[2].startswith("val_loss=0.00003100-")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x.pt",
        "val_acc=0.9-trial=coarse-0042-epoch=001-try=1.pt",
        "val_acc=0.9361-trial=coarse-0042-epoch=001-try=1.pt.tmp",
    ],
)
def test_other_names_are_no_checkpoints(name: str) -> None:
    assert CheckpointName.parse(name) is None


def test_the_listing_backwards_shows_the_best_first(folder: StageFolder) -> None:
    values = [0.9361, 0.1, 1.0, 0.95, 0.0999]
    for i, value in enumerate(values):
        (folder.path / str(CheckpointName(value, f"coarse-{i:04d}", 1, 1))).write_bytes(b"")
    (folder.path / "leaderboard.csv").write_text("")
    assert [c.value for c in folder.checkpoints()] == sorted(values, reverse=True)


def test_where_the_smallest_is_best_the_listing_forwards_shows_the_best_first(
    folder: StageFolder,
) -> None:
    values = [120.5, 0.25, 3.0, 0.00001]
    for i, value in enumerate(values):
        (folder.path / str(CheckpointName(value, f"coarse-{i:04d}", 1, 1, "val_mae"))).write_bytes(
            b""
        )
    assert [c.value for c in folder.checkpoints("min")] == sorted(values)
    assert [c.value for c in folder.checkpoints("max")] == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("epochs", "number"),
    [(0.5, 1), (1.0, 1), (1.5, 2), (20.0, 20), (0.1 + 0.2 + 0.7, 1), (3 * 0.1 * 10, 3)],
)
def test_a_fraction_of_an_epoch_is_rounded_up(epochs: float, number: int) -> None:
    assert epoch_number(epochs) == number


# -- the search's folder


def test_a_launched_search_is_found_with_its_id(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path, "digits")
    assert folder.search() is None and searches(tmp_path) == []
    folder.path.mkdir()
    folder.search_file.write_text('id = "0123456789abcdef"\nprotocol = 2\n' + SEARCH)
    (tmp_path / ".digits-replaced").mkdir()
    (tmp_path / "empty").mkdir()
    search = folder.search()
    assert search is not None and search.id == "0123456789abcdef"
    assert [f.name for f in searches(tmp_path)] == ["digits"]
    assert folder.stage("coarse").path == tmp_path / "digits" / "coarse"


@pytest.mark.parametrize(
    ("text", "message"),
    [("x", "puts your own copy of it in its place"), (SEARCH, "was not written by launch")],
)
def test_a_damaged_search_file_in_the_folder_is_told(
    tmp_path: Path, text: str, message: str
) -> None:
    folder = SearchFolder(tmp_path, "digits")
    folder.path.mkdir()
    folder.search_file.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        folder.search()


def test_a_root_that_may_not_be_looked_into_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(CheckpointError, match="permission denied; make it writable"):
        SearchFolder(tmp_path, "digits").search()


def test_val_acc_and_val_loss_repeat_the_metrics() -> None:
    of_worker = record(val_acc=None, val_loss=None, metrics={"val_acc": 0.7, "val_f1": 0.2})
    assert (of_worker.val_acc, of_worker.val_loss) == (None, None)  # no epoch was the best
    best = record(val_acc=None, val_loss=None, metrics={"val_acc": 0.7}, best_epoch=1.0)
    assert (best.val_acc, best.val_loss, best.result().val_acc) == (0.7, None, 0.7)
    assert '"val_acc":0.7' in best.model_dump_json(exclude={"metrics"})
    older = record(val_acc=0.7, val_loss=1.5)  # as written before records had metrics
    assert older.metrics == {"val_acc": 0.7, "val_loss": 1.5}


def test_several_damaged_records_are_told_in_one_message(folder: StageFolder) -> None:
    folder.write_records([record(1)])
    for attempt in (2, 3, 4):
        folder.record_path("coarse-0042", attempt).write_bytes(b"{")
    records, warnings = told(folder)
    assert [r.attempt for r in records] == [1] and len(warnings) == 1
    others = "coarse-0042-try=3.json, coarse-0042-try=2.json"
    assert "coarse-0042-try=4.json" in warnings[0]
    assert warnings[0].endswith(f"; damaged as well: {others}")
