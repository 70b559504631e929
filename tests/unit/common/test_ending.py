"""A process that ends at once loses nothing."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from common.ending import END_SIGNALS

ENDING = """
import atexit, sys, threading
from common.ending import end_process
atexit.register(print, "a duty at the end")
threading.Thread(target=threading.Event().wait).start()  # nobody waits for it
class Slow:
    def __del__(self):
        print("taken down")
kept = Slow()
print("unflushed" * 10_000, end="")
print("to stderr", file=sys.stderr)
end_process(3)
"""


def test_outputs_are_flushed_and_duties_done_and_nothing_is_taken_down() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", ENDING],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "to stderr\n")
    assert done.stdout == "unflushed" * 10_000 + "a duty at the end\n"


HEARING = """
import os, signal, sys, time
from common.ending import BY_SIGNAL, END_SIGNALS, hear_end
if "--nohup" not in sys.argv:
    for number in END_SIGNALS:  # the tests themselves may have been started with some of them ignored
        signal.signal(number, signal.SIG_DFL)
def end(number, frame):
    print("saved", flush=True)
    os._exit(BY_SIGNAL + number)
hear_end(end)
print("ready", flush=True)
time.sleep(60)
"""  # noqa: E501


@pytest.mark.parametrize("number", END_SIGNALS)
def test_every_signal_that_asks_for_the_end_is_heard(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HEARING], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert (process.communicate(timeout=60)[0], process.returncode) == ("saved\n", 128 + number)


def test_what_was_ignored_from_the_start_stays_ignored() -> None:
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + HEARING
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", ignored, "--nohup"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert (process.communicate(timeout=60)[0], process.returncode) == ("saved\n", 143)


BORROWING = """
import signal, threading
from common.ending import END_SIGNALS, hear_end, unhear_end
def own(number, frame): ...
signal.signal(signal.SIGTERM, own)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
before = {number: signal.getsignal(number) for number in END_SIGNALS}
heard = hear_end(print, signal.SIGINT)
assert signal.getsignal(signal.SIGTERM) is print and signal.getsignal(signal.SIGUSR1) is print
assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
unhear_end(heard)
assert {number: signal.getsignal(number) for number in END_SIGNALS} == before
elsewhere = threading.Thread(target=lambda: unhear_end(hear_end(print)))
elsewhere.start(), elsewhere.join()
assert {number: signal.getsignal(number) for number in END_SIGNALS} == before
"""


def test_a_program_that_launches_has_its_own_handlers_back() -> None:
    subprocess.run([sys.executable, "-P", "-W", "error", "-c", BORROWING], check=True, timeout=60)
