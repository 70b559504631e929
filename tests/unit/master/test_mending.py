"""Damage or loss of frozen stages and promotions.

Each is rebuilt in agreement with the records, or one message says why not.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from common.errors import CheckpointError
from common.queue.trial_queue import TrialQueue
from master.commands.recovery import mend_decisions, mend_source, was_launched
from master.stages.prepare import Launched
from master.stages.source import read_source
from tests.unit.master.played import TEXT, Played

FOLLOWING = TEXT + '[stages.sure]\nkind = "confirm"\nepochs = 9\nbest = 2\nseeds = 2\n'
DAMAGE = [b"", b"{", b"\x00" * 300, b"[ranges", None]
STAGES = ("coarse", "middle", "fine", "finer", "sure")


def redis(frozen: dict[str, Any] | None = None) -> TrialQueue:
    """A Redis that has forgotten the search, or still has what one stage froze."""
    return cast(TrialQueue, SimpleNamespace(frozen=lambda stage: frozen))


class Mended(Played):
    """A search that has ended, and is mended."""

    @property
    def launched(self) -> Launched:
        return Launched(self.search, self.folder)

    def mend(self, queue: TrialQueue | None = None) -> None:
        self.told.clear()
        for stage in self.search.stages:
            if was_launched(self.folder, stage):
                mend_source(self.launched, stage, queue or redis(), self.told.append)
        for stage in self.search.stages:
            if was_launched(self.folder, stage):
                mend_decisions(self.launched, stage, self.told.append)


@pytest.fixture
def ended(tmp_path: Path) -> Mended:
    played = Mended(tmp_path, FOLLOWING)
    played.run_all()
    return played


def spoil(path: Path, content: bytes | None) -> None:
    assert path.exists()
    path.unlink() if content is None else path.write_bytes(content)


@pytest.mark.parametrize("content", DAMAGE)
@pytest.mark.parametrize("name", ["ranges", "strategy"])
def test_what_a_stage_samples_is_made_anew(ended: Mended, name: str, content: bytes | None) -> None:
    for stage in STAGES:
        own = ended.folder.stage(stage)
        before, path = read_source(ended.search, own), getattr(own, name)
        text = path.read_bytes()
        spoil(path, content)
        ended.mend()
        assert read_source(ended.search, own) == before, stage
        assert [line for line in ended.told if str(path) in line and "damaged or lost" in line], (
            stage
        )
        aside = path.with_name(f"{path.name}.damaged")
        assert content is None or aside.read_bytes() == content
        assert name == "ranges" or path.read_bytes() == text
        ended.mend()
        assert not ended.told, "nobody stumbles over it again"


def test_both_files_of_every_stage_are_made_anew_one_after_the_other(ended: Mended) -> None:
    before = {name: read_source(ended.search, ended.folder.stage(name)) for name in STAGES}
    for name in STAGES:
        spoil(ended.folder.stage(name).ranges, None)
        spoil(ended.folder.stage(name).strategy, b"")
    ended.mend()
    assert {name: read_source(ended.search, ended.folder.stage(name)) for name in STAGES} == before


def test_ranges_of_the_user_s_come_from_the_sound_file_or_from_redis(tmp_path: Path) -> None:
    played, mine = Mended(tmp_path), tmp_path / "mine.toml"
    played.run("coarse")
    plain = (
        "dropout = { uniform = [0.0, 0.8] }\nhidden = { choice = [64, 128] }\nbatch_norm = true\n"
    )
    mine.write_text(f"[ranges]\nlearning_rate = {{ log_uniform = [1e-3, 1e-1] }}\n{plain}")
    before = played.begin("middle", mine)
    played.run("middle")
    own = played.folder.stage("middle")
    for name in ("ranges", "strategy"):
        spoil(getattr(own, name), b"")
        played.mend()
        assert read_source(played.search, own) == before
    spoil(own.ranges, b"")
    spoil(own.strategy, b"")
    played.mend(redis({"ranges": before.space.plain()}))
    assert read_source(played.search, own) == before
    spoil(own.ranges, b"")
    spoil(own.strategy, b"")
    with pytest.raises(
        CheckpointError,
        match=(
            r"middle/ranges\.toml.*Neither Redis nor earlier stages reproduce .*restore the "
            r"file from a backup"
        ),
    ):
        played.mend()


def test_what_disagrees_with_the_records_is_not_made_up(ended: Mended) -> None:
    own = ended.folder.stage("middle")
    path = own.record_path("middle-0000", 1)
    record = json.loads(path.read_text())
    record["hyperparameters"]["dropout"] = 0.123
    path.write_text(json.dumps(record))
    later = sorted(own.trials.glob("middle-0000-try=[23].json"))
    for other in later:
        other.write_text(
            json.dumps(
                json.loads(other.read_text()) | {"hyperparameters": record["hyperparameters"]}
            )
        )
    spoil(own.strategy, b"{")
    with pytest.raises(CheckpointError) as error:
        ended.mend()
    assert str(own.strategy) in str(error.value) and "from a backup" in str(error.value)
    assert own.strategy.read_bytes() == b"{", "it stays as it was found"


@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 300, None])
def test_each_part_of_a_decision_is_made_anew(ended: Mended, content: bytes | None) -> None:
    before = ended.promotions()
    parts = sorted(ended.folder.path.glob("*/promotions/*.json"))
    assert len(parts) > 4
    for path in parts:
        whole = {own: own.read_bytes() for own in path.parent.iterdir()}
        spoil(path, content)
        ended.mend()
        assert content is None or any(
            f"{path}: damaged" in line and f"set aside as {path.name}.damaged" in line
            for line in ended.told
        )
        ladder = ended.ladder(path.parent.parent.name)
        while not ladder.is_decided:
            assert not [own.id for own in ladder.advance()], "nobody goes on who did not"
        assert ended.promotions() == before, path.name
        for own in path.parent.iterdir():
            own.unlink()
        for own, text in whole.items():
            own.write_bytes(text)


def test_all_decisions_of_a_search_are_made_anew(ended: Mended) -> None:
    before = ended.promotions()
    for path in ended.folder.path.glob("*/promotions/*.json"):
        path.unlink()
    ended.mend()
    for stage in ended.search.stages:
        if stage.searches:
            ladder = ended.ladder(stage.name)
            while not ladder.is_decided:
                assert not ladder.advance()
    assert ended.promotions() == before


def test_decisions_in_a_folder_with_an_odd_name_are_found(tmp_path: Path) -> None:
    played = Mended(tmp_path / "a: b", TEXT)
    played.run("coarse")
    path = played.folder.stage("coarse").promotions / "epochs=3-part=1.json"
    spoil(path, b"{")
    played.mend()
    assert path.with_name(f"{path.name}.damaged").exists()


def test_nothing_is_mended_where_nothing_is_amiss(ended: Mended) -> None:
    before = {path: path.read_bytes() for path in ended.folder.path.rglob("*") if path.is_file()}
    ended.mend()
    assert not ended.told
    assert {
        path: path.read_bytes() for path in ended.folder.path.rglob("*") if path.is_file()
    } == before
