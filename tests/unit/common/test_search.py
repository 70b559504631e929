from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError
from common.search import Search, Stragglers, check_name, default_text, load_search, parse_search

HEAD = 'name = "s"\ntask = "digits"\n'
SPACE = "[space]\nlearning_rate = { log_uniform = [1e-6, 1e1] }\n"
STAGES = "[stages.coarse]\ntrials = 200\nepochs = 0.5\n[stages.fine]\ntrials = 50\nepochs = 20\n"
WHOLE = HEAD + SPACE + STAGES


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse_search(text, "search.toml")
    assert str(error.value).startswith("search.toml: ")
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix("search.toml: ")


def test_the_built_in_search_is_valid() -> None:
    search = parse_search(default_text())
    assert (search.name, search.task, [s.name for s in search.stages]) == ("digits", "digits", ["coarse", "fine"])


def test_a_short_file_gets_the_defaults() -> None:
    search = parse_search(WHOLE)
    assert (search.seed, search.sampler, search.keep, search.explosion_factor, search.id) == (0, "random", 50, 3.0, None)
    assert search.stragglers == Stragglers(lease_s=30.0, stuck_s=300.0, slow_factor=4.0)
    assert (search.stages[0].trials, search.stages[0].epochs) == (200, 0.5)


def test_stages_keep_the_order_of_the_file() -> None:
    search = parse_search(HEAD + SPACE + "[stages.z]\ntrials=1\nepochs=1\n[stages.a]\ntrials=1\nepochs=1\n[stages.m]\ntrials=1\nepochs=1\n")
    assert [s.name for s in search.stages] == ["z", "a", "m"]
    assert search.before("z") is None and search.after("m") is None
    assert (search.before("a"), search.after("a")) == (search.stages[0], search.stages[2])


