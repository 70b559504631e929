from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError
from common.search.search_file import Search, check_name, default_text, load_search, parse_search
from common.search.stage import Resources, Stragglers

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
    assert (search.name, search.task, search.stages[0].name) == ("digits", "digits", "coarse")


def test_a_short_file_gets_the_defaults() -> None:
    search = parse_search(WHOLE)
    assert (search.seed, search.sampler, search.keep, search.explosion_factor, search.id) == (
        0,
        "staged",
        50,
        3.0,
        None,
    )
    assert search.stragglers == Stragglers(
        lease_s=30.0, stuck_s=300.0, slow_factor=4.0, limit_s=None
    )
    assert (search.stages[0].trials, search.stages[0].epochs) == (200, 0.5)


def test_several_gpus_are_for_loops_and_programs() -> None:
    text = WHOLE.replace('"digits"', '{ command = "torchrun --nproc_per_node {gpus} train.py" }')
    assert parse_search(WHOLE).resources == parse_search(text).resources == Resources(gpus=1)
    assert parse_search(text + "[resources]\ngpus = 2\n").resources.gpus == 2
    assert parse_search(WHOLE + "[resources]\non_cpu = false\n").resources.on_cpu is False


@pytest.mark.parametrize(
    ("resources", "fitting"),
    [
        (Resources(), [0, 1, 2, 4]),
        (Resources(gpus=2), [2, 4]),
        (Resources(gpus=2, on_cpu=True), [0, 2, 4]),
        (Resources(on_cpu=False), [1, 2, 4]),
    ],
)
def test_which_workers_have_what_a_trial_needs(resources: Resources, fitting: list[int]) -> None:
    assert [n_gpus for n_gpus in (0, 1, 2, 4) if resources.fits(n_gpus)] == fitting


def test_stages_keep_the_order_of_the_file() -> None:
    search = parse_search(
        HEAD
        + SPACE
        + (
            "[stages.z]\ntrials=1\nepochs=1\n[stages.a]\ntrials=1\nepochs=1\n[stages.m]\n"
            "trials=1\nepochs=1\n"
        )
    )
    assert [s.name for s in search.stages] == ["z", "a", "m"]
    assert search.before("z") is None and search.after("m") is None
    assert (search.before("a"), search.after("a")) == (search.stages[0], search.stages[2])


