"""Which files are shipped with a task, their digest, and how they are kept in a search's folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from common.code import choose, store, tree
from common.code.choose import collect
from common.code.locate import locate
from common.code.tree import Code, File
from common.errors import CheckpointError, TaskError
from common.folder import durable
from common.folder.records import SearchFolder

TASK = "class T: ...\n"
SEARCH = 'name = "a"\ntask = "mine.py:T"\n[space]\nlearning_rate = 0.1\n[budget]\nepochs = 60\n'


def write(folder: Path, *names: str, **contents: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(contents.get(Path(name).stem, TASK))
    return folder


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *own, *words], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def names(code: Code) -> list[str]:
    return sorted(code.files)


# -- folders besides the task's own ----------------------------------------------------------------


def test_from_other_folders_what_is_imported_is_shipped_and_the_own_folder_comes_first(
    tmp_path: Path,
) -> None:
    write(
        tmp_path,
        *("home/mine.py", "home/near.py", "lib/near.py", "lib/far.py", "lib/unused.py"),
        *("lib/table.csv", "lib/named.csv", "more/back.py", "more/nets/__init__.py"),
        *("more/nets/deep.py", "more/random.py"),
        mine="import near, far\nopen('table.csv')\nclass T: ...\n",
        far="import nets.deep\nopen('named.csv')\n",
        deep="import back\nfrom . import other\n",
    )
    found = collect("mine.py:T", tmp_path / "home", code_from=["../lib", "../more", "."])
    expected = ["back.py", "far.py", "mine.py", "named.csv", "near.py"]
    assert names(found) == [*expected, "nets/__init__.py", "nets/deep.py"]
    assert found.files["near.py"].content == TASK.encode()
    chosen = collect("mine.py:T", tmp_path / "home", ["far.py", "n*"], code_from=["../lib"])
    assert names(chosen) == ["far.py", "mine.py", "named.csv", "near.py"]
    with pytest.raises(TaskError, match=r"code = 'x\.py': names no file in .*home or .*lib; a pat"):
        collect("mine.py:T", tmp_path / "home", ["x.py"], code_from=["../lib"])
    with pytest.raises(
        TaskError, match=r"code_from = '\.\./li': there is no folder .*/li; the path"
    ):
        collect("mine.py:T", tmp_path / "home", code_from=["../li"])


def test_the_commit_is_that_of_the_other_folder_where_the_own_is_ignored(tmp_path: Path) -> None:
    write(tmp_path, "searches/mine.py", "helpers.py", mine="import helpers\n")
    (tmp_path / ".gitignore").write_text("searches\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")

    def collected() -> Code:
        return collect("mine.py:T", tmp_path / "searches", code_from=[".."])

    assert names(collected()) == ["helpers.py", "mine.py"]
    assert (collected().commit, collected().dirty) == (git(tmp_path, "rev-parse", "HEAD"), False)
    (tmp_path / "helpers.py").write_text("A = 2\n")
    assert collected().dirty


# -- one file outside of git -----------------------------------------------------------------------


def test_of_a_single_file_what_it_imports_and_names_is_shipped(tmp_path: Path) -> None:
    mine = """