def test_an_unknown_stage_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"--stage medium: no such stage in search 's'; use one of coarse, fine or all"):
        parse_search(WHOLE).stage("medium")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede = 3\n" + WHOLE, "sede = 3: unknown key; remove it or use one of name, task, seed"),
        (WHOLE + "[stragglers]\nlease = 3\n", "stragglers lease = 3: unknown key; remove it or use one of lease_s, stuck_s, slow_factor"),
        (WHOLE + "epoch = 3\n", "[stages.fine] epoch = 3: unknown key; remove it or use one of name, trials, epochs"),
        (SPACE + STAGES, "name is missing; `master init` writes a complete example"),
        (HEAD + STAGES, "space is missing"),
        (HEAD + SPACE, "stages is missing"),
        (HEAD + SPACE + "[stages.coarse]\ntrials = 3\n", "[stages.coarse] epochs is missing; add it"),
        (HEAD + SPACE + "[stages]\n", "[stages]: {} holds no stage"),
        (HEAD + "stages = 3\n" + SPACE, "[stages]: 3 holds no stage"),
        (HEAD + SPACE + "[stages]\ncoarse = 3\n", "[stages.coarse]: 3 is not a table"),
        (HEAD + SPACE + "[stages.all]\ntrials = 3\nepochs = 1\n", "[stages.all]: the name 'all' means every stage"),
        (HEAD + SPACE + "[stages.'a-b']\ntrials = 3\nepochs = 1\n", "[stages.a-b]: 'a-b' cannot be part of a file name"),
        (HEAD + SPACE + "[stages.'../x']\ntrials = 3\nepochs = 1\n", "[stages.../x]: '../x' cannot be part of a file name"),
        (HEAD + SPACE + "[stages.a]\nname = 'b'\ntrials = 3\nepochs = 1\n", "[stages.a] name: a stage is named by its header"),
        (WHOLE.replace("trials = 200", "trials = 0"), "[stages.coarse] trials = 0: input should be greater than 0"),
        (WHOLE.replace("trials = 200", "trials = 2.0"), "[stages.coarse] trials = 2.0: input should be a valid integer"),
        (WHOLE.replace("trials = 200", "trials = '2'"), "[stages.coarse] trials = '2': input should be a valid integer"),
        (WHOLE.replace("trials = 200", "trials = true"), "[stages.coarse] trials = True: input should be a valid integer"),
        (WHOLE.replace("epochs = 20", "epochs = nan"), "[stages.fine] epochs = nan: input should be a finite number"),
        (WHOLE.replace("epochs = 20", "epochs = inf"), "[stages.fine] epochs = inf: input should be"),
        (WHOLE.replace("epochs = 20", "epochs = -1"), "[stages.fine] epochs = -1: input should be greater than 0"),
        ("seed = -1\n" + WHOLE, "seed = -1: input should be greater than or equal to 0"),
        ("seed = 0.5\n" + WHOLE, "seed = 0.5: input should be a valid integer"),
        ("sampler = 'grid'\n" + WHOLE, "sampler = 'grid': input should be 'random' or 'sobol'"),
        ("keep = 0\n" + WHOLE, "keep = 0: input should be greater than or equal to 1"),
        ("explosion_factor = 1.0\n" + WHOLE, "explosion_factor = 1.0: input should be greater than 1"),
        ("metric = 'F1'\n" + WHOLE, "metric = 'F1': string should match pattern"),
        ("mode = 'least'\n" + WHOLE, "mode = 'least': input should be 'max' or 'min'"),
        (
            "metric = 'val_f1'\n" + WHOLE,
            "metric = 'val_f1': the built-in task 'digits' measures val_acc, val_loss, ema_val_acc, ema_val_loss; use one of these",
        ),
        ("metric = 'ema_val_acc'\n" + WHOLE, "metric = 'ema_val_acc': is of the running average of the parameters; add ema = 0.99"),
        ("metric = 'val_loss'\n" + WHOLE, "mode = 'max': val_loss is best where it is minimal; write mode = 'min'"),
        ("mode = 'min'\n" + WHOLE, "mode = 'min': val_acc is best where it is maximal; write mode = 'max'"),
        (WHOLE + "[stragglers]\nstuck_s = nan\n", "stragglers stuck_s = nan: input should be"),
        (WHOLE.replace('name = "s"', "name = 3"), "name = 3: input should be a valid string"),
        (WHOLE.replace('"s"', '"../s"'), "name: '../s' cannot be a folder below the checkpoint root"),
        (WHOLE.replace("[1e-6, 1e1]", "[1e1, 1e-6]"), "[space] learning_rate: the range [10, 1e-06] is upside down"),
        (WHOLE.replace("1e-6", "0.0"), "[space] learning_rate: the range [0, 10] touches zero"),
        ("name = s\n", "not valid TOML: "),
        (WHOLE + "[space]\n", "not valid TOML: "),
        ("seed = " + "9" * 5000 + "\n" + WHOLE, "not valid TOML: "),
        ("x = " + "[" * 100_000, "not valid TOML: "),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_place_and_value(text: str, message: str) -> None:
    assert refused(text).startswith(message)


@pytest.mark.parametrize("name", ["..", "../up", "a/b", "/abs", ".hidden", "", "a..b", "-x", "a b", "é", "x" * 65, "a\n", "a\0"])
def test_a_name_that_climbs_or_hides_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a folder"):
        check_name(name)


@pytest.mark.parametrize("name", ["digits", "a.b-c_d", "2026-run", "x" * 64])
def test_ordinary_names_are_taken(name: str) -> None:
    assert check_name(name) == name


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; `master init`"):
        load_search(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match=r"is a folder; give the search file in it"):
        load_search(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 8\)"):
        load_search(tmp_path / "latin.toml")
    (tmp_path / "big.toml").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(ConfigError, match="is it the right file"):
        load_search(tmp_path / "big.toml")


def test_a_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("keep = 0\n" + WHOLE)
    with pytest.raises(ConfigError, match=rf"^{path}: keep = 0"):
        load_search(path)


def test_the_task_may_be_a_file_of_the_users() -> None:
    def with_task(task: str) -> Search:
        return parse_search(WHOLE.replace('"digits"', f'"{task}"'))

    assert with_task("digits").task_file is None
    assert with_task("path/to/my_task.py:MyTask").task_file == "path/to/my_task.py"
    assert with_task("path/to/my_task.py:MyTask").task_in_folder == "my_task.py:MyTask"