def test_an_unknown_stage_lists_those_there_are() -> None:
    with pytest.raises(
        ConfigError,
        match=r"--stage medium: no such stage in search 's'; use one of coarse, fine or all",
    ):
        parse_search(WHOLE).stage("medium")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede = 3\n" + WHOLE, "sede = 3: unknown key; remove it or use one of name, task, seed"),
        (
            WHOLE + "[stragglers]\nlease = 3\n",
            (
                "[stragglers] lease = 3: unknown key; remove it or use one of lease_s, "
                "stuck_s, slow_factor, limit_s"
            ),
        ),
        (
            WHOLE + "epoch = 3\n",
            "[stages.fine] epoch = 3: unknown key; remove it or use one of name, trials, epochs",
        ),
        (SPACE + STAGES, "name is missing; `master init` writes a complete example"),
        (HEAD + STAGES, "space is missing"),
        (HEAD + SPACE, "[budget] is missing"),
        (
            HEAD + SPACE + "[stages.coarse]\ntrials = 3\n",
            "[stages.coarse] epochs is missing; add it",
        ),
        (HEAD + SPACE + "[stages]\n", "[stages]: {} holds no stage"),
        (HEAD + "stages = 3\n" + SPACE, "[stages]: 3 holds no stage"),
        (HEAD + SPACE + "[stages]\ncoarse = 3\n", "[stages.coarse]: 3 is not a table"),
        (
            HEAD + SPACE + "[stages.all]\ntrials = 3\nepochs = 1\n",
            "[stages.all]: the name 'all' means every stage",
        ),
        (
            HEAD + SPACE + "[stages.'a-b']\ntrials = 3\nepochs = 1\n",
            "[stages.a-b]: 'a-b' cannot be part of a file name",
        ),
        (
            HEAD + SPACE + "[stages.'../x']\ntrials = 3\nepochs = 1\n",
            "[stages.../x]: '../x' cannot be part of a file name",
        ),
        (
            HEAD + SPACE + "[stages.a]\nname = 'b'\ntrials = 3\nepochs = 1\n",
            "[stages.a] name: a stage is named by its header",
        ),
        (
            WHOLE.replace("trials = 200", "trials = 0"),
            "[stages.coarse] trials = 0: input should be greater than 0",
        ),
        (
            WHOLE.replace("trials = 200", "trials = 2.0"),
            "[stages.coarse] trials = 2.0: input should be a valid integer",
        ),
        (
            WHOLE.replace("trials = 200", "trials = '2'"),
            "[stages.coarse] trials = '2': input should be a valid integer",
        ),
        (
            WHOLE.replace("trials = 200", "trials = true"),
            "[stages.coarse] trials = True: input should be a valid integer",
        ),
        (
            WHOLE.replace("epochs = 20", "epochs = nan"),
            "[stages.fine] epochs = nan: input should be a finite number",
        ),
        (
            WHOLE.replace("epochs = 20", "epochs = inf"),
            "[stages.fine] epochs = inf: input should be",
        ),
        (
            WHOLE.replace("epochs = 20", "epochs = -1"),
            "[stages.fine] epochs = -1: input should be greater than 0",
        ),
        ("seed = -1\n" + WHOLE, "seed = -1: input should be greater than or equal to 0"),
        ("seed = 0.5\n" + WHOLE, "seed = 0.5: input should be a valid integer"),
        (
            "sampler = 'griddy'\n" + WHOLE,
            "sampler = 'griddy': input should be 'staged', 'random', 'sobol', 'grid', 'tpe'",
        ),
        ("schedule = 'asap'\n" + WHOLE, "schedule = 'asap': input should be 'staged' or 'async'"),
        (
            WHOLE.replace("epochs = 20", "epochs = 20\nrungs = [1]"),
            "[stages.fine] rungs: is planned from a [budget]; remove rungs = [1]",
        ),
        (
            WHOLE.replace("epochs = 20", "epochs = 20\nkeep = [1]"),
            "[stages.fine] keep: is planned from a [budget]; remove keep = [1]",
        ),
        ("keep = 0\n" + WHOLE, "keep = 0: input should be greater than or equal to 1"),
        (
            "explosion_factor = 1.0\n" + WHOLE,
            "explosion_factor = 1.0: input should be greater than 1",
        ),
        (
            "explosion = 'never'\n" + WHOLE,
            "explosion = 'never': input should be 'nan', True or False",
        ),
        ("explosion = 3.0\n" + WHOLE, "explosion = 3.0: input should be 'nan', True or False"),
        ("metric = 'F1'\n" + WHOLE, "metric = 'F1': string should match pattern"),
        ("mode = 'least'\n" + WHOLE, "mode = 'least': input should be 'max' or 'min'"),
        (
            "metric = 'val_f1'\n" + WHOLE,
            (
                "metric = 'val_f1': the built-in task 'digits' measures val_acc, val_loss, "
                "ema_val_acc, ema_val_loss; use one of these"
            ),
        ),
        (
            "metric = 'ema_val_acc'\n" + WHOLE,
            "metric = 'ema_val_acc': needs the running average of the parameters; add ema = 0.99",
        ),
        (
            "metric = 'val_loss'\n" + WHOLE,
            "mode = 'max': val_loss must be minimised; write mode = 'min'",
        ),
        (
            "mode = 'min'\n" + WHOLE,
            "mode = 'min': val_acc must be maximised; write mode = 'max'",
        ),
        (WHOLE + "[stragglers]\nstuck_s = nan\n", "[stragglers] stuck_s = nan: input should be"),
        (
            WHOLE + "[resources]\ngpus = 0\n",
            "[resources] gpus = 0: input should be greater than or equal to 1",
        ),
        (
            WHOLE + "[resources]\ngpu = 2\n",
            "[resources] gpu = 2: unknown key; remove it or use one of gpus, on_cpu",
        ),
        (
            WHOLE + "[resources]\ngpus = 2\n",
            "[resources] gpus = 2: is for loops and programs; 'digits' is a class, and these train",
        ),
        (WHOLE.replace('name = "s"', "name = 3"), "name = 3: input should be a valid string"),
        (
            WHOLE.replace('"s"', '"../s"'),
            "name: '../s' cannot be a folder below the checkpoint root",
        ),
        (
            WHOLE.replace("[1e-6, 1e1]", "[1e1, 1e-6]"),
            "[space] learning_rate: the range [10, 1e-06] is upside down",
        ),
        (WHOLE.replace("1e-6", "0.0"), "[space] learning_rate: the range [0, 10] touches zero"),
        ("name = s\n", "not valid TOML: "),
        (WHOLE + "[space]\n", "not valid TOML: "),
        ("seed = " + "9" * 5000 + "\n" + WHOLE, "not valid TOML: "),
        ("x = " + "[" * 100_000, "not valid TOML: "),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_place_and_value(text: str, message: str) -> None:
    assert refused(text).startswith(message)


