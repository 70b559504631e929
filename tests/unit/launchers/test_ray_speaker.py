"""The process that speaks to Ray, with modules that stand in for Ray where it is not reached."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from master.launchers.cluster import ClusterError
from master.launchers.job_plan import JobPlan
from master.launchers.noted import Notes
from master.launchers.ray import launcher
from master.launchers.ray.launcher import Ray, Speaker, check, parse_options

# Notes what it is asked for in a file beside it.
TAKES_ALL = """
from pathlib import Path
from typing import Any
class exceptions:
    class RayActorError(Exception):
        pass
class actor:
    def options(self, **options):
        told = f"{options['name']} {options['lifetime']} {options['max_restarts']} {options}"
        with Path(__file__).with_name("told").open("a") as file:
            print(told, file=file)
        return self
    def remote(self, *arguments):
        return self
def init(**options):
    print("Ray prints this")
remote = lambda kind: actor()
nodes = lambda: []
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module that the process imports as Ray."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    monkeypatch.setattr(launcher, "find_spec", lambda name: find_spec("json"))
    return tmp_path / "ray.py"


def test_where_ray_is_not_installed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"Ray is not installed here; .* extra `ray`"):
        check({})


def test_where_no_cluster_is_reached_the_variable_is_named(stand_in: Path) -> None:
    stand_in.write_text("def init(**options): raise ConnectionError('Could not find any\\n Ray')")
    with pytest.raises(ClusterError, match=r"no cluster of Ray .*RAY_ADDRESS.*not find any Ray\)"):
        check({})


def test_a_process_that_ends_is_an_error_with_its_last_words_and_is_started_again(
    stand_in: Path,
) -> None:
    text = "import os, sys\ndef init(**options): sys.stderr.write('lost the GCS\\n'); os.abort()"
    stand_in.write_text(text)
    speaker = Speaker("coarsefine-1")
    with pytest.raises(ClusterError, match="connection to Ray has ended: lost the GCS"):
        speaker.ask("look", jobs=[], options={})
    stand_in.write_text(TAKES_ALL)
    assert speaker.ask("look", jobs=[], options={}) == {"seen": {}, "lacking": ""}


def test_after_a_refusal_there_is_a_new_connection_since_the_cluster_may_be_another(
    stand_in: Path,
) -> None:
    stand_in.write_text(TAKES_ALL)
    speaker = Speaker("coarsefine-1")
    order: dict[str, Any] = {"jobs": [], "options": {}}
    assert speaker.ask("look", **order)["lacking"] == ""
    with pytest.raises(ClusterError, match="Ray refuses: 'order'"):
        speaker.ask("start", **order)
    assert speaker.ask("look", **order)["lacking"] == ""


def test_a_process_that_hangs_is_given_up(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.write_text("import time\ndef init(**options): time.sleep(600)")
    monkeypatch.setattr(launcher, "CALL_S", 0.1)
    monkeypatch.setenv("RAY_ADDRESS", "head:1")
    with pytest.raises(
        ClusterError, match=r"Ray at RAY_ADDRESS=head:1 has not answered for 0\.1 s"
    ):
        check({})


def test_actors_are_numbered_on_detached_and_restarted_for_ever(
    stand_in: Path, tmp_path: Path
) -> None:
    stand_in.write_text(TAKES_ALL)
    notes = Notes(tmp_path / "digits", "ray")
    notes.make_folder()
    (notes.folder / "digits-7-1.log").touch()  # of a job that has ended without a word
    options, url = parse_options(["num_gpus=1"]), {"REDIS_URL": "redis://:hush@h/0"}
    ray = Ray(notes, JobPlan("digits", tmp_path, Path("data"), options, variables=url))
    assert ray.start(2) == ["digits-8-1", "digits-8-2"]
    told = stand_in.with_name("told").read_text()
    assert [line.split(" ")[:3] for line in told.splitlines()] == [
        ["digits-8-1", "detached", "-1"],
        ["digits-8-2", "detached", "-1"],
    ]
    assert "'num_gpus': 1" in told and "hush" not in told
    secrets = notes.folder / "environment"
    assert "hush" in secrets.read_text() and secrets.stat().st_mode & 0o777 == 0o600
