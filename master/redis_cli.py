"""The commands ``master redis ...``."""

from __future__ import annotations

import os

import click

from common.options import checkpoints_option, fail_with_message


@click.group()
def redis() -> None:
    """A Redis server that several hosts reach. It outlives the command.

    \b
    Example:
        master redis start --checkpoints /shared/checkpoints --tls
        master redis status --checkpoints /shared/checkpoints
        master redis stop --checkpoints /shared/checkpoints
    """


@redis.command()
@checkpoints_option
@click.option(
    "--host",
    metavar="IF",
    help="Listen on this interface or address of this host only; default: the address by which "
    "other hosts reach it.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="Port to listen on; default: 6379 if it is free, else any.",
)
@click.option("--tls/--no-tls", default=None, help="Encrypt; makes the certificates.")
@click.pass_context
@fail_with_message
def start(context: click.Context, host: str | None, port: int | None, tls: bool | None) -> None:
    """Start it, with new passwords at the first start. `worker start` finds it by the folder.

    \b
    Example:
        master redis start --checkpoints /shared/checkpoints --host ib0 --tls
    """
    from master.commands.redis_server import Wanted, start

    if os.environ.get("REDIS_URL"):
        _say("warning: REDIS_URL is set and comes before this server; unset it here")
    click.echo(start(context.obj.checkpoints, Wanted(host, port, tls), _say))


@redis.command()
@checkpoints_option
@click.pass_context
@fail_with_message
def stop(context: click.Context) -> None:
    """Stop it. Its data stays, and workers wait until it is started again.

    \b
    Example:
        master redis stop --checkpoints /shared/checkpoints
    """
    from master.commands.redis_server import stop

    click.echo(stop(context.obj.checkpoints))


@redis.command()
@checkpoints_option
@click.pass_context
@fail_with_message
def status(context: click.Context) -> None:
    """Say where it listens, and how it is. Works on every host that sees the folder.

    \b
    Example:
        master redis status --checkpoints /shared/checkpoints
    """
    from master.commands.redis_server import status

    click.echo(status(context.obj.checkpoints))


def _say(message: str) -> None:
    click.echo(message, err=True)
