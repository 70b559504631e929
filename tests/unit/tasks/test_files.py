import errno
import hashlib
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from common.errors import TaskError
from worker.tasks import files
from worker.tasks.cifar import CIFAR10
from worker.tasks.files import DataFile, DataSet, find
from worker.tasks.mnist import FASHION_MNIST, MNIST

CONTENT = {"images.gz": b"some images" * 1000, "labels.gz": b"some labels"}
NOWHERE = "http://127.0.0.1:9"  # the port that discards, where nothing listens


def data_set(*addresses):
    published = tuple(
        DataFile(name, len(content), hashlib.sha256(content).hexdigest())
        for name, content in CONTENT.items()
    )
    return DataSet("Toys", ("toys", "Toys/raw"), published, addresses or (NOWHERE,))


@pytest.fixture
def home(tmp_path):
    """The address of a server that has the files, and their folder there."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_missing_is_downloaded_once_and_only_then(home, tmp_path):
    address, folder = home
    said = []
    paths = find(data_set(address), tmp_path / "data", said.append)
    assert paths == [tmp_path / "data" / "toys" / name for name in CONTENT]
    assert [path.read_bytes() for path in paths] == list(CONTENT.values())
    assert said == [f"Toys: downloading {address}/{name} (0.0 MB)" for name in CONTENT]
    for name in CONTENT:
        (folder / name).unlink()
    assert find(data_set(address), tmp_path / "data", said.append) == paths and len(said) == 2


def test_files_are_found_where_others_put_them_and_only_the_rest_is_downloaded(home, tmp_path):
    (tmp_path / "Toys" / "raw").mkdir(parents=True)
    (tmp_path / "Toys" / "raw" / "images.gz").write_bytes(CONTENT["images.gz"])
    said = []
    paths = find(data_set(home[0]), tmp_path, said.append)
    assert (
        paths == [tmp_path / "Toys" / "raw" / "images.gz", tmp_path / "toys" / "labels.gz"]
        and len(said) == 1
    )


def test_workers_that_start_together_download_once(home, tmp_path):
    said = []
    threads = [
        threading.Thread(target=find, args=(data_set(home[0]), tmp_path, said.append))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 2


def test_the_next_address_is_asked_where_one_is_away_or_gives_something_else(home, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "images.gz").write_bytes(b"Please log in.")
    said = []
    paths = find(data_set(NOWHERE, wrong.as_uri(), home[0]), tmp_path / "data", said.append)
    assert [path.read_bytes() for path in paths] == list(CONTENT.values()) and len(said) == 6


def test_without_a_network_the_message_says_what_to_put_where(tmp_path):
    with pytest.raises(TaskError) as refusal:
        find(data_set(), tmp_path / "data", lambda message: None)
    first, *lines = str(refusal.value).splitlines()
    assert first.startswith(
        f"Toys: 2 files are missing and could not be downloaded ({NOWHERE}/images.gz: URLError: "
    )
    assert (
        f"Put into {tmp_path}/data/toys (or {tmp_path}/data/Toys/raw), or name another "
        "data folder with --data-dir:"
    ) in first
    assert lines == [
        f"  {name}  {len(content)} bytes  sha256 {hashlib.sha256(content).hexdigest()}"
        for name, content in CONTENT.items()
    ]


def test_what_was_downloaded_and_is_something_else_never_appears(home, tmp_path):
    address, folder = home
    for bad in (
        b"another",
        CONTENT["images.gz"][:-1],
        CONTENT["images.gz"] + b"more",
        CONTENT["images.gz"][:-1] + b"!",
    ):
        (folder / "images.gz").write_bytes(bad)
        with pytest.raises(
            TaskError,
            match=r"images\.gz: answered with another file \(\d+ bytes, sha256 [0-9a-f]{64}\)",
        ):
            find(data_set(address), tmp_path / "data", lambda message: None)
        assert {path.name for path in (tmp_path / "data" / "toys").iterdir()} <= {".download.lock"}
    (folder / "images.gz").unlink()
    with pytest.raises(TaskError, match=r"images\.gz: HTTPError: "):
        find(data_set(address), tmp_path / "data", lambda message: None)


def test_a_download_that_takes_too_long_is_given_up(home, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DOWNLOAD_S", 0.0)
    with pytest.raises(TaskError, match=r"images\.gz: too slow: 0 of 11000 bytes in 0 s"):
        find(data_set(home[0]), tmp_path, lambda message: None)


def test_what_killed_downloads_left_goes_with_the_next(home, tmp_path):
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / f"{files.PARTIAL_PREFIX}abc").write_bytes(b"half")
    find(data_set(home[0]), tmp_path, lambda message: None)
    assert {path.name for path in (tmp_path / "toys").iterdir()} == {*CONTENT, ".download.lock"}


def test_a_data_folder_without_space_is_told_with_the_remedy(home, tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(
        TaskError,
        match=(
            "the folder cannot be written: the disk is full; free some space and run the "
            "same command again"
        ),
    ):
        find(data_set(home[0]), tmp_path, lambda message: None)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(TaskError, match="the folder cannot be written: Not a directory"):
        find(data_set(), tmp_path / "data", lambda message: None)


def test_a_file_put_there_by_hand_may_differ_but_that_is_told(tmp_path):
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "images.gz").write_bytes(CONTENT["images.gz"])
    (tmp_path / "toys" / "labels.gz").write_bytes(b"Some labels")
    said = []
    assert len(find(data_set(), tmp_path, said.append)) == 2
    (warning,) = said
    assert warning.startswith(
        f"warning: {tmp_path}/toys/labels.gz: not the published file (sha256 "
    )
    (tmp_path / "toys" / "labels.gz").write_bytes(b"fewer")
    find(data_set(), tmp_path, said.append)
    assert "(5 bytes instead of 11)" in said[1]


def test_the_published_files_are_told_by_name_size_and_checksum():
    for published in (MNIST, FASHION_MNIST, CIFAR10):
        assert all(
            address.startswith("http") and not address.endswith("/")
            for address in published.addresses
        )
        assert all(
            file.size_bytes > 0 and len(bytes.fromhex(file.sha256)) == 32
            for file in published.files
        )
    assert (
        len(
            {
                file.sha256
                for published in (MNIST, FASHION_MNIST, CIFAR10)
                for file in published.files
            }
        )
        == 9
    )
