"""The commands of the worker.

Each command imports its heavy modules itself, so that ``--help`` is fast.
"""

from __future__ import annotations

import faulthandler
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from common.ending import end_process
from common.offspring import Offspring
from common.options import (
    Number,
    common_options,
    data_option,
    fail_with_message,
    search_options,
)
from common.output import outlive_readers, run_program

weights_option = click.option(
    "--weights",
    type=click.Choice(["raw", "ema"]),
    help="Weights: last update (raw) or average (ema); default: what the metric ranks by.",
)

F = TypeVar("F", bound=Callable[..., Any])


def ends_offspring(command: F) -> F:
    """Make the processes that a task starts end with the command."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        Offspring().begin()
        return command(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="coarsefine")
@common_options
@data_option
def cli() -> None:
    """Train trials: claim them from Redis, train many at once on one device, record what came of
    them.
    """


@cli.command()
@common_options
@data_option
@click.option(
    "--device",
    default="auto",
    metavar="auto|cpu|cuda:N|cuda:N,...|all",
    help="auto: the first free CUDA device; the CPU where there is none. all, or a list: one "
    "worker for each.",
)
@click.option(
    "--gpus-per-trial",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="CUDA devices of each worker, for searches with [resources] gpus = N.",
)
@click.option(
    "--search",
    metavar="NAME",
    help="Work for this search only; without it, the one launched first comes first.",
)
@click.option(
    "--array-width",
    default="auto",
    metavar="auto|N",
    help="How many trials train together; auto measures.",
)
@click.option("--burst", is_flag=True, help="Leave when nothing is left to claim.")
@click.option(
    "--idle-exit",
    type=Number(min=0),
    metavar="S",
    help="Leave after S seconds without a trial.",
)
@click.option(
    "--max-hours",
    type=Number(min=0, min_open=True),
    metavar="H",
    help="Save, give back and leave before H hours are over; default: before Slurm's limit "
    "[SLURM_JOB_END_TIME].",
)
@click.option(
    "--stop-grace",
    type=Number(min=1),
    default=8.0,
    show_default=True,
    metavar="S",
    help="When told to stop, leave within S seconds even out of a step that hangs.",
)
@click.option("--local", type=int, default=0, hidden=True)
@click.pass_context
@fail_with_message
def start(
    context: click.Context,
    device: str,
    gpus_per_trial: int,
    search: str | None,
    array_width: str,
    burst: bool,
    idle_exit: float | None,
    max_hours: float | None,
    stop_grace: float,
    local: int,
) -> None:
    """Claim and train trials until stopped.

    \b
    Example:
        worker start --device cuda:0
        worker start --device all --gpus-per-trial 2
        REDIS_URL=redis://host:6379/0 worker start --checkpoints /shared/checkpoints
    """
    from worker.run.request import Request

    outlive_readers()
    request = Request(
        context.obj.redis,
        context.obj.checkpoints,
        device,
        array_width,
        search,
        burst,
        local,
        context.obj.data,
        gpus_per_trial,
        idle_exit,
        max_hours,
        stop_grace,
    )
    request.check()  # before torch is imported, which takes seconds
    from worker.run.start import start_workers

    end_process(start_workers(request))


@cli.command()
@common_options
@data_option
@click.argument("checkpoint", type=click.Path(path_type=Path))
@weights_option
@click.pass_context
@fail_with_message
@ends_offspring
def test(context: click.Context, checkpoint: Path, weights: str) -> None:
    """Measure a checkpoint on the test part, which the search never looks at; the look is counted.

    \b
    Example:
        worker test checkpoints/digits/fine/val_acc=0.9861-trial=fine-0012-epoch=018-try=1.pt
    """
    from common.folder.records import home_of
    from worker.commands.chosen_models import require_file

    require_file(checkpoint)  # before torch is imported, which takes seconds
    home_of(checkpoint)
    from worker.commands.test_look import look

    click.echo(look(checkpoint, weights, context.obj.data))


@cli.command()
@common_options
@data_option
@click.argument("models", nargs=-1, type=click.Path(path_type=Path), metavar="[CHECKPOINT]...")
@click.option(
    "--search", metavar="NAME", help="Use the best models of this search, not CHECKPOINT."
)
@click.option(
    "--stage", metavar="NAME", help="Stage of these models; default: the last one launched."
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Average the N best models.",
)
@click.option(
    "--ensemble",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Use the models in this output of `master ensemble --json`.",
)
@click.option(
    "--inputs",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Examples: .npy, .npz or .csv, one row per example.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help=".csv or .npz; without it, CSV on stdout.",
)
@click.option(
    "--device",
    default="auto",
    metavar="auto|cpu|cuda:N",
    help="auto: the first free CUDA device; the CPU where there is none.",
)
@weights_option
@click.pass_context
@fail_with_message
@ends_offspring
def predict(context: click.Context, /, **options: Any) -> None:
    """Run a checkpoint, or several as an ensemble, on new inputs: class and probabilities of each.

    Inputs are as the task's data() makes them; the preprocessing that the model was trained with is
    in its checkpoint.

    \b
    Example:
        worker predict checkpoints/digits/fine/val_acc=0.9861-trial=fine-0012-epoch=018-try=1.pt \
