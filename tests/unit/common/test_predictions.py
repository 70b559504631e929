from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multinomial

from common.errors import CheckpointError
from common.folder.checkpoint_name import CheckpointName
from common.folder.ledger import NAME, count, note
from common.folder.predictions import pack, read
from common.folder.records import SearchFolder, StageFolder
from common.intervals import compute_paired_difference

RANDOM = np.random.default_rng(1)


def arrays(n: int = 6, m: int = 4, classes: int = 3) -> dict[str, np.ndarray]:
    return {
        "val": RANDOM.dirichlet(np.ones(classes), n).astype(np.float32),
        "val_targets": RANDOM.integers(0, classes, n),
        "test": RANDOM.dirichlet(np.ones(classes), m).astype(np.float32),
        "test_targets": RANDOM.integers(0, classes, m),
    }  # fmt: skip


def saved(path: Path, content: dict[str, np.ndarray]) -> Path:
    """As somebody else might have written it."""
    np.savez(path, **content)
    return path


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path, given_arrays = tmp_path / "a.npz", arrays()
    path.write_bytes(pack(given_arrays))
    found = read(path)
    assert found.test is not None
    np.testing.assert_array_equal(found.val.probabilities, given_arrays["val"])
    np.testing.assert_array_equal(found.val.targets, given_arrays["val_targets"])
    np.testing.assert_array_equal(found.test.probabilities, given_arrays["test"])
    np.testing.assert_array_equal(found.test.targets, given_arrays["test_targets"])


def test_without_a_test_part(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(pack(arrays() | {"test": np.empty((0, 0)), "test_targets": np.empty(0)}))
    assert read(path).test is None and len(read(path).val) == 6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"val": np.full((6, 3), np.nan, np.float32)}, "no probabilities"),
        ({"val": np.ones((6, 3), np.float32)}, "no probabilities"),
        ({"val": np.ones((5, 3), np.float32) / 3}, "are needed"),
        ({"val_targets": np.full(6, 3)}, "no classes of 0 to 2"),
        ({"val": np.ones((6, 3)) / 3}, "float32 and int64 are needed"),
        (
            {"test": np.ones((4, 2), np.float32) / 2, "test_targets": np.zeros(4, np.int64)},
            "3 classes in val and 2 in test",
        ),
        ({"val": np.array([{}] * 6, dtype=object)}, "allow_pickle"),
    ],
)
def test_what_are_no_predictions_is_refused_with_the_remedy(
    tmp_path: Path, changes: dict[str, np.ndarray], told: str
) -> None:
    path = saved(tmp_path / "a.npz", arrays() | changes)
    with pytest.raises(CheckpointError, match=told) as refusal:
        read(path)
    assert "a.npz: damaged predictions" in str(refusal.value) and "remove the file" in str(
        refusal.value
    )


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 0.999), how=st.sampled_from(["cut", "flip", "zero"]))
def test_a_damaged_file_is_never_anything_but_a_message(
    tmp_path_factory: pytest.TempPathFactory, position: float, how: str
) -> None:
    content = bytearray(pack(arrays()))
    place = int(position * len(content))
    if how == "cut":
        content = content[:place]
    else:
        content[place] = content[place] ^ 0xFF if how == "flip" else 0
    path = tmp_path_factory.mktemp("damaged") / "a.npz"
    path.write_bytes(content)
    try:
        read(path)  # a byte that nobody reads, such as a date
    except CheckpointError as error:
        assert str(path) in str(error)


def test_what_would_unpack_to_too_much_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.folder.predictions.MAX_BYTES", 1 << 20)
    path = tmp_path / "a.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("val.npy", "w") as file,
    ):
        file.write(bytes(2 << 20))
    assert path.stat().st_size < 1 << 16
    with pytest.raises(CheckpointError, match="bytes unpacked"):
        read(path)


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="damaged predictions"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.npz")


# -- names -----------------------------------------------------------------------------------------


