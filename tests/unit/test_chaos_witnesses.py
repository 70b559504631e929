"""The witnesses of the chaos harness.

Each defect is planted once and found. A clean search gives no finding.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from common.folder.checkpoint_name import CheckpointName
from tests.chaos import witnesses
from tests.chaos.onlooker import Note
from tests.chaos.witnesses import Account
from tests.unit import ended_search
from tests.unit.ended_search import CLEAN_LAUNCH, FIRST, ID, KEY, LEFT, Original, Scene


@pytest.fixture(scope="module")
def original() -> Iterator[Original]:
    with ended_search.original() as made:
        yield made


@pytest.fixture
def scene(original: Original, tmp_path: Path) -> Iterator[Scene]:
    with original.copied(tmp_path) as copied:
        yield copied


def claimed(at_s: float, attempt: int, token: str, pid: int, rung: int = 0) -> Note:
    return Note(
        at_s, "claim", pid, {"trial": FIRST, "attempt": attempt, "token": token, "rung": rung}
    )


def test_a_clean_search_gives_no_finding(scene: Scene) -> None:
    assert scene.findings() == []


# -- what can be wrong in Redis --------------------------------------------------------------------


def unfinished(scene: Scene) -> None:
    scene.change("states", FIRST, lambda state: state.replace("completed", "pending"))


def without_result(scene: Scene) -> None:
    scene.client.hdel(KEY + "results", FIRST)


def contradicting(scene: Scene) -> None:
    scene.change("results", FIRST, lambda result: "3" + result[1:])


def another_configuration(scene: Scene) -> None:
    scene.change("trials", FIRST, lambda configuration: configuration.replace("16", "17"))


def lost_configuration(scene: Scene) -> None:
    scene.client.hdel(KEY + "trials", FIRST)


def unpublished(scene: Scene) -> None:
    scene.client.hset(KEY + "states", "coarse-0099", '{"s": "completed", "a": 1}')


def ended_twice(scene: Scene) -> None:
    scene.client.rpush(KEY + "endings", f"2 0 {LEFT}")


def ended_twice_at_a_rung(scene: Scene) -> None:
    scene.client.rpush(KEY + "endings", f"3 0 {FIRST}")


def miscounted(scene: Scene) -> None:
    scene.client.hincrby(KEY + "counts", "0:completed", 1)


IN_REDIS: dict[str, tuple[Callable[[Scene], object], str]] = {
    "a trial that has not ended": (unfinished, r"lost: coarse-0000: Redis has it as pending"),
    "an end without a result": (
        without_result,
        r"lost: coarse-0000: Redis has it as completed, result None",
    ),
    "a result of another attempt": (contradicting, r"coarse-0000: Redis contradicts itself"),
    "another configuration": (
        another_configuration,
        r"coarse-0000: Redis has the configuration .*17",
    ),
    "no configuration": (lost_configuration, r"coarse-0000: Redis has the configuration \[None"),
    "a trial that nobody published": (
        unpublished,
        r"trials that nobody published: \['coarse-0099'\]",
    ),
    "two ends of one trial": (ended_twice, rf"double: {LEFT} ended 2 times in Redis"),
    "three ends at two rungs": (
        ended_twice_at_a_rung,
        r"double: coarse-0000 ended 3 times in Redis",
    ),
    "a wrong count": (miscounted, r"Redis counts .*31.*, but has .*30"),
    "a lease": (
        lambda scene: scene.client.zadd(KEY + "leases", {FIRST: 1.0}),
        r"key left over in Redis: \S+:leases",
    ),
    "a key of somebody's": (
        lambda scene: scene.client.set("stray", "1"),
        r"key left over in Redis: stray",
    ),
    "a lock for ever": (
        lambda scene: scene.client.set(KEY + "lock:janitor", "1"),
        r"nothing ever removes: \S+:lock:janitor",
    ),
    **{
        f"{name} for ever": (
            lambda scene, name=name: _for_ever(scene, name),
            rf"nothing ever removes: \S+:{name}$",
        )
        for name in ("workers", "requests", "machines", "doubts", "meta")
    },
}


def _for_ever(scene: Scene, name: str) -> None:
    if scene.client.exists(KEY + name):
        assert scene.client.persist(KEY + name), f"{name} was meant to go by itself"
    else:
        scene.client.hset(KEY + name, "m", "{}")


# -- in the folder ---------------------------------------------------------------------------------


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_a_later_attempt(scene: Scene) -> None:
    scene.rewrite(scene.record(), attempt=3)
    scene.record().rename(scene.record(attempt=3))


def of_two_attempts(scene: Scene) -> None:
    scene.record(attempt=3).write_bytes(scene.record().read_bytes())
    scene.rewrite(scene.record(attempt=3), attempt=3)


def as_redis_would_write_it(scene: Scene) -> None:
    known = {k: v for k, v in scene.read(scene.record()).items() if k not in ("curves", "host")}
    scene.record().write_text(json.dumps(known))


def of_an_attempt_that_does_not_count(scene: Scene) -> None:
    scene.weights().rename(scene.stage / scene.weights().name.replace("try=2", "try=3"))


def of_the_rung_before(scene: Scene) -> None:
    shutil.copy(scene.weights(), scene.stage / scene.weights().name.replace("try=2", "try=1"))


def one_too_many(scene: Scene) -> None:
    torch.save({}, scene.stage / str(CheckpointName(0.81, "coarse-0003", 3, 2)))


def put(name: str, scene: Scene) -> None:
    (scene.root / name).parent.mkdir(exist_ok=True, parents=True)
    (scene.root / name).write_text("")


def changed(name: str, old: str, new: str, scene: Scene) -> None:
    text = (scene.root / name).read_text()
    assert old in text
    (scene.root / name).write_text(text.replace(old, new, 1))


NOT_OURS = "a file that nobody should have written"
IN_THE_FOLDER: dict[str, tuple[Callable[[Scene], object], str]] = {
    "a record that is missing": (
        lambda scene: scene.record().unlink(),
        r"lost: coarse-0000: Redis accepted attempt 2, the folder has records of \[1\]",
    ),
    "half a record": (
        lambda scene: half(scene.record()),
        r"trials/coarse-0000-try=2.json: not a whole record",
    ),
    "a record without its numbers": (
        lambda scene: scene.rewrite(scene.record(), attempt="one"),
        r"not a whole record",
    ),
    "another trial's record": (
        lambda scene: scene.rewrite(scene.record(), trial="coarse-0001"),
        r"not a whole record",
    ),
    "another attempt's record": (
        of_a_later_attempt,
        r"lost: coarse-0000: Redis accepted attempt 2, the folder has records of \[1, 3\]",
    ),
    "a later attempt's record": (
        of_two_attempts,
        r"double: coarse-0000: Redis accepted attempt 2, but the folder counts attempt 3",
    ),
    "another result": (
        lambda scene: scene.rewrite(scene.record(), val_acc=0.1),
        r"double: coarse-0000 attempt 2: two results count",
    ),
    "another configuration": (
        lambda scene: scene.rewrite(scene.record(), seed=5),
        r"the record's configuration is not that",
    ),
    "a record from Redis alone": (
        as_redis_would_write_it,
        r"lost: coarse-0000 attempt 2: .* its worker wrote no record",
    ),
    "a damaged record set aside": (
        partial(put, "chaos/coarse/trials/coarse-0000-try=1.json.damaged"),
        NOT_OURS,
    ),
    "a temporary file of a record": (
        partial(put, "chaos/coarse/trials/.tmp-1-a"),
        r"trials/.tmp-1-a: a temporary file left over",
    ),
    "a temporary file of the search": (
        partial(put, "chaos/.tmp-1-a"),
        r"chaos/.tmp-1-a: a temporary file left over",
    ),
    "a temporary file in the root": (
        partial(put, ".tmp-1-a"),
        r"^.tmp-1-a: a temporary file left over",
    ),
    "a file among the records": (partial(put, "chaos/coarse/trials/coarse-0000.json"), NOT_OURS),
    "a file in the stage": (partial(put, "chaos/coarse/x"), NOT_OURS),
    "a file in the root": (partial(put, "x"), NOT_OURS),
    "a file of another search": (partial(put, "other/search.toml"), NOT_OURS),
    "half the weights": (
        lambda scene: half(scene.weights()),
        r"val_acc=0.9000\S+.pt: cannot be read",
    ),
    "weights that run code": (
        lambda scene: torch.save(scene.notes.append, scene.weights()),
        r"val_acc=0.9000\S+.pt: cannot be read",
    ),
    "half the predictions": (
        lambda scene: half(scene.weights(".npz")),
        r"val_acc=0.9000\S+.npz: cannot be read",
    ),
    "weights of no attempt": (
        of_an_attempt_that_does_not_count,
        r"try=3.pt: of an attempt that does not count, 2 does",
    ),
    "weights of the rung before": (
        of_the_rung_before,
        r"try=1.pt: of an attempt that does not count, 2 does",
    ),
    "weights that are missing": (
        lambda scene: scene.weights().unlink(),
        r"lost: coarse-0000 attempt 2, rank 1 of 3 .* its weights are gone",
    ),
    "predictions that are missing": (
        lambda scene: scene.weights(".npz").unlink(),
        r"lost: coarse-0000 .* its predictions are gone",
    ),
    "weights that nobody kept": (
        lambda scene: scene.rewrite(scene.record(), checkpoint=None),
        r"lost: coarse-0000 .* names no weights",
    ),
    "more weights than are kept": (
        one_too_many,
        r"4 files of weights in the folder, 3 are to be kept",
    ),
    "half the leaderboard": (
        lambda scene: half(scene.stage / "leaderboard.csv"),
        r"leaderboard.csv",
    ),
    "no leaderboard": (
        lambda scene: (scene.stage / "leaderboard.csv").unlink(),
        r"leaderboard.csv: damaged",
    ),
    "another state in the leaderboard": (
        partial(changed, "chaos/coarse/leaderboard.csv", "completed", "failed"),
        r"leaderboard.csv: does not",
    ),
}


# -- in what was said and seen ---------------------------------------------------------------------


def two_told(scene: Scene) -> None:
    scene.told("finish", 2, "another", rung=1)


def stale_told(scene: Scene) -> None:
    scene.ledger.write_text("")
    scene.told("claim", 1, "a")
    scene.told("claim", 2, "b", pid=2)
    scene.told("finish", 1, "a")


def handed_out_twice(scene: Scene) -> None:
    scene.told("claim", 2, "another", rung=1, pid=2)


def taken(scene: Scene) -> None:
    scene.notes += [
        claimed(10.0, 1, "a", 1),
        Note(11.0, "still", 7),
        Note(11.0, "over", 7),
        claimed(13.0, 2, "b", 2),
    ]


def taken_and_silent_only_later(scene: Scene) -> None:
    scene.notes += [
        claimed(10.0, 1, "a", 1),
        claimed(13.0, 2, "b", 2),
        Note(30.0, "still", 1),
        Note(31.0, "over", 1),
        Note(32.0, "late"),
    ]


SAID: dict[str, tuple[Callable[[Scene], object], str]] = {
    "two holders": (
        two_told,
        r"double: coarse-0000: two holders were told that their result counts",
    ),
    "a holder from before": (
        stale_told,
        r"double: coarse-0000: attempt 1 was told that it counts after attempt 2 was handed out",
    ),
    "the number of the rung before": (
        lambda scene: scene.told("claim", 1, "another", rung=1, pid=2),
        r"double: coarse-0000: attempt 1 was handed out twice",
    ),
    "a number used twice": (
        handed_out_twice,
        r"double: coarse-0000: attempt 2 was handed out twice",
    ),
    "taken from who lives": (
        taken,
        r"coarse-0000: attempt 1 was taken from process 1, which lived and was not silent",
    ),
    "taken from who lives, after a promotion": (
        lambda scene: scene.notes.extend(
            [claimed(10.0, 2, "a", 1, rung=1), claimed(13.0, 3, "b", 2, rung=1)]
        ),
        r"coarse-0000: attempt 2 was taken from process 1",
    ),
    "taken from who was silent later": (taken_and_silent_only_later, r"was taken from process 1"),
    "queued again": (
        lambda scene: _launched(scene, CLEAN_LAUNCH.replace(", 0 new", ", 1 new", 1)),
        r"the last launch queued trials again",
    ),
    "ends of which Redis never heard": (
        lambda scene: _launched(
            scene, CLEAN_LAUNCH + "1 trials had ended according to the folder; they count"
        ),
        r"lost: the last launch had to tell Redis",
    ),
    "records that were missing": (
        lambda scene: _launched(
            scene, CLEAN_LAUNCH + "1 records were missing in the folder; written again"
        ),
        r"lost: the last launch had to write records",
    ),
    "no ranking": (
        lambda scene: _ranked(scene, "error: no"),
        r"master rank printed no ranking: 'error: no'",
    ),
    "another ranking": (
        lambda scene: _ranked(scene, json.dumps(json.loads(scene.ranked)[::-1], indent=0)),
        r"from rank 1 on",
    ),
    "a shorter ranking": (
        lambda scene: _ranked(scene, json.dumps(json.loads(scene.ranked)[:5], indent=0)),
        r"5 trials instead of 30",
    ),
}


def _launched(scene: Scene, said: str) -> None:
    scene.launched = said


def _ranked(scene: Scene, said: str) -> None:
    scene.ranked = said


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        pytest.param(*row, id=f"{where}: {name}")
        for where, rows in (("Redis", IN_REDIS), ("folder", IN_THE_FOLDER), ("said", SAID))
        for name, row in rows.items()
    ],
)
def test_what_is_planted_is_found(
    scene: Scene, plant: Callable[[Scene], object], expected: str
) -> None:
    plant(scene)
    found = scene.findings()
    assert any(re.search(expected, finding) for finding in found), found


# -- what is as promised ---------------------------------------------------------------------------

EXCUSES: dict[str, list[Note]] = {
    "the holder has ended": [
        claimed(10.0, 1, "a", 1),
        claimed(11.0, 2, "b", 2),
        Note(12.0, "over", 1),
    ],  # told to leave, it gave it back
    "the holder stood still": [
        claimed(10.0, 1, "a", 1),
        Note(11.5, "still", 1),
        claimed(13.0, 2, "b", 2),
    ],
    "the machine was too busy": [
        claimed(10.0, 1, "a", 1),
        Note(12.0, "late"),
        claimed(13.0, 2, "b", 2),
    ],
    "Redis has lost data": [
        claimed(10.0, 1, "a", 1),
        Note(11.0, "forgotten"),
        claimed(12.0, 1, "b", 2),
    ],
    "the same answer, repeated": [claimed(10.0, 1, "a", 1), claimed(13.0, 1, "a", 1)],
    "promoted": [claimed(10.0, 1, "a", 1), claimed(13.0, 2, "b", 2, rung=1)],
    "noted after it stood still": [claimed(10.0, 2, "b", 2), claimed(13.0, 1, "a", 1)],
}


@pytest.mark.parametrize("notes", EXCUSES.values(), ids=EXCUSES)
def test_a_taking_with_a_reason_is_no_finding(scene: Scene, notes: list[Note]) -> None:
    scene.notes += notes
    assert scene.findings() == []


def test_whoever_has_ended_a_rung_may_say_so_again_after_the_promotion(scene: Scene) -> None:
    token = json.loads(scene.ledger.read_text().splitlines()[0])["token"]
    scene.told("finish", 1, token)
    assert scene.findings() == []
    scene.told("finish", 1, "another")
    assert any("two holders were told" in finding for finding in scene.findings())


def test_what_redis_was_robbed_of_may_be_told_by_the_last_launch(scene: Scene) -> None:
    unfinished(scene)
    account = Account()
    witnesses.look_at_redis(scene.client, ID, scene.calm.trials, account, {FIRST})
    witnesses.look_at_last_launch(
        CLEAN_LAUNCH + "1 trials had ended according to the folder; they count", account, {FIRST}
    )
    assert [finding for finding in account.findings if "counts" not in finding] == []


@pytest.mark.parametrize(
    ("event", "told"), [("take", "was taken from its worker"), ("kill", "was killed")]
)
def test_a_verdict_that_nothing_called_for_is_told_unless_the_task_hangs(
    tmp_path: Path, event: str, told: str
) -> None:
    ledger, account = tmp_path / "ledger.jsonl", Account()
    lines = [
        {"event": name, "pid": 1, "trial": FIRST, "attempt": 2, "token": "x"}
        for name in ("claim", event)
    ]
    ledger.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    witnesses.look_at_verdicts(ledger, [FIRST], account)
    assert account.findings == []
    witnesses.look_at_verdicts(ledger, [], account)
    assert account.findings == [
        f"{FIRST}: attempt 2 {told} by the master, which nothing called for"
    ]
