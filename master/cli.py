"""The commands of the master.

Each command imports its heavy modules itself, so that ``--help`` is fast.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from common.errors import ConfigError
from common.options import (
    Number,
    common_options,
    data_option,
    fail_with_message,
    search_options,
)
from common.output import outlive_readers, run_program
from master.redis_cli import redis

as_json = click.option("--json", "as_json", is_flag=True, help="Strict JSON on stdout.")
stage_option = click.option(
    "--stage", metavar="NAME", help="The stage; without it, the last one that was launched."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="coarsefine")
@common_options
@data_option
def cli() -> None:
    """Search hyperparameters in stages, from coarse to fine.

    \b
    Example:
        master launch --stage coarse
        master rank --top 5
    """


cli.add_command(redis)


@cli.command()
@click.argument(
    "folder", default=".", type=click.Path(path_type=Path, file_okay=False), metavar="[DIR]"
)
@fail_with_message
def init(folder: Path) -> None:
    """Write a commented search.toml to start from.

    \b
    Example:
        master init my-search
    """
    from master.report.reading import write_example

    click.echo(write_example(folder))


@cli.command()
@common_options
@data_option
@search_options
@click.option("--stage", required=True, metavar="NAME|all", help="Which stage, or all of them.")
@click.option(
    "--workers",
    default="auto",
    metavar="N|auto|0|MIN:MAX",
    help="Local workers; auto starts some where none is connected. With another --launcher the "
    "jobs, at most N or MAX.",
)
@click.option(
    "--launcher",
    type=click.Choice(["local", "slurm", "kubernetes", "ray"]),
    default="local",
    show_default=True,
    help="Where workers are started: on this machine, as jobs of Slurm or Kubernetes, or as actors "
    "of Ray.",
)
@click.option(
    "--job-option",
    "--slurm-option",
    "job_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the jobs, such as time=4:00:00; may be repeated. For Slurm one of sbatch; "
    "for Kubernetes image, claim, namespace, cpu, memory, gpus, time or pod; for Ray num_gpus, "
    "num_cpus, memory or accelerator_type.",
)
@click.option(
    "--setup",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Lines of shell that a job runs before its worker, such as module load.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be submitted, and submit nothing.")
@click.option(
    "--ranges",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Ranges of this stage, as in ranges.toml.",
)
@click.option("--new-name", metavar="NAME", help="Launch under another name than the file's.")
@click.option(
    "--replace", is_flag=True, help="Set an older folder of this name aside and begin anew."
)
@click.option("--detach", is_flag=True, help="Queue the trials, start workers, and return.")
@click.option(
    "--skip-check",
    is_flag=True,
    help="Leave out the checks before the first stage (see `worker check`).",
)
@click.option(
    "--more",
    type=Number(min=0, min_open=True),
    metavar="EPOCHS",
    help="Add this many epochs to the [budget] of the search.",
)
@click.pass_context
@fail_with_message
def launch(
    context: click.Context, /, config: Path | None, search: str | None, **options: Any
) -> None:
    """Sample a stage's trials, have them trained, rank them; launched again, it attaches again.

    \b
    Example:
        master launch --stage coarse
        master launch --stage all
        master launch --stage all --more 300
        master launch --stage fine --ranges checkpoints/digits/middle/ranges.toml
        master launch --stage all --launcher slurm --workers 8 --job-option time=4:00:00
    """
    from master.launchers.forked import start_early

    shared = context.obj
    is_local = options["launcher"] == "local"
    # Started first, so that it imports torch in the meantime.
    spawner = start_early(shared.checkpoints, wanted=is_local and options["workers"] != "0")

    from common.console import open_console
    from common.ending import end_process
    from common.folder.chosen import choose
    from master.run.launch import launch
    from master.run.request import Request

    chosen = choose(shared.checkpoints, config, search, _say, builtin=True)
    places = {"redis": shared.redis, "checkpoints": shared.checkpoints, "data": shared.data}
    request = Request(**places, config=config, search=search, spawner=spawner, **options)
    outlive_readers()
    end_process(launch(request, chosen, open_console(stderr=True)))


@cli.command()
@common_options
@data_option
@search_options
@as_json
@click.pass_context
@fail_with_message
def plan(context: click.Context, config: Path | None, search: str | None, as_json: bool) -> None:
    """Show the stages, rungs, trials and the expected time of a search, before anything runs.

    \b
    Example:
        master plan
        master plan --config my-search/search.toml --json
    """
    from common.folder.chosen import choose
    from master.run.planning import plan

    shared = context.obj
    chosen = choose(shared.checkpoints, config, search, _say, builtin=True)
    options = {
        "--config": config,
        "--search": search,
        "--checkpoints": shared.checkpoints,
        "--data-dir": shared.data,
    }
    named = [
        str(word) for name, value in options.items() if value is not None for word in (name, value)
    ]
    _show(plan(chosen, named, as_json, _say))


@cli.command()
@common_options
@search_options
@as_json
@click.pass_context
@fail_with_message
def status(context: click.Context, config: Path | None, search: str | None, as_json: bool) -> None:
    """Counts by stage and state, workers, pace, time left.

    \b
    Example:
        master status --json
    """
    from master.commands.redis_commands import status

    _show(status(context.obj, _choose(context, config, search), as_json, _say))


@cli.command()
@common_options
@search_options
@click.option(
    "--stage",
    metavar="NAME",
    help="Only this stage's trials; without it, those of the whole search.",
)
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Only the best N.")
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "markdown"]), default="table"
)
@click.pass_context
@fail_with_message
def rank(
    context: click.Context,
    config: Path | None,
    search: str | None,
    stage: str | None,
    top: int | None,
    form: str,
) -> None:
    """The trials, best first. Reads the folder alone: needs no Redis.

    \b
    Example:
        master rank --stage coarse --top 10
        master rank --format json | head
    """
    from master.report.reading import rank

    _show(rank(_choose(context, config, search), stage, top, form, _say))


@cli.command()
@common_options
@search_options
@stage_option
@as_json
@click.pass_context
@fail_with_message
def borders(
    context: click.Context,
    config: Path | None,
    search: str | None,
    stage: str | None,
    as_json: bool,
) -> None:
    """Warn where the best value sits on the border of its range. Reads the folder alone.

    \b
    Example:
        master borders --stage coarse
    """
    from master.report.reading import borders

    _show(borders(_choose(context, config, search), stage, as_json, _say))


@cli.command()
@common_options
@search_options
@click.option(
    "--stage",
    "stages",
    multiple=True,
    metavar="NAME",
    help="The stage; may be repeated. Without: the last one launched.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write one file that needs no other, to be copied or mailed.",
)
@click.pass_context
@fail_with_message
def report(
    context: click.Context,
    config: Path | None,
    search: str | None,
    stages: tuple[str, ...],
    out: Path | None,
) -> None:
    """Write report.html into a stage's folder: what was found in words, the ranking, the figures.
    Reads the folder alone.

    \b
    Example:
        master report --stage coarse
        master report --stage fine --out fine.html
    """
    if out is not None and len(stages) > 1:
        raise ConfigError(f"--out {out}: is one stage's report; name one with --stage")
    from master.report.stage_report import report

    chosen = _choose(context, config, search)
    for stage in stages or (None,):
        _show(report(chosen, stage, _say, out, stages))


@cli.command()
@click.argument("name", metavar="NAME")
@common_options
@search_options
@stage_option
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Ends in .html, .png or .json.",
)
@click.option(
    "--trial",
    "trials",
    multiple=True,
    metavar="ID",
    help="A trial to show, such as coarse-0042; may be repeated.",
)
@click.pass_context
@fail_with_message
def plot(
    context: click.Context, /, name: str, config: Path | None, search: str | None, **options: Any
) -> None:
    """Write one figure to a file; a wrong name lists them all. Reads the folder alone.

    \b
    Example:
        master plot rungs --out rungs.png
        master plot losses --stage fine --trial fine-0007 --trial fine-0012 --out losses.html
    """
    from master.report.plotting import plot

    _show(plot(_choose(context, config, search), name, warn=_say, **options))


@cli.command()
@common_options
@search_options
@click.option(
    "--stage",
    metavar="NAME|all",
    help="The stage; without it, the last launched one that has such models.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the best N; 10 for --of top, else all.",
)
@click.option(
    "--of",
    "kinds",
    multiple=True,
    default=["top"],
    type=click.Choice(["top", "seeds", "snapshots", "greedy"]),
    show_default=True,
    help="The best models, one from several seeds, one over time, or chosen one by one on "
    "validation; may be repeated.",
)
@click.option(
    "--test", is_flag=True, help="Look at the test part, too; each accuracy is counted as a look."
)
@as_json
@click.pass_context
@fail_with_message
def ensemble(
    context: click.Context,
    /,
    config: Path | None,
    search: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Mix what kept models predict, and say what that gains. Reads the folder alone: needs no Redis
    and no torch.

    \b
    Example:
        master ensemble --stage fine --top 5
        master ensemble --of top --of greedy --test
    """
    from master.commands.ensembling import Request, ensemble

    _show(ensemble(_choose(context, config, search), Request(**options), as_json, _say))


