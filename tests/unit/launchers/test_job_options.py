"""The options of a launch whose workers are jobs, and what the next stage needs of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.folder.records import SearchFolder
from common.search.stage import NO_NEEDS, Resources
from master.launchers.cluster import Bounds
from master.run.jobs import JobOptions, dry_run, make_launcher, read_job_options
from master.run.request import Request


def preview(folder: SearchFolder, job: JobOptions, resources: Resources = NO_NEEDS) -> str:
    """The text that would be submitted."""
    launcher = make_launcher(folder, Path("data"), job, {}, resources)
    return launcher.preview(job.bounds.most)[0]


def test_options_without_their_launcher_are_refused() -> None:
    with pytest.raises(ConfigError, match="--job-option: belongs to --launcher slurm or kub"):
        read_job_options("local", "2", ["time=1"], None, False)
    with pytest.raises(ConfigError, match="--dry-run: belongs to --launcher slurm"):
        read_job_options("local", "2", [], None, True)
    assert read_job_options("local", "auto", [], None, False) is None


def test_a_setup_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--setup .*/env.sh cannot be read: No such file"):
        read_job_options("slurm", "2", [], tmp_path / "env.sh", False)


def test_setup_is_read_when_the_launch_begins(tmp_path: Path) -> None:
    (tmp_path / "env.sh").write_text("module load cuda\n")
    found = read_job_options("slurm", "1:4", ["time=1:00"], tmp_path / "env.sh", False)
    assert found is not None
    assert (found.bounds, found.options) == (Bounds(1, 4), {"time": "1:00"})
    assert found.setup == "module load cuda\n"


def test_a_dry_run_prints_the_script_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = read_job_options("slurm", "4", ["gpus=1"], None, True)
    assert job is not None
    folder, told = SearchFolder(tmp_path, "digits"), list[str]()
    assert dry_run(folder, Path("data"), job, None, told.append) == 0
    assert capsys.readouterr().out == preview(folder, job)
    assert f"sbatch --parsable --array=1-4 {tmp_path}/digits/logs/slurm/worker.sh" in told[0]
    assert list(tmp_path.iterdir()) == []


def test_the_worker_of_a_job_leaves_when_idle_and_has_absolute_paths(tmp_path: Path) -> None:
    job = read_job_options("slurm", "4", ["gpus=2"], None, False)
    assert job is not None
    words = preview(SearchFolder(tmp_path, "digits"), job)
    assert f"--search digits --checkpoints {tmp_path} --data-dir {Path.cwd()}/data" in words
    assert "--device all --idle-exit 60 --stop-grace 25" in words
    assert f"exec {sys.executable} -P -m worker start" in words or "exec worker start" in words


def test_a_job_has_the_gpus_that_a_trial_needs(tmp_path: Path) -> None:
    folder, two = SearchFolder(tmp_path, "digits"), Resources(gpus=2)
    few, enough = (
        read_job_options("slurm", "4", [one], None, True) for one in ("gpus=1", "gpus=2")
    )
    assert few is not None and enough is not None
    with pytest.raises(ConfigError, match="a job has 1 GPU; add --slurm-option gres=gpu:2"):
        dry_run(folder, Path("data"), few, None, print, two)
    text = preview(folder, enough, two)
    assert "--device all" in text and text.endswith("--gpus-per-trial 2\n")


def test_a_launcher_starts_no_local_workers_and_is_named_for_the_next_stage(tmp_path: Path) -> None:
    request = Request(
        "coarse", None, tmp_path, workers="4", launcher="slurm", job_options=("time=5", "gpus=1")
    )
    assert request.n_workers == 0
    assert request.repeated["--job-option"] == ("time=5", "gpus=1")
    local = Request("coarse", None, tmp_path, workers="4")
    assert local.n_workers == 4 and local.jobs is None and local.repeated["--workers"] is None


def test_a_dry_run_of_ray_prints_what_an_actor_runs_and_how_many_there_would_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = read_job_options("ray", "2:4", ["num_gpus=1"], None, True)
    assert job is not None
    told = list[str]()
    assert dry_run(SearchFolder(tmp_path, "digits"), Path("data"), job, None, told.append) == 0
    text = capsys.readouterr().out
    assert f"worker start --search digits --checkpoints {tmp_path} " in text.replace(" -m ", " ")
    assert "--device cuda:0 --idle-exit 60 --stop-grace 25" in text
    actors = "4 detached actors of Ray with num_cpus=1 num_gpus=1 max_restarts=-1"
    assert told == [f"nothing is submitted; with enough trials this would be {actors}"]
    assert list(tmp_path.iterdir()) == []


def test_an_actor_has_the_gpus_that_a_trial_needs(tmp_path: Path) -> None:
    job = read_job_options("ray", "4", ["num_gpus=1"], None, True)
    assert job is not None
    folder, two = SearchFolder(tmp_path, "digits"), Resources(gpus=2)
    with pytest.raises(ConfigError, match="a job has 1 GPU; add --job-option num_gpus=2"):
        dry_run(folder, Path("data"), job, None, print, two)