def test_predictions_are_named_as_their_weights() -> None:
    name = CheckpointName(-0.25, "coarse-0042", 3, 2, "my_metric")
    assert name.predictions == "my_metric=-0.2500-trial=coarse-0042-epoch=003-try=2.npz"
    assert CheckpointName.parse_predictions(name.predictions) == name
    assert (
        CheckpointName.parse_predictions(str(name)) is None
        and CheckpointName.parse(name.predictions) is None
    )


def test_what_goes_with_weights_and_what_was_left_behind(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    folder.make()
    folder.snapshots.mkdir()
    kept, gone = CheckpointName(0.9, "coarse-0001", 4, 1), CheckpointName(0.8, "coarse-0002", 4, 1)
    over_time = [CheckpointName(0.5 + epoch / 10, "coarse-0001", epoch, 1) for epoch in (2, 4)]
    other_try = CheckpointName(0.7, "coarse-0001", 2, 2)
    for path in (
        folder.path / str(kept),
        folder.path / kept.predictions,
        folder.path / gone.predictions,
    ):
        path.touch()
    for name in [*over_time, other_try]:
        (folder.snapshots / str(name)).touch()
        (folder.snapshots / name.predictions).touch()
    folder.pictures.mkdir()
    drawn = folder.pictures / "coarse-0001-try=1.png"
    for picture in (drawn, folder.pictures / "coarse-0002-try=1.png"):
        picture.touch()
    assert folder.checkpoints() == [kept]
    assert folder.snapshots_of("coarse-0001", 1) == over_time
    assert set(folder.belongings(kept)) == {
        folder.path / str(kept), folder.path / kept.predictions, drawn,
        *(folder.snapshots / file for name in over_time for file in (str(name), name.predictions)),
    }  # fmt: skip
    assert set(folder.find_left_behind()) == {
        folder.path / gone.predictions, folder.snapshots / str(other_try),
        folder.snapshots / other_try.predictions,
        folder.pictures / "coarse-0002-try=1.png",
    }  # fmt: skip


# -- looks and intervals ---------------------------------------------------------------------------


def test_each_look_is_counted_and_told(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path, "digits")
    folder.path.mkdir()
    assert count(folder) == 0
    assert note(folder, [{"checkpoint": "a"}]).told == "look 1 at the test part of search 'digits'"
    with (folder.path / NAME).open("a") as file:
        file.write('{"checkpoint": "b", "a look that a power')
    told = note(folder, [{"checkpoint": "c"}, {"checkpoint": "d"}]).told
    assert told == "looks 3 to 4 at the test part of search 'digits'; only the first was unbiased"
    assert count(folder) == 4


@pytest.mark.parametrize(("p", "q"), [(0.003, 0.003), (0.01, 0.005), (0.03, 0.005), (0.01, 0.0005)])
@pytest.mark.parametrize("n", [100, 360, 1000])
def test_the_paired_interval_covers_the_true_difference_as_often_as_it_says(
    n: int, p: float, q: float
) -> None:
    covered = probability = 0.0
    for only_first in range(60):
        for only_second in range(30):
            low, high = compute_paired_difference(only_first, only_second, n)
            share = multinomial.pmf(
                [only_first, only_second, n - only_first - only_second], n, [p, q, 1 - p - q]
            )
            probability += share
            covered += share * (low <= p - q <= high)
    assert probability > 0.999 and covered > 0.945


def test_the_paired_interval_against_figures_worked_out_by_hand() -> None:
    low, high = compute_paired_difference(
        8, 2, 100
    )  # 6 / 102 and 1.96 sqrt(11 - 36 / 102) / 102 either way
    assert (low, high) == (pytest.approx(-0.0039, abs=1e-4), pytest.approx(0.1215, abs=1e-4))
    assert compute_paired_difference(2, 8, 100) == (-high, -low)
    assert compute_paired_difference(3, 0, 3)[1] == 1.0
    with pytest.raises(ValueError, match="of 3"):
        compute_paired_difference(3, 1, 3)
