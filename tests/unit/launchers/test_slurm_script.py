"""The text of a job's script, and the options that go into it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from common.errors import ConfigError
from master.launchers.job_plan import choose_device, render_variables
from master.launchers.slurm import Script, count_gpus, parse_options


def script(**values: object) -> Script:
    given: dict[str, object] = {
        "job_name": "coarsefine-digits",
        "logs": Path("/shared/digits/logs/slurm"),
        "folder": Path("/home/me/my search"),
        "programs": Path("/opt/venv/bin"),
        "command": ["worker", "start", "--search", "digits"],
    }
    return Script(**{**given, **values})  # type: ignore[arg-type]


def test_a_script_is_options_then_the_folder_then_the_worker_in_place_of_the_shell() -> None:
    assert script().render() == (
        "#!/bin/bash\n"
        "#SBATCH --job-name=coarsefine-digits\n"
        "#SBATCH --output=/shared/digits/logs/slurm/%A_%a.log\n"
        "#SBATCH --open-mode=append\n"
        "#SBATCH --requeue\n"
        "#SBATCH --signal=B:USR1@90\n"
        "\n"
        "umask 0022\n"
        "cd '/home/me/my search' || exit\n"
        'PATH=/opt/venv/bin:"$PATH"\n'
        "# In place of this shell, so that the signals of the scheduler reach it.\n"
        "exec worker start --search digits\n"
    )


def test_options_of_the_user_come_last_and_replace_ours() -> None:
    lines = script(options={"signal": "B:USR1@300", "time": "4:00:00"}).render().splitlines()
    assert "#SBATCH --signal=B:USR1@300" in lines and "#SBATCH --time=4:00:00" in lines
    assert sum(line.startswith("#SBATCH --signal") for line in lines) == 1


def test_a_user_may_refuse_that_jobs_are_requeued() -> None:
    lines = script(options={"no-requeue": ""}).render().splitlines()
    assert "#SBATCH --no-requeue" in lines and "#SBATCH --requeue" not in lines


def test_a_value_with_spaces_is_quoted_for_slurm() -> None:
    text = script(options={"comment": 'my "best" run'}).render()
    assert '#SBATCH --comment="my \\"best\\" run"\n' in text


def test_a_percent_sign_in_the_folder_is_no_pattern_of_slurm() -> None:
    text = script(logs=Path("/shared/100%A/slurm")).render()
    assert "#SBATCH --output=/shared/100%%A/slurm/%A_%a.log\n" in text


def test_the_lines_of_setup_come_after_the_path_and_before_the_address_of_redis() -> None:
    text = script(setup="module load cuda\nexport A=1\n\n", secrets=Path("/s/environment")).render()
    assert text.splitlines()[-6:] == [
        'PATH=/opt/venv/bin:"$PATH"',
        "module load cuda",
        "export A=1",
        ". /s/environment",
        "# In place of this shell, so that the signals of the scheduler reach it.",
        "exec worker start --search digits",
    ]


def test_a_shell_runs_the_script_and_the_worker_has_its_process(tmp_path: Path) -> None:
    secrets = tmp_path / "environment"
    secrets.write_text(render_variables({"REDIS_URL": "redis://:a'b $c@head:6379/0"}))
    command = ["sh", "-c", 'echo "$$ $REDIS_URL $A $(pwd) $(umask)"']
    text = script(
        folder=tmp_path, command=command, setup="A='set up'", secrets=secrets, umask=0o027
    ).render()
    text = text.replace("A='set up'", "export A='set up'; echo $$")
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    shell, worker = done.stdout.splitlines()
    assert worker == f"{shell} redis://:a'b $c@head:6379/0 set up {tmp_path} 0027"


def test_options_may_be_written_as_sbatch_has_them() -> None:
    words = ["time=4:00:00", "--gres=gpu:1", "exclusive", "--time=1:00"]
    assert parse_options(words) == {"time": "1:00", "gres": "gpu:1", "exclusive": ""}


@pytest.mark.parametrize(
    "word", ["", "-p gpu", "p=gpu", "Time=1", "time=1\n#SBATCH --uid=0", "a b=c", "--=x"]
)
def test_what_is_no_option_is_refused_with_an_example(word: str) -> None:
    with pytest.raises(ConfigError, match="time=4:00:00"):
        parse_options([word])


@pytest.mark.parametrize("word", ["array=1-9", "--output=log", "wrap=true"])
def test_an_option_that_the_launcher_decides_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="leave it out"):
        parse_options([word])


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ({}, 0),
        ({"gpus": "2"}, 2),
        ({"gpus-per-node": "h100:4"}, 4),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:1"}, 1),
        ({"gres": "shard:8,gpu:h100:2(S:0)"}, 2),
        ({"gres": "shard:8"}, 0),
        ({"time": "5"}, 0),
    ],
)
def test_the_gpus_of_a_job_are_read_from_its_options(options: dict[str, str], gpus: int) -> None:
    assert count_gpus(options) == gpus


def test_a_job_with_gpus_has_a_worker_for_each_and_never_trains_on_the_cpu() -> None:
    assert [choose_device(gpus) for gpus in (0, 1, 4)] == ["auto", "cuda:0", "all"]
