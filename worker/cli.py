"""The commands of the worker. Each command a few lines; what is heavy is imported where it is used, so that --help is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from common.options import common_options, data_option, fail_with_message

weights_option = click.option(
    "--weights", type=click.Choice(["raw", "ema"]), help="Those of the last update, or their average; without it, what the metric ranks by."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@common_options
@data_option
def cli() -> None:
    """Train trials: claim them from Redis, train many at once on one device, record what came of them."""


@cli.command()
@common_options
@data_option
@click.option("--device", default="auto", metavar="auto|cpu|cuda:N|all", help="auto: the first free CUDA device, else the CPU.")
@click.option("--search", metavar="NAME", help="Work for this search only; without it, the one launched first comes first.")
@click.option("--array-width", default="auto", metavar="auto|N", help="How many trials train together; auto measures.")
@click.option("--burst", is_flag=True, help="Leave when nothing is left to claim.")
@click.option("--local", type=int, default=0, hidden=True)
@click.pass_context
@fail_with_message
def start(context: click.Context, device: str, search: str | None, array_width: str, burst: bool, local: int) -> None:
    """Claim and train trials until stopped.

    \b
    Example:
        worker start --device cuda:0
        REDIS_URL=redis://host:6379/0 worker start --checkpoints /shared/checkpoints
    """
    from worker.start import Request, start_all, start_one

    request = Request(context.obj.redis, context.obj.checkpoints, device, array_width, search, burst, local, context.obj.data)
    sys.exit(start_all(request) if device == "all" else start_one(request))


@cli.command()
@common_options
@data_option
@click.argument("checkpoint", type=click.Path(path_type=Path))
@weights_option
@click.pass_context
@fail_with_message
def test(context: click.Context, checkpoint: Path, weights: str) -> None:
    """Measure a checkpoint on the test part, which the search never looks at; the look is counted.

    \b
    Example:
        worker test checkpoints/digits/fine/val_acc=0.9861-trial=fine-0012-epoch=018-try=1.pt
    """
    from worker.look import look

    click.echo(look(checkpoint, weights, context.obj.data))


@cli.command()
@common_options
@data_option
@click.argument("models", nargs=-1, type=click.Path(path_type=Path), metavar="[CHECKPOINT]...")
@click.option("--search", metavar="NAME", help="The best models of this search, in place of CHECKPOINT.")
@click.option("--stage", metavar="NAME", help="Of this stage; without it, the last one that was launched.")
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="So many of them, averaged.")
@click.option(
    "--ensemble", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="What `master ensemble --json` printed: its models."
)
@click.option("--inputs", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Examples: .npy, .npz or .csv, a row each.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help=".csv or .npz; without it, CSV on stdout.")
@click.option("--device", default="auto", metavar="auto|cpu|cuda:N", help="auto: the first free CUDA device, else the CPU.")
@weights_option
@click.pass_context
@fail_with_message
def predict(context: click.Context, /, **options: Any) -> None:
    """Run a checkpoint, or several as an ensemble, on new inputs: class and probabilities of each.

    Inputs are as the task's data() makes them; the preprocessing that the model was trained with is in its checkpoint.

    \b
    Example:
        worker predict checkpoints/digits/fine/val_acc=0.9861-trial=fine-0012-epoch=018-try=1.pt --inputs new.npy
        worker predict --search digits --stage fine --top 10 --inputs new.csv --out predicted.csv
        master ensemble --of greedy --json > greedy.json && worker predict --ensemble greedy.json --inputs new.csv
    """
    from worker.predict import Request, predict

    text, told = predict(Request(root=context.obj.checkpoints, data=context.obj.data, **options))
    click.echo(told, err=True)
    if text:
        click.echo(text)


@cli.command()
@common_options
@data_option
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The search file.")
@click.option("--search", metavar="NAME", help="The search's folder below the checkpoint root.")
@click.option("--json", "as_json", is_flag=True, help="Strict JSON on stdout.")
@click.option("--table", is_flag=True, hidden=True, help="With --json: the table too, on stderr.")
@click.pass_context
@fail_with_message
def check(context: click.Context, config: Path | None, search: str | None, as_json: bool, table: bool) -> None:
    """The checks before learning: data, first loss, gradient, symmetry, and whether the model can learn at all.

    \b
    Example:
        worker check --config search.toml
        worker check --search digits --json
    """
    from common.select import choose
    from worker.checks.command import check

    say = (lambda message: None) if table else (lambda message: click.echo(message, err=True))  # the master has said it
    chosen = choose(context.obj.checkpoints, config, search, say, builtin=True)
    sys.exit(check(chosen, context.obj.data, as_json, table or not as_json))


@cli.command()
@common_options
@data_option
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The search file.")
@click.option("--search", metavar="NAME", help="The search's folder below the checkpoint root.")
@click.option("--array-width", "widths", multiple=True, type=click.IntRange(min=1), metavar="N", help="May be repeated; default: 1 8 32.")
@click.option(
    "--backend", type=click.Choice(["eager", "traced", "compiled"]), default="compiled", show_default=True, help="Timed beside eager."
)
@click.pass_context
@fail_with_message
def profile(context: click.Context, config: Path | None, search: str | None, widths: tuple[int, ...], backend: str) -> None:
    """Where the time of a training step goes, at several array widths, for the middle of the search's space.

    \b
    Example:
        worker profile --config search.toml
        worker profile --search digits --array-width 64 --backend traced
    """
    from common.select import choose
    from worker.profile import profile

    chosen = choose(context.obj.checkpoints, config, search, lambda message: click.echo(message, err=True), builtin=True)
    profile(chosen, context.obj.data, widths or (1, 8, 32), backend)


def main() -> None:
    """The console script."""
    cli()
