"""Failures to print.

They do not end a long-running command. For any other command the output is the result, so a failed
write is reported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SPEAKING = """
import sys
from pathlib import Path
from common.output import outlive_readers, run_program
from rich.console import Console
def work():
    outlive_readers()
    for number in range(2000):
        print("größe 日本", number)
        Console(file=sys.stdout).print("größe 日本", number)
        print("größe", file=sys.stderr, flush=True)
    sys.stdout.flush()
    Path(sys.argv[1]).touch()
run_program(work)
"""
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(
    not FULL.is_char_device(), reason="a device that is always full is Linux's"
)
# All the ways in which a command prints: at once, at its end, below the text, as its help.
PRINTING = {
    "at its end": "print('x')",
    "much": "print('x' * 1_000_000)",
    "by click": "import click; click.echo('x')",
    "by rich": "from rich.console import Console; Console().print('x')",
    "as bytes": "sys.stdout.buffer.write(b'x'); sys.stdout.buffer.flush()",
    "before it ends itself": "from common.ending import end_process; print('x'); end_process(0)",
    "before it fails": "print('x'); sys.exit(3)",
    "as its help": "import click; click.command()(lambda: None).main(['--help'])",
}
ENDING = "import sys\nfrom common.output import run_program\nrun_program(lambda: exec({code!r}))"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"gr\\xf6\\xdfe \\u65e5"),
        ("latin-1", b"gr\xf6\xdfe \\u65e5"),
        ("utf-8", "größe 日".encode()),
    ],
)
def test_what_an_output_cannot_say_is_escaped(tmp_path: Path, encoding: str, shown: bytes) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-P", "-c", SPEAKING, str(tmp_path / "done")]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
    assert shown in done.stdout and (tmp_path / "done").exists()


def test_a_reader_that_has_gone_does_not_end_the_work(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", SPEAKING, str(tmp_path / "done")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    assert process.wait(60) == 0 and (tmp_path / "done").exists()


@needs_full
def test_a_full_disk_does_not_end_the_work(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", SPEAKING, str(tmp_path / "done")]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(command, stdout=full, stderr=full, timeout=60, check=False)
    assert done.returncode == 0 and (tmp_path / "done").exists()


def ended(code: str, **streams: Any) -> tuple[int, str]:
    """Return a program's exit code and stderr.

    PYTHONUNBUFFERED is off, so that output is left to flush at the exit.
    """
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-P", "-c", ENDING.format(code=code)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=buffered, text=True, **streams)
    if process.stdout is not None:
        process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    return process.wait(60), said


@needs_full
@pytest.mark.parametrize("code", PRINTING.values(), ids=PRINTING)
def test_a_result_that_cannot_be_written_is_one_message_and_a_failure(code: str) -> None:
    with FULL.open("w") as full:
        failed, said = ended(code, stdout=full)
    assert failed == 1 and said.count("\n") == 1
    assert said.startswith(
        "error: what is printed cannot be written to stdout (No space left on device)"
    )


@pytest.mark.parametrize("code", PRINTING.values(), ids=PRINTING)
def test_where_the_reader_of_a_result_has_gone_the_end_is_quiet(code: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        assert ended(code, stdout=write) == (0, "")
    finally:
        os.close(write)


def test_a_program_that_is_started_without_outputs_says_so_where_it_can() -> None:
    failed, said = ended("print('x')", preexec_fn=lambda: os.close(1))
    assert failed == 1 and "(Bad file descriptor)" in said
    failed, said = ended(
        "print('x', file=sys.stderr); sys.exit(3)",
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.close(2),
    )
    assert (failed, said) == (3, "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_program_finds_the_file_of_its_log(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom common.output import find_log\n"
        "print(find_log(Path(sys.argv[1])))"
    )
    root, own = tmp_path / "root", tmp_path / "root" / "digits" / "logs" / "worker-1.log"
    own.parent.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(root)
    for file, base, found in (
        (own, root, "digits/logs/worker-1.log"),
        (own, link, "digits/logs/worker-1.log"),
        (tmp_path / "x.log", root, str(tmp_path / "x.log")),
        (Path("/dev/null"), root, ""),
    ):
        with file.open("ab") as stderr:
            command = [sys.executable, "-P", "-c", code, str(base)]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        assert done.stdout.strip() == found
