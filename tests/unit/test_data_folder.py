"""How --data-dir and DATA_DIR reach the tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from common.folder.records import SearchFolder
from common.options import common_options, data_option
from master.launchers.local import local_workers
from master.run.request import Request as LaunchRequest
from worker.run.request import Request
from worker.run.start import _command


@click.group()
@common_options
@data_option
def program() -> None:
    """As the real ones."""


@program.command()
@common_options
@data_option
@click.pass_context
def told(context: click.Context) -> None:
    """Says where."""
    click.echo(context.obj.data)


@pytest.mark.parametrize(
    ("arguments", "environment", "folder"),
    [
        (["told"], {}, "data"),
        (["told"], {"DATA_DIR": "/shared/images"}, "/shared/images"),
        (["told", "--data-dir", "mine"], {"DATA_DIR": "/shared/images"}, "mine"),
        (["--data-dir", "mine", "told"], {"DATA_DIR": "/shared/images"}, "mine"),
        (["--data-dir", "mine", "told", "--data-dir", "ours"], {}, "ours"),
    ],
)
def test_the_folder_is_named_before_or_after_the_command_or_in_the_environment(
    arguments: list[str], environment: dict[str, str], folder: str
) -> None:
    assert (
        CliRunner().invoke(program, arguments, env={"DATA_DIR": None, **environment}).output.strip()
        == folder
    )


def test_local_workers_and_those_of_each_gpu_get_the_masters_folder(tmp_path: Path) -> None:
    broker = SimpleNamespace(by_root=True, url="")
    workers = local_workers(
        1,
        SearchFolder(tmp_path, "mnist"),
        broker,  # type: ignore[arg-type]
        print,
        Path("images"),
    )
    assert workers._environ is not None and workers._environ["DATA_DIR"] == str(
        Path("images").absolute()
    )
    request = Request(None, tmp_path, "all", "auto", None, False, 0, Path("images"))
    assert _command(request, "cuda:0")[-2:] == ["--data-dir", "images"]
    limited = replace(request, idle_exit_s=60.0, max_hours=2.0, stop_grace_s=25.0)
    told = " ".join(_command(limited, "cuda:0"))
    assert "--idle-exit 60.0 --max-hours 2.0 --stop-grace 25.0" in told


def test_the_next_stages_command_names_the_folder_too(tmp_path: Path) -> None:
    assert (
        LaunchRequest("coarse", None, tmp_path, data=Path("images")).repeated["--data-dir"]
        == "images"
    )
    assert LaunchRequest("coarse", None, tmp_path).repeated["--data-dir"] is None