@cli.command()
@common_options
@search_options
@click.option(
    "--stage", metavar="NAME", help="Only this stage; without it, every stage that was launched."
)
@click.option(
    "--format",
    "form",
    required=True,
    type=click.Choice(["tensorboard", "csv", "parquet", "optuna"]),
    help="Output format.",
)
@click.option(
    "--out",
    required=True,
    metavar="PATH",
    help="A file; a folder for tensorboard; for optuna an SQLite file or a URL.",
)
@click.pass_context
@fail_with_message
def export(
    context: click.Context, /, config: Path | None, search: str | None, **options: Any
) -> None:
    """Write the ended trials, with their curves, for another program. Reads the folder alone; needs
    no Redis.

    \b
    Example:
        master export --format tensorboard --out runs
        master export --format csv --stage coarse --out coarse.csv
    """
    from master.commands.exporting import Request, export

    _show(export(_choose(context, config, search), Request(**options), _say))


@cli.command()
@common_options
@as_json
@click.pass_context
@fail_with_message
def workers(context: click.Context, as_json: bool) -> None:
    """The workers that are connected, and what they do.

    \b
    Example:
        master workers --json
    """
    from master.commands.redis_commands import workers

    _show(workers(context.obj, as_json))


@cli.command()
@common_options
@search_options
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on; unless it is loopback, reading needs the token too.",
)
@click.option(
    "--port",
    default=8265,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes any that is free.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File with the token [COARSEFINE_TOKEN]; default: a new token at each start.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST",
    help="Another host name of this machine; may be repeated.",
)
@click.pass_context
@fail_with_message
def serve(
    context: click.Context, /, config: Path | None, search: str | None, **options: Any
) -> None:
    """Serve the dashboard: a live page of the searches, and the same as JSON.

    \b
    Example:
        master serve
        master serve --host 0.0.0.0 --port 8080 --name gpu-box.local
    """
    import os

    from master.dashboard.run import Request, only_search, serve

    shared = context.obj
    only = only_search(config, search)
    request = Request(redis=shared.redis, checkpoints=shared.checkpoints, search=only, **options)
    sys.exit(serve(request, dict(os.environ), _say, _show))