import helpers, numpy
from nets.wide import Net
from plain.deep import x
import importlib
from pathlib import Path
HERE = Path(__file__).parent
A = HERE / "./weights.npy"
B = HERE / "tables" / "b.csv"
C = "/etc/passwd"
D = "../outside.txt"
class T: ...
"""
    write(
        tmp_path / "home",
        *("mine.py", "helpers.py", "second.py", "third.py", "notes.txt", "unrelated.py"),
        *("nets/__init__.py", "nets/wide.py", "nets/other.py", "nets/sizes.json"),
        *("plain/deep.py", "plain/gigabytes.py", "weights.npy", "tables/b.csv", "tables/c.csv"),
        *("search.toml", ".ssh/id", "nets/__pycache__/a.pyc"),
        mine=mine,
        helpers="def f():\n    from second import x\n",
        second="import third\nNAME = 'helpers.py'\n",
        search=SEARCH,
    )
    write(tmp_path, "outside.txt")
    code = collect("home/mine.py:T", tmp_path)
    assert names(code) == sorted(
        [
            *("mine.py", "helpers.py", "second.py", "third.py", "plain/deep.py"),
            *("nets/__init__.py", "nets/wide.py", "nets/other.py", "nets/sizes.json"),
            *("weights.npy", "tables/b.csv"),
        ]
    )
    assert (code.module, code.commit, code.dirty, code.left_out) == ("mine", None, None, ())


def test_a_home_folder_with_gigabytes_ships_what_the_task_needs(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", "notes.txt", mine="DATA = 'train.npy'\nclass T: ...\n")
    with (tmp_path / "train.npy").open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    code = collect("mine.py:T", tmp_path)
    assert names(code) == ["mine.py"] and code.left_out == ("train.npy",)


# -- a package, and a checkout of git --------------------------------------------------------------


def test_a_package_is_shipped_as_a_whole(tmp_path: Path) -> None:
    write(
        tmp_path,
        *("pkg/__init__.py", "pkg/a/__init__.py", "pkg/a/mine.py", "pkg/data/x.csv", "beside.py"),
        *("pkg/.hidden/x", "pkg/__pycache__/x.pyc", "pkg/env/pyvenv.cfg", "pkg/env/lib.py"),
    )
    code = collect("pkg/a/mine.py:T", tmp_path)
    assert code.module == "pkg.a.mine"
    assert names(code) == [
        "pkg/__init__.py",
        "pkg/a/__init__.py",
        "pkg/a/mine.py",
        "pkg/data/x.csv",
    ]
    assert collect("pkg.a.mine:T", tmp_path).digest == code.digest
    assert collect("pkg:T", tmp_path).module == "pkg"
    wider = collect("pkg/a/mine.py:T", tmp_path, ["pkg/a", "beside.py"])
    assert names(wider) == ["beside.py", "pkg/__init__.py", "pkg/a/__init__.py", "pkg/a/mine.py"]


def test_in_git_the_folder_is_shipped_without_what_git_ignores(tmp_path: Path) -> None:
    home = write(
        tmp_path / "repository",
        *("tasks/mine.py", "tasks/dead.py", "tasks/sub/data.csv", "tasks/fresh.py"),
        *("tasks/ignored.npy", "tasks/search.toml", "tasks/.gitignore", "other.py"),
        *("tasks/checkpoints/a/search.toml", "tasks/checkpoints/a/coarse/trials/r.json"),
        search=SEARCH,
    )
    (home / "tasks" / ".gitignore").write_text("*.npy\n")
    git(home, "init", "-q")
    unborn = collect("tasks/mine.py:T", home, checkpoints=home / "tasks" / "checkpoints")
    assert (unborn.commit, unborn.dirty) == (None, True)
    git(home, "add", "tasks/mine.py", "tasks/dead.py", "tasks/sub", "tasks/.gitignore")
    git(home, "commit", "-qm", "first")
    (home / "tasks" / "dead.py").unlink()
    code = collect("tasks/mine.py:T", home, checkpoints=home / "tasks" / "checkpoints")
    assert names(code) == ["fresh.py", "mine.py", "sub/data.csv"]
    assert (code.commit, code.dirty) == (git(home, "rev-parse", "HEAD"), True)
    git(home, "add", "-A", "tasks/dead.py", "tasks/fresh.py")
    git(home, "commit", "-qm", "second")
    (home / "other.py").write_text("outside of the task's folder\n")
    clean = collect("tasks/mine.py:T", home, checkpoints=home / "tasks" / "checkpoints")
    assert (clean.digest, clean.dirty) == (code.digest, False) and clean.commit != code.commit
    (home / "tasks" / "search.toml").write_text(SEARCH + "# more\n")
    assert not collect("tasks/mine.py:T", home, checkpoints=home / "tasks" / "checkpoints").dirty
    (home / "tasks" / "mine.py").write_text(TASK + "# more\n")
    assert collect("tasks/mine.py:T", home, checkpoints=home / "tasks" / "checkpoints").dirty
    widened = collect("tasks/mine.py:T", home, ["mine.py", "*.npy"])
    assert names(widened) == ["ignored.npy", "mine.py"]


def test_a_task_that_git_ignores_and_a_home_folder_in_git_are_as_outside_of_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = write(tmp_path, "scratch/mine.py", "scratch/x.py", "top.py", ".gitignore")
    (home / ".gitignore").write_text("scratch\n")
    git(home, "init", "-q")
    assert names(collect("scratch/mine.py:T", home)) == ["mine.py"]
    assert names(collect("top.py:T", home)) == ["top.py"]
    write(home, "beside.py")
    os.mkfifo(home / "pipe")
    assert names(collect("top.py:T", home)) == ["beside.py", "top.py"]
    monkeypatch.setenv("HOME", str(home))
    assert names(collect("top.py:T", home)) == ["top.py"]


# -- sizes, names and patterns ---------------------------------------------------------------------


def test_what_is_too_large_is_refused_with_the_file_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "pkg/__init__.py", "pkg/mine.py")
    (tmp_path / "pkg" / "model.pt").write_bytes(bytes(5 << 20))
    with pytest.raises(
        TaskError, match=r"pkg/model\.pt has 5\.0 MiB, and files of up to 1 MiB .*code = \["
    ):
        collect("pkg.mine:T", tmp_path)
    assert names(collect("pkg.mine:T", tmp_path, ["pkg/*.py"])) == [
        "pkg/__init__.py",
        "pkg/mine.py",
    ]
    (tmp_path / "pkg" / "model.pt").unlink()
    monkeypatch.setattr(choose, "MOST_BYTES", 20)
    with pytest.raises(TaskError, match=r"have more than .* MiB together"):
        collect("pkg.mine:T", tmp_path)
    monkeypatch.setattr(choose, "MOST_FILES", 1)
    with pytest.raises(TaskError, match=r"2 files would be shipped, more than 1; code ="):
        collect("pkg.mine:T", tmp_path)
    monkeypatch.setattr(choose, "MOST_LOOKED_AT", 1)
    with pytest.raises(TaskError, match="move the task into a folder of its own"):
        collect("pkg.mine:T", tmp_path)


def test_a_module_called_like_one_of_python_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "numbers.py", "mine.py", "random.py", mine="import random\nclass T: ...\n")
    with pytest.raises(TaskError, match=r"numbers\.py has the name of a module of Python itself"):
        collect("numbers.py:T", tmp_path)
    with pytest.raises(TaskError, match=r"random\.py has the name .*leave it out with code ="):
        collect("mine.py:T", tmp_path)
    assert names(collect("mine.py:T", tmp_path, ["mine.py"])) == ["mine.py"]
    write(tmp_path, "coarsefine.py", "test.py", "my.task.py", ".tmp-1.py")
    with pytest.raises(TaskError, match="has the name of the package that tasks import Data"):
        collect("coarsefine.py:T", tmp_path)
    assert collect("test.py:T", tmp_path).module == "test"
    for odd in ("my.task.py", ".tmp-1.py"):
        with pytest.raises(TaskError, match="a module's name has no dots, so rename the file"):
            collect(f"{odd}:T", tmp_path)


def test_a_folder_called_like_one_of_our_packages_becomes_a_package(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", "common/nets.py", mine="import common.nets\nclass T: ...\n")
    code = collect("mine.py:T", tmp_path)
    assert names(code) == ["common/__init__.py", "common/nets.py", "mine.py"]
    assert code.files["common/__init__.py"].content == b""


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.py", ["a.py", "mine.py"]),
        ("data", ["data/deep/y.csv", "data/x.csv", "mine.py"]),
        ("data/*.csv", ["data/x.csv", "mine.py"]),
        ("data/**/*.csv", ["data/deep/y.csv", "data/x.csv", "mine.py"]),
        ("**/*.py", ["a.py", "mine.py", "pkg/b.py"]),
    ],
)
def test_patterns_choose_what_is_shipped(tmp_path: Path, pattern: str, found: list[str]) -> None:
    write(
        tmp_path,
        *("mine.py", "a.py", "pkg/b.py", "data/x.csv", "data/deep/y.csv", ".hidden/c.py"),
        *("env/pyvenv.cfg", "env/lib/d.py", "search.toml"),
        search=SEARCH,
    )
    assert names(collect("mine.py:T", tmp_path, [pattern])) == found


@pytest.mark.parametrize("pattern", ["nothing", "*.txt", "a**", ".hidden/*"])
def test_a_pattern_that_names_nothing_is_refused(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "mine.py")
    with pytest.raises(TaskError, match=r"code = .*(names no file in|cannot be used)"):
        collect("mine.py:T", tmp_path, [pattern])


# -- the digest ------------------------------------------------------------------------------------


def test_the_digest_is_of_names_and_contents_alone(tmp_path: Path) -> None:
    one = Code("mine", {"mine.py": File(b"1"), "a.py": File(b"2")})
    other = Code("mine", {"a.py": File(b"2"), "mine.py": File(b"1")}, "abc", True)
    assert one.digest == other.digest and len(one.digest) == 64
    for changed in (
        {"mine.py": File(b"1"), "b.py": File(b"2")},
        {"mine.py": File(b"2"), "a.py": File(b"1")},
        {"mine.py": File(b"1")},
        {"mine.py": File(b"1", executable=True), "a.py": File(b"2")},
    ):
        assert Code("mine", changed).digest != one.digest
    write(tmp_path / "a", "mine.py", "helpers.py", mine="import helpers\nclass T: ...\n")
    write(tmp_path / "b", "helpers.py", "mine.py", mine="import helpers\nclass T: ...\n")
    os.utime(tmp_path / "b" / "mine.py", (0, 0))
    assert collect("mine.py:T", tmp_path / "a").digest == collect("b/mine.py:T", tmp_path).digest


def test_code_is_told_in_a_few_words() -> None:
    files = {"m.py": File(bytes(3000))}
    assert Code("m", files).told == "1 file, 2 KiB"
    files["a.py"] = File(b"")
    assert Code("m", files, "ab" * 20, False).told == "2 files, 2 KiB, commit abababababab"
    assert Code("m", files, "ab" * 20, True).told.endswith("commit abababababab and changes")


def test_changes_are_named() -> None:
    before = Code("m", {name: File(b"") for name in ("m.py", "gone.py")}).manifest
    now = Code("m", {"m.py": File(b"1"), "new.py": File(b"")}).manifest
    assert before.changes(now) == ["gone gone.py", "changed m.py", "new new.py"]
    assert before.changes(before) == []
    assert tree.listed([str(n) for n in range(9)]) == "0, 1, 2, 3, 4 and 4 more"


# -- in the folder ---------------------------------------------------------------------------------


def test_versions_lie_beside_each_other(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path, "digits")
    folder.path.mkdir()
    assert store.current(folder) is None
    one = Code("m", {"m.py": File(b"1"), "run.sh": File(b"#!", executable=True)}, "ab" * 20, True)
    two = Code("m", {"m.py": File(b"2"), "pkg/data/x": File(b"\0")})
    for code in (one, two, one):
        store.keep(folder, code)
    assert store.make_first(folder, one.digest) == one.digest
    assert store.make_first(folder, two.digest) == one.digest  # another launch was first
    store.make_current(folder, two.digest)
    assert store.launched_digest(folder) == two.digest
    assert store.read(folder, one.digest) == one and store.read(folder, two.digest) == two
    home = folder.code / one.digest[:16]
    assert os.access(home / "run.sh", os.X_OK) and not os.access(home / "m.py", os.X_OK)
    assert sorted(path.name for path in folder.code.iterdir()) == sorted(
        f"{code.digest[:16]}{end}" for code in (one, two) for end in ("", ".json")
    )


def test_a_damaged_version_is_written_again(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path, "digits")
    folder.path.mkdir()
    code = Code("m", {"m.py": File(b"1"), "a.py": File(b"2")})
    store.keep(folder, code)
    home = folder.code / code.digest[:16]
    for _ in range(2):
        (home / "a.py").unlink()
        with pytest.raises(TaskError, match=r"a\.py: cannot be read .*restore the file"):
            store.read(folder, code.digest)
        home.with_name(f"{home.name}.json").write_text("{half")
        with pytest.raises(CheckpointError, match="damaged"):
            store.read(folder, code.digest)
        store.keep(folder, code)
        assert store.read(folder, code.digest) == code


def test_a_folder_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "final"
    files = {"a": (b"1", False), "b/c": (b"2", True)}
    with monkeypatch.context() as patch:
        patch.setattr(
            durable, "sync_folder", lambda path: (_ for _ in ()).throw(OSError(28, "full"))
        )
        with pytest.raises(CheckpointError, match="the disk is full"):
            durable.write_new_folder(final, files)
    assert not list(tmp_path.iterdir())
    assert durable.write_new_folder(final, files)
    assert not durable.write_new_folder(final, {"other": (b"", False)})
    assert sorted(path.name for path in final.rglob("*")) == ["a", "b", "c"]
    assert list(tmp_path.iterdir()) == [final]
    left = tmp_path / ".tmp-1-a"
    (left / "deep").mkdir(parents=True)
    durable.remove([left, final])  # the janitor's way with what killed launches have left
    assert list(tmp_path.iterdir()) == [final]


def test_where_a_task_is_looked_for(tmp_path: Path) -> None:
    write(tmp_path, "src/pkg/mine.py", "configs/x", ".git/x")
    found = locate("pkg.mine:T", tmp_path / "configs")
    assert (found.root, found.file, found.attribute) == (tmp_path / "src", "pkg/mine.py", "T")
    for odd in ("a\0b.py:T", f"{'x' * 400}.py:T"):
        with pytest.raises(TaskError, match="no path that a file can have"):
            locate(odd, tmp_path)
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(TaskError, match=r"folder\.py: is no ordinary file"):
        locate("folder.py:T", tmp_path)