--inputs new.npy
        worker predict --search digits --stage fine --top 10 --inputs new.csv --out predicted.csv
        master ensemble --of greedy --json > greedy.json && worker predict \
--ensemble greedy.json --inputs new.csv
    """
    from worker.commands.chosen_models import Request, choose_models

    request = Request(root=context.obj.checkpoints, data=context.obj.data, **options)
    models = choose_models(request)  # before torch is imported, which takes seconds
    from worker.commands.predict import predict

    text, told = predict(request, models)
    click.echo(told, err=True)
    if text:
        click.echo(text)


@cli.command()
@common_options
@data_option
@search_options
@click.option("--json", "as_json", is_flag=True, help="Strict JSON on stdout.")
@click.option("--table", is_flag=True, hidden=True, help="With --json: the table too, on stderr.")
@click.pass_context
@fail_with_message
@ends_offspring
def check(
    context: click.Context, config: Path | None, search: str | None, as_json: bool, table: bool
) -> None:
    """The checks before learning: data, first loss, gradient, symmetry, and whether the model can
    learn at all.

    \b
    Example:
        worker check --config search.toml
        worker check --search digits --json
    """
    from common.folder.chosen import choose
    from common.output import keep_stdout

    # With --table the master has printed these messages.
    say = (lambda message: None) if table else (lambda message: click.echo(message, err=True))
    chosen = choose(context.obj.checkpoints, config, search, say, builtin=True)
    from worker.checks.command import check

    end_process(check(chosen, context.obj.data, as_json, table or not as_json, keep_stdout()))


@cli.command()
@common_options
@data_option
@search_options
@click.option(
    "--array-width",
    "widths",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="May be repeated; default: 1 8 32.",
)
@click.option(
    "--backend",
    type=click.Choice(["eager", "traced", "compiled"]),
    default="compiled",
    show_default=True,
    help="Timed beside eager.",
)
@click.pass_context
@fail_with_message
@ends_offspring
def profile(
    context: click.Context,
    config: Path | None,
    search: str | None,
    widths: tuple[int, ...],
    backend: str,
) -> None:
    """Where the time of a training step goes, at several array widths, for the middle of the
    search's space.

    \b
    Example:
        worker profile --config search.toml
        worker profile --search digits --array-width 64 --backend traced
    """
    from common.folder.chosen import choose

    chosen = choose(
        context.obj.checkpoints,
        config,
        search,
        lambda message: click.echo(message, err=True),
        builtin=True,
    )
    from worker.commands.profile import profile

    profile(chosen, context.obj.data, widths or (1, 8, 32), backend)


@cli.command("fork-server", hidden=True)
@common_options
def fork_server() -> None:
    """Import everything once and fork workers and checks, as the socket on stdin says; for `master
    launch`.
    """
    from worker.run.fork_server import serve

    serve(main)


@cli.command(hidden=True)
@common_options
@data_option
@search_options
@click.option(
    "--array-width",
    "widths",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="May be repeated.",
)
@click.pass_context
@fail_with_message
@ends_offspring
def pace(
    context: click.Context, config: Path | None, search: str | None, widths: tuple[int, ...]
) -> None:
    """Print the seconds of an epoch at several array widths as JSON; `master plan` asks for it."""
    import json

    from common.folder.chosen import choose
    from common.output import keep_stdout

    chosen = choose(context.obj.checkpoints, config, search, lambda message: None, builtin=True)
    from worker.commands.pace import measure_pace

    out = keep_stdout()
    print(
        json.dumps(measure_pace(chosen, context.obj.data, widths or (1, 8, 32))),
        file=out,
        flush=True,
    )


def main() -> None:
    """Run the console script."""
    faulthandler.enable(2)  # if native code crashes, the log shows the line
    run_program(cli)
