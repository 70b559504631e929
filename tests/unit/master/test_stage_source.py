"""What a stage samples, frozen at its launch.

It is a pure function of earlier results and is read back as written. Damage is reported by name.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from common.errors import CheckpointError, ConfigError
from common.folder.record import Record
from common.search.stage import Stage
from common.search.trial import Result, TrialState
from master.stages.sampling import configurations
from master.stages.source import (
    make_proposal,
    make_source,
    read_before,
    read_seen_before,
    read_source,
)
from tests.unit.master.played import TEXT, Played

OVERLAP = TEXT + "[strategy]\noverlap = true\n"
SEARCHING = ("coarse", "middle", "fine", "finer")
FOLLOWING = TEXT + (
    '[stages.sure]\nkind = "confirm"\nepochs = 9\nbest = 2\nseeds = 2\n[stages.again]\n'
    'kind = "seeds"\ntrials = 3\nepochs = 9\n'
)


@pytest.fixture
def played(tmp_path: Path) -> Played:
    return Played(tmp_path)


def made_again(played: Played, name: str) -> object:
    """What a launch of this stage would freeze now, as if it had not been launched."""
    stage = played.search.stage(name)
    before = read_before(
        played.search, played.folder, played.search.up_to(name)[:-1], played.told.append
    )
    return make_source(played.search, played.folder, stage, before)


def test_a_first_stage_knows_nothing_and_a_later_one_is_bred_from_the_best(played: Played) -> None:
    first = played.begin("coarse")
    assert (
        first.frozen is not None and not first.frozen.parents and first.space == played.search.space
    )
    played.run("coarse")
    second = played.source("middle")
    assert second.frozen is not None and not second.repeats
    best = sorted(played.before().standings.candidates(3.0), key=lambda one: -one.goodness)[:5]
    assert [own.trial for own in second.frozen.parents] == [one.trial for one in best]
    trials = configurations(played.search, played.search.stage("middle"), second, range(12))
    assert {trial.drawn for trial in trials} <= {"plain", "density", "child"} and any(
        trial.parents for trial in trials
    )
    assert {parent for trial in trials for parent in trial.parents} <= {
        f"coarse-{i:04d}" for i in range(18)
    }


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        OVERLAP,
        FOLLOWING,
        TEXT.replace("seed = 4", 'seed = 4\nmetric = "val_loss"\nmode = "min"'),
    ],
)
def test_asked_again_after_later_stages_ran_it_is_what_was_frozen(
    tmp_path: Path, text: str
) -> None:
    """Trials of earlier stages that were promoted meanwhile have longer records now."""
    played = Played(tmp_path, text)
    held = None
    for stage in played.search.stages:
        overlaps = played.search.overlaps and stage.name != played.search.stages[-1].name
        ladder = played.run(stage.name, random.Random(5), overlaps)
        for trial in held.release() if held is not None else ():
            played.end(trial)
        held = ladder
    for stage in played.search.stages[1:]:
        assert made_again(played, stage.name) == read_source(
            played.search, played.folder.stage(stage.name)
        ), stage.name


@pytest.mark.parametrize(
    "text", [TEXT, FOLLOWING, TEXT.replace("seed = 4", 'seed = 4\nsampler = "random"')]
)
def test_it_reads_back_as_it_was_written(tmp_path: Path, text: str) -> None:
    played = Played(tmp_path, text)
    for stage in played.search.stages:
        frozen = played.begin(stage.name)
        assert (
            read_source(played.search, played.folder.stage(stage.name))
            == played.source(stage.name)
            == frozen
        )
        played.run(stage.name)
        assert read_source(played.search, played.folder.stage(stage.name)).digest == frozen.digest


def test_the_outcome_of_a_search_does_not_depend_on_the_order_in_which_trials_end(
    tmp_path: Path,
) -> None:
    ends = []
    for number in range(3):
        played = Played(tmp_path / str(number))
        for name in SEARCHING:
            played.run(name, random.Random(number))
        last = [
            (t.id, t.hyperparameters, t.epochs, t.parents)
            for t in played.before().standings.all_trials()
        ]
        ends.append((played.promotions(), sorted(last)))
    assert ends[0] == ends[1] == ends[2]


def test_with_overlap_a_stage_does_not_know_the_last_rung_of_the_one_before(tmp_path: Path) -> None:
    played = Played(tmp_path, OVERLAP)
    ladder = played.run("coarse", holds_last=True)
    frozen = played.begin("middle")  # nobody has been promoted yet
    assert frozen.frozen is not None and frozen.frozen.parents
    for trial in ladder.release():
        played.end(trial)
    assert made_again(played, "middle") == frozen
    before = read_before(played.search, played.folder, played.search.stages[:1], print)
    known = read_seen_before(played.search, played.folder, played.search.stage("middle"), before)
    assert {epochs for one in known for epochs, _ in one.measured} == {1.0}
    later = Played(tmp_path / "without")
    later.run("coarse")
    known = read_seen_before(
        later.search, later.folder, later.search.stage("middle"), later.before()
    )
    assert {epochs for one in known for epochs, _ in one.measured} == {1.0, 3.0}


def test_a_stage_waits_for_all_that_it_has_to_know(played: Played) -> None:
    played.begin("coarse")
    with pytest.raises(
        ConfigError,
        match=(
            "--stage middle: the stage before it, 'coarse', has ended 0 of 18 trials; run "
            "`master launch"
        ),
    ):
        played.source("middle")
    ladder = played.ladder("coarse")
    for trial in ladder.standings.find_unfinished():
        ladder.note(trial.id, played.end(trial))
    with pytest.raises(
        ConfigError, match="--stage middle: the stage before it, 'coarse', has rungs to go"
    ):
        played.source("middle")
    promoted = ladder.advance()
    with pytest.raises(
        ConfigError, match="--stage middle: 6 trials of earlier stages have not ended"
    ):
        played.source("middle")
    for trial in promoted:
        played.end(trial)
    assert played.source("middle").frozen is not None


def test_with_overlap_it_does_not_wait_for_the_last_rung_but_for_every_other(
    tmp_path: Path,
) -> None:
    played = Played(tmp_path, OVERLAP)
    coarse = played.run("coarse", holds_last=True)
    assert played.source("middle").frozen is not None
    played.begin("middle")
    with pytest.raises(ConfigError, match="'coarse', has rungs to go"):
        played.source("fine")
    for trial in coarse.release():
        played.end(trial)
    with pytest.raises(ConfigError, match="'middle', has ended 0 of 12 trials"):
        played.source("fine")


def test_ranges_of_the_user_s_are_those_of_the_stage_and_come_too_late_afterwards(
    played: Played, tmp_path: Path
) -> None:
    played.run("coarse")
    mine, other = tmp_path / "mine.toml", tmp_path / "other.toml"
    plain = (
        "dropout = { uniform = [0.0, 0.8] }\nhidden = { choice = [64, 128] }\nbatch_norm = true\n"
    )
    mine.write_text(f"[ranges]\nlearning_rate = {{ log_uniform = [1e-3, 1e-1] }}\n{plain}")
    other.write_text(mine.read_text().replace("1e-1", "2e-1"))
    source = played.begin("middle", mine)
    assert source.space.numeric["learning_rate"].low == 1e-3
    for trial in configurations(played.search, played.search.stage("middle"), source, range(12)):
        assert 1e-3 <= float(trial.hyperparameters["learning_rate"]) <= 1e-1
    assert played.source("middle", mine) == source
    with pytest.raises(
        ConfigError,
        match=(
            r"other\.toml: stage 'middle' has begun with the ranges in .*ranges\.toml; use "
            r"--new-name"
        ),
    ):
        played.source("middle", other)


def test_an_edited_proposal_is_what_the_next_stage_samples(played: Played) -> None:
    played.run("coarse")
    path = played.folder.stage("coarse").ranges
    search = played.search
    before = read_before(search, played.folder, [search.stage("coarse")], print)
    assert (
        make_proposal(
            search, played.folder, search.stage("coarse"), search.stage("middle"), before
        ).space
        == search.space
    )
    edited = path.read_text().partition("[ranges]")[2].replace("0.8", "0.4")
    path.write_text(
        f'{path.read_text()}\n[next]\nstage = "middle"\ndigest = "0"\n[next.ranges]{edited}'
    )
    assert played.source("middle").space.numeric["dropout"].high == 0.4


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is damaged"),
        (b"\xff\x00", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"[]", "was not written by this search"),
        (
            b'{"format": 1, "search_id": "1111111111111111", "frozen": null, "repeats": []}',
            "was not written by this search",
        ),
        (None, "is lost"),
    ],
)
def test_a_damaged_strategy_is_told_by_name_with_the_remedy(
    played: Played, content: bytes | None, told: str
) -> None:
    played.run("coarse")
    played.begin("middle")
    path = played.folder.stage("middle").strategy
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    refused(played, path, told)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"repeats": 3},
        {"repeats": [3]},
        {"repeats": [{"trial": "coarse-0001"}]},
        {"repeats": [{"trial": "coarse-0001", "hyperparameters": {"x": [None]}}]},
        {"frozen": 3},
        {"frozen": {}},
    ],
)
def test_values_of_another_kind_are_damage(played: Played, change: dict[str, object]) -> None:
    played.run("coarse")
    played.begin("middle")
    path = played.folder.stage("middle").strategy
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(played, path, "")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("parents", 3),
        ("parents", [{"trial": "x", "z": [1]}]),
        ("good_width", [0, 0, 0]),
        ("box", {}),
    ],
)
def test_knowledge_that_nobody_froze_is_damage(played: Played, key: str, value: object) -> None:
    played.run("coarse")
    played.begin("middle")
    path = played.folder.stage("middle").strategy
    raw = json.loads(path.read_text())
    raw["frozen"][key] = value
    path.write_text(json.dumps(raw))
    refused(played, path, "")


def refused(played: Played, path: Path, told: str) -> None:
    with pytest.raises(CheckpointError) as error:
        played.source("middle")
    message = str(error.value)
    assert (
        message.startswith(f"{path}: {told}")
        and "`master recover`" in message
        and "\n" not in message
    )


def test_a_strategy_that_was_left_by_a_launch_that_was_cut_off_is_written_anew(
    played: Played,
) -> None:
    """It is written before ranges.toml, which says that the stage has begun."""
    played.run("coarse")
    own = played.folder.stage("middle")
    own.make()
    own.strategy.write_bytes(b"{")
    frozen = played.begin("middle")
    assert read_source(played.search, own) == frozen


def test_stages_of_the_user_s_own_are_bred_as_well(tmp_path: Path) -> None:
    text = (
        TEXT.partition("[budget]")[0]
        + "[stages.coarse]\ntrials = 20\nepochs = 1\n[stages.fine]\ntrials = 6\nepochs = 4\n"
    )
    played = Played(tmp_path, text)
    played.run("coarse")
    source = played.begin("fine")
    assert source.frozen is not None and len(source.frozen.parents) == 5
    assert isinstance(played.search.stage("fine"), Stage) and source.space == played.search.space
    played.run("fine")
    assert made_again(played, "fine") == source


@pytest.mark.parametrize("state", [TrialState.KILLED, TrialState.FAILED])
def test_what_a_trial_reached_before_a_master_ended_it_stays_known(
    played: Played, state: TrialState
) -> None:
    """A verdict has no curves of its own; asked again, each stage would be frozen as it was."""
    played.run("coarse")
    played.run("middle")
    (best,) = played.before().standings.at(9.0)
    trial = next(own for own in played.before().standings.all_trials() if own.id == best)
    folder = played.folder.stage(trial.stage)
    folder.record_path(best, 3).unlink()
    folder.write_records([Record.of(str(played.search.id), trial, 3, Result(state, "by hand"))])
    (known,) = [
        one
        for one in read_seen_before(
            played.search, played.folder, played.search.stage("fine"), played.before()
        )
        if one.trial == best
    ]
    assert [epochs for epochs, _ in known.measured] == [1.0, 3.0]
    played.run("fine")
    assert made_again(played, "fine") == read_source(played.search, played.folder.stage("fine"))
