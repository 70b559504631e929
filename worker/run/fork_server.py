"""The fork server loads the worker once, then forks the workers and the checks of one launch.

Importing torch takes longer than most small trials. A forked worker starts within milliseconds and
shares the memory of all that was imported. ``common/forking.py`` says how, and what the messages
are.

``master launch`` starts it (``worker fork-server``) with a socket as its stdin. A message that asks
for a process has the ``words`` of its command line, and stdout and stderr come with it. When the
socket closes, the master has ended. The server then sends SIGTERM to the processes that are
``bound`` to the master, lets the workers go on, and exits.
"""

from __future__ import annotations

import gc
import importlib
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from common.forking import Server, set_name, set_streams

CHECKED = (  # what the checks import before their first step
    "worker.cli",
    "worker.checks.command",
    "worker.tasks.digits",
    "worker.tasks.models",
    "torch.func",
    "torch._functorch.vmap",
    "torch._functorch.eager_transforms",
    "PIL.PngImagePlugin",
)
WORKED = ("worker.run.start",)  # what a worker imports besides
NAME = b"worker"  # name of a forked process in `ps`; the server's own name is python


def serve(run_command: Callable[[], object]) -> NoReturn:
    """Run the server on the socket that is its stdin, until the other side closes it.

    Args:
        run_command: runs the command that ``sys.argv`` names. It is called in each forked process.
    """
    channel = socket.socket(fileno=os.dup(0))
    try:
        # Collections between imports would take an eighth of their time. Objects loaded so far stay
        # in memory that all forks share.
        gc.disable()
        server = Server(
            channel,
            lambda asked, outputs: become(asked["words"], asked["environ"], outputs, run_command),
        )
        _load(CHECKED)
        server.answer_waiting()  # the checks begin while the rest is loaded
        _load(WORKED)
        server.run()
    except BaseException:  # the master sees the socket close, and starts its workers itself
        os._exit(1)
    os._exit(0)


def _load(names: Sequence[str]) -> None:
    for name in names:
        importlib.import_module(name)
    gc.freeze()


def become(
    words: Sequence[str],
    environ: dict[str, str],
    outputs: Sequence[int],
    run_command: Callable[[], object],
) -> NoReturn:
    """Turn the forked process into ``worker WORDS`` in a session of its own, and run it to its end.

    The exit code is the one that this command would have.

    Args:
        words: the command line after the program's name.
        environ: the whole environment.
        outputs: file descriptors of stdout and stderr.
        run_command: runs the command that ``sys.argv`` names.
    """
    from worker.own.zygote import draw_anew

    code = 1
    try:
        gc.enable()
        os.setsid()
        set_name(NAME)
        set_streams(*outputs)
        os.environ.clear()
        os.environ.update(environ)
        draw_anew()
        sys.argv = ["worker", *words]
        run_command()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