@pytest.mark.parametrize(
    "name",
    ["..", "../up", "a/b", "/abs", ".hidden", "", "a..b", "-x", "a b", "é", "x" * 65, "a\n", "a\0"],
)
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


def test_a_file_as_editors_leave_it_is_read_or_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "search.toml"
    path.write_bytes(b"\xef\xbb\xbf" + WHOLE.replace("\n", "\r\n").encode())
    assert load_search(path) == parse_search(WHOLE)
    path.write_bytes(WHOLE.encode() + b"\n\0\0")
    with pytest.raises(
        ConfigError,
        match=(
            rf"has a NUL character in line {WHOLE.count(chr(10)) + 2}; save it again as plain "
            r"text"
        ),
    ):
        load_search(path)
    path.write_bytes(WHOLE.encode("utf-16"))
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_search(path)


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
    assert with_task("my_package.tasks:MyTask").task_file == "my_package.tasks"
    for odd in ("my-package.tasks:MyTask", "my_package.:MyTask", "tasks.txt:MyTask"):
        with pytest.raises(ConfigError, match=r"not a file and a name; write .* for a module"):
            with_task(odd)


def test_the_code_of_a_task_is_named_by_patterns() -> None:
    own = WHOLE.replace('"digits"', '"my_task.py:MyTask"')
    assert parse_search(own).code == ()
    assert parse_search('code = ["*.py", "data/**/*.csv"]\n' + own).code == (
        "*.py",
        "data/**/*.csv",
    )
    for odd in ('"*.py"', "[]", "[1]"):
        with pytest.raises(ConfigError, match=r"code = .*not a list of patterns"):
            parse_search(f"code = {odd}\n" + own)
    for outside in ("../other", "/etc/*", "a/../../b", ""):
        with pytest.raises(ConfigError, match="names no file in the folder"):
            parse_search(f'code = ["{outside}"]\n' + own)
    assert parse_search('code_from = ["../lib"]\n' + own).code_from == ("../lib",)
    with pytest.raises(ConfigError, match=r"code_from = 'lib': not a list of folders; write"):
        parse_search('code_from = "lib"\n' + own)
    for key in ("code", "code_from"):
        with pytest.raises(ConfigError, match=f"{key} = .* task 'digits' ships no code; remove it"):
            parse_search(f'{key} = ["lib"]\n' + WHOLE)
