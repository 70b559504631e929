"""Programs as tasks: their words, reports, checkpoints and ends, in any language."""

from __future__ import annotations

import gc
import json
import os
import shlex
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import coarsefine.reporting
from common.errors import ConfigError
from common.folder.records import SearchFolder
from common.offspring import Offspring
from common.search import command
from common.search.search_file import Search, parse_search
from common.search.trial import Claim, TrialState
from tests.integration.processes import alive
from tests.unit.worker.test_own_loop import Watch, job, loaded
from worker.own import OwnLoop
from worker.own.loop import PROGRAM
from worker.own.output import END, HEAD, MOST_FILE, Output
from worker.own.program import GIVEN, MOST_TOLD, REPORTS, Place, ProgramHost, visible
from worker.training.types import Boundary, Outcome

SEARCH = """
name = "own"
task = {{ command = {command} }}
[space]
learning_rate = 0.1
[stages.coarse]
trials = 4
epochs = 4
{options}
"""


def search(words: object, options: str = "") -> Search:
    return parse_search(SEARCH.format(command=json.dumps(words), options=options))


class Runs:
    """Programs in a folder of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = SearchFolder(path / "checkpoints", "own")
        self.folder.stage("coarse").make()
        self.said: list[str] = []
        self.watch = Watch()

    def own(self, words: object, options: str = "") -> OwnLoop:
        found = search(words, options)
        place = Place(found.task, self.path, self.folder, "cpu", 1)
        host = ProgramHost(place, Offspring(), self.said.append)
        return OwnLoop(PROGRAM.whose, host.open, search=found, log=self.said.append, manner=PROGRAM)

    def boundaries(self, script: str, *jobs: Claim, options: str = "") -> list[Boundary]:
        own = self.own(["sh", "-c", script], options)
        return list(own.train(list(jobs or [job()]), lambda n: [], self.watch))

    def outcome(self, script: str, *jobs: Claim, options: str = "") -> Outcome:
        found = self.boundaries(script, *jobs, options=options)
        (ended,) = [one for boundary in found for one in boundary.ended]
        return ended

    def output(self) -> str:
        (file,) = self.folder.stage("coarse").outputs_by_attempt("coarse-0000").values()
        return file.read_text()


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def said(epoch: float | None = None, **values: Any) -> str:
    """A line of shell that reports these."""
    line = json.dumps(({} if epoch is None else {"epoch": epoch}) | values)
    return f'echo {shlex.quote(line)} >> "$COARSEFINE_REPORTS"\n'


# -- the search file -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("", "names no program"),
        ([], "names no program"),
        ([" "], "names no program"),
        (3, "is no text and no list"),
        (["python", 3], "is no text and no list"),
        ("python 'x", "no closing quotation; close the quote"),
        ("python --lr {learnig_rate}", "{learnig_rate} is neither in [space] nor one of trial,"),
        ("python --lr {learning_rate:.3f}", "the value of learning_rate is put in as it is"),
        ("python {learning_rate.real}", "write {learning_rate}"),
        (["sh", "-c", "echo x{sede}"], "write {{sede}} for braces that stay"),
    ],
)
def test_a_command_that_cannot_be_filled_is_refused_in_words(words: object, reason: str) -> None:
    with pytest.raises(ConfigError, match="task") as told:
        search(words)
    assert reason in str(told.value) and len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ('{ comand = "x" }', "task comand: unknown key"),
        ("{ }", "is no text and no list"),
        ('{ command = "x", shell = true }', "task shell: unknown key"),
    ],
)
def test_a_task_s_table_has_one_key(table: str, reason: str) -> None:
    text = SEARCH.format(command="1", options="").replace("{ command = 1 }", table)
    with pytest.raises(ConfigError) as told:
        parse_search(text)
    assert reason in str(told.value)


def test_a_hyperparameter_cannot_have_the_name_of_a_placeholder() -> None:
    text = SEARCH.format(command='"x"', options="").replace("learning_rate", "epochs")
    with pytest.raises(ConfigError, match=r"\[space\] epochs: \{epochs\} in a command means"):
        parse_search(text)


def test_text_and_list_are_the_same_and_braces_can_stay() -> None:
    words = ["python", "a b.py", '{"lr": {learning_rate}}', "{learning_rate}-{seed}"]
    words += ["${HOME}", "{}", "{{seed}}", "{a:b}", "{"]
    one, other = search(words), search(shlex.join(words))
    assert one.task == other.task and one.is_command and one.task_file is None
    assert command.digest(one.task).startswith("command:")
    filled = command.fill(one.task, {"learning_rate": 0.5, "seed": 3})
    assert filled[:4] == ["python", "a b.py", '{"lr": 0.5}', "0.5-3"]
    assert filled[4:] == ["${HOME}", "{}", "{seed}", "{a:b}", "{"]


def test_lists_and_tables_are_json_and_what_does_not_exist_in_a_trial_is_left_out() -> None:
    words = ["train", "--lr={learning_rate}", "--m={momentum}", "{momentum}", "a={momentum}", "{l}"]
    task = "$ " + shlex.join(words)
    filled = command.fill(task, {"learning_rate": 0.5, "l": [{"units": 8, "norm": True}]})
    assert filled == ["train", "--lr=0.5", "", "a=", '[{"units": 8, "norm": true}]']
    filled = command.fill(task, {"learning_rate": 1, "momentum": 0.9, "l": False})
    assert filled == ["train", "--lr=1", "--m=0.9", "0.9", "a=0.9", "false"]


def test_a_command_ships_no_code_and_measures_what_a_constraint_names() -> None:
    text = SEARCH.format(command='"x"', options="")
    with pytest.raises(ConfigError, match=r"code = \['\*.py'\]: a task that is a command ships no"):
        parse_search('code = ["*.py"]\n' + text)
    assert parse_search('subject_to = "latency_ms <= 5"\n' + text).constraints


# -- what a program is told ------------------------------------------------------------------------


def test_a_program_gets_its_trial_by_placeholders_variables_and_a_file(runs: Runs) -> None:
    names = [*command.PLACEHOLDERS, "learning_rate", "deep"]
    words = [sys.executable, "-c", "import json, os, sys; print(json.dumps([sys.argv[1:], "
             "dict(os.environ), json.load(open(os.environ['COARSEFINE_CONFIG'])), os.getcwd()]))",
             *(f"{{{{{name}}}}}={{{name}}}" for name in names)]  # fmt: skip
    text = SEARCH.format(command=json.dumps(words), options="").replace(
        "learning_rate = 0.1", "learning_rate = 0.1\ndeep = true"
    )
    found = parse_search(text)
    host = ProgramHost(
        Place(found.task, runs.path, runs.folder, "cpu", 3), Offspring(), runs.said.append
    )
    own = OwnLoop(found.task, host.open, search=found, log=print, manner=PROGRAM)
    list(own.train([job(deep=True)], lambda n: [], runs.watch))
    given, environment, config, cwd = json.loads(runs.output())
    folder = str(runs.folder.stage("coarse").program_path("coarse-0000", 1))
    assert given == [
        "{trial}=coarse-0000", f"{{trial_dir}}={folder}",
        f"{{config}}={folder}/.coarsefine/config.json", "{epochs}=4", "{max_epochs}=4",
        "{epoch}=0", "{seed}=11", "{resume}=", "{device}=cpu", "{gpus}=1", "{learning_rate}=0.1",
        "{deep}=true",
    ]  # fmt: skip
    assert environment["COARSEFINE_TRIAL"] == "coarse-0000" and cwd == str(runs.path)
    assert environment["COARSEFINE_HP_LEARNING_RATE"] == "0.1"
    assert environment["CUDA_VISIBLE_DEVICES"] == "" and environment["PATH"] == os.environ["PATH"]
    assert config["hyperparameters"] == {"learning_rate": 0.1, "deep": True}
    assert (config["epochs"], config["resume"], config["stage"]) == (4, "", "coarse")


@pytest.mark.parametrize(
    ("devices", "worker_s", "seen"),
    [
        ("cuda:1", None, "1"),
        ("cuda:1", "4, 6", "6"),
        ("cuda:0,cuda:2", None, "0,2"),
        ("cuda:2,cuda:0", "7,5,3", "3,7"),
        ("cuda:1,cuda:2", "GPU-8f6a,GPU-1b2c,MIG-5c6d", "GPU-1b2c,MIG-5c6d"),
        ("cpu", "4", ""),
        ("cpu", None, ""),
    ],
)
def test_the_devices_of_the_trial_are_the_only_ones_a_program_sees(
    devices: str, worker_s: str | None, seen: str
) -> None:
    environment = {} if worker_s is None else {"CUDA_VISIBLE_DEVICES": worker_s}
    assert visible(devices, environment) == seen


def test_a_program_with_several_gpus_is_told_how_many_and_its_processes_share_the_cores(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    words = ["sh", "-c", "echo {gpus} $COARSEFINE_GPUS $CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS"]
    found = search([*words[:2], words[2] + f"; {said(1, val_acc=0.5)}"])
    for device, told in (("cuda:0,cuda:2", "2 2 5,7 4"), ("cpu", "2 2 4")):
        place = Place(found.task, runs.path, runs.folder, device, 8, 2)
        host = ProgramHost(place, Offspring(), runs.said.append)
        own = OwnLoop(found.task, host.open, search=found, log=print, manner=PROGRAM)
        list(own.train([job()], lambda n: [], runs.watch))
        assert runs.output().splitlines()[-1] == told


# -- reports ---------------------------------------------------------------------------------------


def test_a_shell_script_reports_by_lines_of_json(runs: Runs) -> None:
    script = "".join(said(n, val_acc=0.1 * n, train_loss=1 / n) for n in range(1, 5))
    found = runs.outcome(script)
    assert (found.state, found.reason) == (TrialState.COMPLETED, None)
    assert found.curves["epoch"] == [1, 2, 3, 4] and found.value == pytest.approx(0.4)
    assert found.checkpoint is None and runs.said[0].startswith("the best epoch was reported")
    assert not runs.folder.stage("coarse").program_path("coarse-0000", 1).exists()


PYTHON = f"{sys.executable} -c 'import coarsefine; {{}}'\n"


def test_a_python_program_reports_with_the_package_folder_alone(runs: Runs) -> None:
    """Isolated from this environment, as a program with one of its own is."""
    code = (
        "from coarsefine import report; import sys; "
        'assert not [name for name in sys.modules if name in ("torch", "numpy", "common")]; '
        "[report(n, val_acc=n / 10) for n in (1, 2)]"
    )
    script = f"env -u PYTHONHOME {sys.executable} -S -c {shlex.quote(code)}"
    found = runs.outcome(script)
    assert (found.state, found.value) == (TrialState.COMPLETED, 0.2), found.reason


def test_one_report_without_an_epoch_counts_for_the_whole_budget(runs: Runs) -> None:
    found = runs.outcome(said(val_acc=0.75))
    assert (found.state, found.epochs, found.value) == (TrialState.COMPLETED, 4.0, 0.75)


def test_output_is_a_sign_of_life_and_a_program_can_ask_for_more_time(runs: Runs) -> None:
    code = "import coarsefine; coarsefine.beat(3600); print(1); coarsefine.report(1, val_acc=0.5)"
    script = f"echo begun; sleep 0.3; {sys.executable} -c {shlex.quote(code)}"
    assert runs.outcome(script).value == 0.5
    assert [one for one in runs.watch.phases if one[0] == "own_loop"][1] == ("own_loop", None)
    assert ("own_loop", 3600) in runs.watch.phases
    runs.outcome('echo \'{"limit_s": "x"}\' >> "$COARSEFINE_REPORTS"\n' + said(1, val_acc=0.5))
    assert "line 1 of its reports is left out: limit_s is 'x'" in "".join(runs.said)


def test_torn_and_nonsense_lines_are_told_and_left_out(runs: Runs) -> None:
    lines = ['{"epoch": 1, "val_', "[1]", '{"Val": 1}', '{"val_acc": "a"}', '{"epoch": NaN}']
    script = said(1, val_acc=0.5) + "".join(
        f'echo {shlex.quote(line)} >> "$COARSEFINE_REPORTS"\n' for line in lines
    )
    script += said(2, val_acc=0.6) + 'printf \'{"epoch": 3, "val_acc"\' >> "$COARSEFINE_REPORTS"'
    found = runs.outcome(script)
    assert (found.state, found.epochs) == (TrialState.COMPLETED, 2.0)
    told = [line for line in runs.said if "of its reports is left out" in line]
    assert len(told) == MOST_TOLD == 5 and told[0].startswith(
        "coarse-0000: line 2 of its reports is left out:"
    )
    for line, reason in zip(told, ("no JSON", "no object", "no name", "not a number", "epoch is"),
                            strict=True):  # fmt: skip
        assert reason in line


def test_a_report_that_is_written_bit_by_bit_counts_once_it_is_whole(runs: Runs) -> None:
    script = (
        'printf \'{"epoch": 1,\' >> "$COARSEFINE_REPORTS"; sleep 0.3; '
        'echo \' "val_acc": 0.5}\' >> "$COARSEFINE_REPORTS"'
    )
    assert runs.outcome(script).value == 0.5 and len(runs.said) == 1


def test_worker_and_programs_speak_of_the_same_places() -> None:
    assert (REPORTS, GIVEN) == (coarsefine.reporting.REPORTS, coarsefine.reporting.GIVEN)


def test_outside_of_a_search_a_report_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(coarsefine.reporting.REPORTS, raising=False)
    coarsefine.report(1, val_acc=0.5, checkpoint="model.pt")
    line = json.loads(capsys.readouterr().out)
    assert (line["epoch"], line["val_acc"], line["checkpoint"]) == (1, 0.5, "model.pt")
    with pytest.raises(TypeError, match=r"report\(val_acc='good'\): not a number"):
        coarsefine.report(1, val_acc="good")


# -- how a program ends ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "exit 0",
            "the program ended without a report; call coarsefine.report(epoch=..., val_acc=...)",
        ),
        ("echo no luck >&2; exit 3", "its program ended with exit status 3; its output ends: no"),
        ("kill -9 $$", "its program was ended by SIGKILL, as the kernel does"),
        (said(1, val_acc=0.5) + said(1, val_acc=0.6), "epoch 1 after epoch 1; count the epochs"),
    ],
)
def test_a_program_that_fails_says_why_and_the_next_goes_on(
    runs: Runs, script: str, reason: str
) -> None:
    script = f'if [ "$COARSEFINE_TRIAL" = coarse-0000 ]; then {script}\nfi\n{said(1, val_acc=0.5)}'
    found = runs.boundaries(script.replace("exit 0", "exit 0 "), job(0), job(1))
    ended = [one for boundary in found for one in boundary.ended]
    assert [one.state for one in ended] == [TrialState.FAILED, TrialState.COMPLETED]
    assert reason in str(ended[0].reason), ended[0].reason


def test_a_program_that_is_not_there_fails_in_words(runs: Runs) -> None:
    own = runs.own(["no-such-program", "{seed}"])
    (end,) = list(own.train([job()], lambda n: [], runs.watch))
    assert "its program cannot be started: no-such-program: no such program on this machine" in str(
        end.ended[0].reason
    )
    shutil.rmtree(runs.folder.path)
    assert "is gone" in str(runs.outcome("exit 0").reason) and not runs.folder.path.exists()


TIDY = "trap 'echo tidied up; exit 0' TERM\n"
TAIL = "while :; do sleep 0.05; done\n"


def test_explosion_and_patience_end_a_program_by_sigterm(runs: Runs) -> None:
    found = runs.outcome(TIDY + said(1, train_loss=1.0) + said(2, train_loss=9.0) + TAIL)
    assert found.state is TrialState.EXPLODED and "train_loss 9 above 3 x" in str(found.reason)
    assert runs.output().endswith("tidied up\n")
    found = runs.outcome(
        "".join(said(n, val_acc=0.5) for n in (1, 2, 3)) + TAIL, options="patience = 2"
    )
    assert found.state is TrialState.STOPPED and "no progress" in str(found.reason)


def test_a_killed_program_that_ignores_sigterm_is_killed_with_what_it_has_started(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.own.program.TERM_S", 0.2)
    pids = runs.path / "pids"
    script = (
        f"trap '' TERM\nsh -c 'trap \"\" TERM; echo $$ >> {pids}; while :; do sleep 0.1; done' &\n"
        f"echo $$ >> {pids}\n{said(1, val_acc=0.5)}while :; do sleep 0.1; done"
    )
    for boundary in runs.own(["sh", "-c", script]).train([job()], lambda n: [], runs.watch):
        assert not boundary.ended
        while len(pids.read_text().splitlines()) < 2:
            time.sleep(0.01)
        runs.watch.gone = {"coarse-0000"}
    for pid in pids.read_text().split():
        assert not alive(int(pid))


def test_told_to_stop_a_program_ends_and_its_trial_goes_on_from_its_checkpoint(
    runs: Runs,
) -> None:
    script = (
        'n=$COARSEFINE_EPOCH; [ -z "$COARSEFINE_RESUME" ] || cat "$COARSEFINE_RESUME"\n'
        "while [ $n -lt 4 ]; do n=$((n + 1)); echo weights of $n > model.bin\n"
        'echo "{\\"epoch\\": $n, \\"val_acc\\": 0.$n, \\"checkpoint\\": \\"model.bin\\"}" '
        '>> "$COARSEFINE_REPORTS"; sleep 0.4; done'
    )
    last = Boundary([], [], [])
    for last in runs.own(["sh", "-c", script]).train([job()], lambda n: [], runs.watch):
        runs.watch.stop = bool(last.running) and last.running[0].epoch == 2
    (view,) = last.running
    state = loaded(view.state())
    runs.watch.stop = False
    ended = runs.outcome(script, job(resume=state))
    assert (ended.state, ended.epochs, ended.value) == (TrialState.COMPLETED, 4.0, 0.4)
    assert ended.curves["epoch"] == [1, 2, 3, 4] and ended.checkpoint is not None
    assert ended.checkpoint() == b"weights of 4\n"
    outputs = runs.folder.stage("coarse").outputs_by_attempt("coarse-0000")
    assert outputs[max(outputs)].read_text() == "weights of 2\n"


def test_the_best_checkpoint_is_kept_as_it_was_reported(runs: Runs) -> None:
    code = (
        "import coarsefine\nfor n in (1, 2, 3):\n"
        " open('model.bin', 'w').write(str(n))\n"
        " coarsefine.report(n, val_acc=[0, .1, .9, .5][n], checkpoint='model.bin')\n"
        "open('model.bin', 'w').write('later')\n"
    )
    found = runs.outcome(f"{sys.executable} -c {shlex.quote(code)}")
    assert found.checkpoint is not None and found.checkpoint() == b"2"
    state = found.resume() if found.resume is not None else {}
    assert bytes(state["loop"]["state"]["$file"].numpy()) == b"3"
    folder = runs.folder.stage("coarse").program_path("coarse-0000", 1)
    assert sorted(path.name for path in folder.rglob("*")) == [".coarsefine", "2-model.bin",
                                                             "3-model.bin", "kept"]  # fmt: skip
    del found, state
    gc.collect()
    assert not folder.exists()


def test_a_checkpoint_that_is_not_there_is_told_and_its_numbers_count(runs: Runs) -> None:
    found = runs.outcome(said(1, val_acc=0.5, checkpoint="gone.pt"))
    assert found.value == 0.5 and found.checkpoint is None
    assert "its checkpoint gone.pt cannot be copied (No such file" in runs.said[0]


def test_what_a_program_leaves_in_its_folder_stays(runs: Runs) -> None:
    runs.outcome('echo mine > "$COARSEFINE_TRIAL_DIR/mine.txt"\n' + said(1, val_acc=0.5))
    folder = runs.folder.stage("coarse").program_path("coarse-0000", 1)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_a_long_output_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "output" / "long.txt"
    output = Output(path)
    for number in range(3):
        os.write(output.theirs, f"begin {number}\n".encode() + b"x" * (MOST_FILE // 2))
    os.write(output.theirs, b"\nthe end\n")
    output.close_theirs()
    assert output.tail(20).endswith("the end\n")
    text = path.read_text()
    assert len(text) < MOST_FILE and text.startswith("begin 0") and text.endswith("\nthe end\n")
    assert "bytes left out ...]" in text and len(text) > HEAD + END


def test_signals_are_named() -> None:
    from worker.own.process import how_ended

    assert how_ended(-signal.SIGTERM) == "was ended by SIGTERM"
    assert how_ended(-signal.SIGRTMIN - 1).startswith("was ended by signal ")
    assert partial(how_ended, 2)() == "ended with exit status 2"