@cli.command()
@common_options
@search_options
@click.option("--trial", metavar="ID", help="One trial, such as coarse-0042.")
@click.option(
    "--worker",
    metavar="ID",
    help="One worker, as `master workers` names it: its trials go to others.",
)
@click.option("--stage", metavar="NAME", help="All trials of a stage that have not ended.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
@fail_with_message
def kill(
    context: click.Context,
    /,
    config: Path | None,
    search: str | None,
    yes: bool,
    **targets: str | None,
) -> None:
    """End a trial, a worker, or a stage. The lease is void at once; the worker stops at its next
    step.

    \b
    Example:
        master kill --trial coarse-0042
        master kill --stage fine --yes
    """
    from master.commands.killing import describe_kill, kill

    question = describe_kill(**targets)
    chosen = None if targets["worker"] else _choose(context, config, search)
    if not yes:
        click.confirm(question, abort=True, err=True)
    _show(kill(context.obj, chosen, **targets))


@cli.command()
@common_options
@search_options
@click.argument("trial", required=False, metavar="[TRIAL]")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Add a tag; may be repeated.")
@click.option(
    "--untag", "untags", multiple=True, metavar="TAG", help="Remove a tag; may be repeated."
)
@click.option("--text", metavar="TEXT", help="The note, in place of the one before; '' removes it.")
@click.pass_context
@fail_with_message
def note(
    context: click.Context,
    /,
    config: Path | None,
    search: str | None,
    trial: str | None,
    **changes: Any,
) -> None:
    """Tag a trial or, without one, the search, and write a note about it. Without an option, show
    what is written.

    \b
    Example:
        master note fine-0007 --tag keep --text "the loss was still falling"
        master note --tag baseline
        master note
    """
    from master.commands.notes import Change, note

    _show(note(_choose(context, config, search), trial, Change(**changes)))


@cli.command()
@common_options
@search_options
@click.argument("trial")
@click.option("--follow", is_flag=True, help="Go on until the attempt has ended.")
@click.option(
    "--attempt",
    default="last",
    show_default=True,
    metavar="N|last|all",
    help="Which attempt; all of them have a heading each.",
)
@click.pass_context
@fail_with_message
def logs(
    context: click.Context,
    config: Path | None,
    search: str | None,
    trial: str,
    follow: bool,
    attempt: str,
) -> None:
    """Print what the loop or program of a trial wrote to stdout and stderr.

    \b
    Example:
        master logs coarse-0042 --follow
        master logs coarse-0042 --attempt 1
        master logs coarse-0042 --attempt all
    """
    from master.commands.logs import show_logs

    def write(part: bytes) -> None:
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()

    show_logs(_choose(context, config, search), trial, follow, write, wanted=attempt)


@cli.command()
@common_options
@search_options
@click.option(
    "--state", required=True, type=click.Choice(["failed", "killed"]), help="Which trials."
)
@click.option("--stage", metavar="NAME", help="Only this stage's.")
@click.pass_context
@fail_with_message
def retry(
    context: click.Context, config: Path | None, search: str | None, state: str, stage: str | None
) -> None:
    """Send failed or killed trials back to the queue, as new attempts.

    \b
    Example:
        master retry --state failed
    """
    from master.commands.redis_commands import retry

    _show(retry(context.obj, _choose(context, config, search), state, stage))


@cli.command()
@common_options
@search_options
@click.pass_context
@fail_with_message
def recover(context: click.Context, config: Path | None, search: str | None) -> None:
    """Rebuild Redis from the folder after it was lost.

    \b
    Example:
        master recover
    """
    from master.commands.recovery import recover

    _show(recover(context.obj, _choose(context, config, search), _say))


def _choose(context: click.Context, config: Path | None, search: str | None) -> Any:
    from common.folder.chosen import choose

    return choose(context.obj.checkpoints, config, search, _say)


def _say(message: str) -> None:
    click.echo(message, err=True)


def _show(text: str) -> None:
    click.echo(text)


def main() -> None:
    """Run the console script."""
    run_program(cli)
