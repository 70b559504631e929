"""Logs in the dashboard: outputs of trials and logs of workers, a part at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.folder.records import SearchFolder, StageFolder
from common.search.trial import WorkerInfo
from master.dashboard.logs import MOST_BYTES
from master.dashboard.watch import _worker
from tests.unit.master.test_serve import ELSEWHERE, OURS, Dashboard, with_records


@pytest.fixture
def page(tmp_path: Path) -> Dashboard:
    return with_records(tmp_path)


def stage_of(page: Dashboard) -> StageFolder:
    return SearchFolder(page.root, "digits").stage("coarse")


def write_output(page: Dashboard, attempt: int, content: bytes) -> Path:
    path = stage_of(page).output_path("coarse-0001", attempt)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_output_of_a_trial_is_followed_to_its_end(page: Dashboard) -> None:
    base = "/api/searches/digits/trials/coarse-0001"
    assert page.client().get(f"{base}/output").status_code == 404
    assert page.get(base)["outputs"] == []
    write_output(page, 1, b"first\n")
    path = write_output(page, 2, b"one\n")
    assert page.get(base)["outputs"] == [1, 2]
    part = page.get(f"{base}/output")
    assert (part["text"], part["attempt"], part["attempts"]) == ("one\n", 2, [1, 2])
    assert part["over"] is False, "attempt 2 has no record yet"
    with path.open("ab") as more:
        more.write(b"two\n")
    part = page.get(f"{base}/output?at={part['end']}&file={part['file']}")
    assert (part["text"], part["begin"], part["over"]) == ("two\n", 4, False)
    stage_of(page).record_path("coarse-0001", 2).touch()
    assert page.get(f"{base}/output?at={part['end']}&file={part['file']}")["over"] is True
    assert page.get(f"{base}/output?attempt=1")["text"] == "first\n"
    missing = page.client().get(f"{base}/output?attempt=7")
    assert missing.status_code == 404 and "has no output of attempt 7" in missing.json()["error"]
    for bad in ("at=-1", "attempt=0", "at=x"):
        assert page.client().get(f"{base}/output?{bad}").status_code == 422


def test_an_answer_has_a_limit(page: Dashboard) -> None:
    write_output(page, 1, b"x" * 99 + b"\n" + b"y" * (3 * MOST_BYTES))
    base = "/api/searches/digits/trials/coarse-0001/output"
    assert len(page.get(base)["text"]) == MOST_BYTES
    part = page.get(f"{base}?at=0")
    assert part["text"].startswith("x") and part["end"] == MOST_BYTES < part["size"]
    assert part["over"] is False, "the rest is still to be read"


def connect(page: Dashboard, log: str, job: str = "") -> None:
    info = WorkerInfo("w-1", "gpu-7", 12, "cpu", log=log, job=job)
    page.watch.workers = (_worker(info, None),)


def worker_log(page: Dashboard, worker: str = "w-1") -> tuple[int, dict]:
    answer = page.client().get("/api/workers/log", params={"worker": worker}, headers=OURS)
    return answer.status_code, answer.json()


def test_the_log_of_a_worker_needs_the_token(page: Dashboard) -> None:
    logs = page.root / "digits" / "logs"
    (logs / "slurm").mkdir(parents=True)
    (logs / "worker-1.log").write_text("hello\n")
    (logs / "slurm" / "17_1.log").write_text("from a job\n")
    (logs / "stayed.json").write_text("{}")
    connect(page, "digits/logs/worker-1.log")
    code, told = worker_log(page)
    assert code == 200 and told["text"] == "hello\n" and told["over"] is False
    paths = ("/api/workers/log?worker=w-1", "/api/searches/digits/logs")
    for path in (*paths, "/api/searches/digits/logs/worker-1.log"):
        assert page.client().get(path).status_code == 401
        assert page.client(address=ELSEWHERE).get(path, headers=OURS).status_code == 200
    listed = page.client().get(paths[1], headers=OURS).json()
    assert {one["name"] for one in listed} == {"worker-1.log", "slurm/17_1.log"}
    job = page.client().get("/api/searches/digits/logs/slurm/17_1.log", headers=OURS)
    assert job.json()["text"] == "from a job\n"


@pytest.mark.parametrize(
    "name", ["stayed.json", "../search.toml", "slurm/../../search.toml", "a/b/c.log", "none.log"]
)
def test_no_other_file_is_a_log(page: Dashboard, name: str) -> None:
    (page.root / "digits" / "logs").mkdir()
    answer = page.client().get(f"/api/searches/digits/logs/{name}", headers=OURS)
    assert answer.status_code in (400, 404) and "name =" not in answer.text


@pytest.mark.parametrize(
    ("log", "job", "message"),
    [
        ("", "", "writes to no file but to a terminal or a pipe (host gpu-7)"),
        ("", "coarsefine-digits-17-1", "try: kubectl logs job/coarsefine-digits-17-1"),
        ("/home/me/w.log", "", "writes to /home/me/w.log on host gpu-7, which is not in the logs"),
        ("other/logs/worker-1.log", "", "which is not in the logs of a search"),
        ("digits/logs/../search.toml", "", "which is not in the logs of a search"),
        ("digits/search.toml", "", "which is not in the logs of a search"),
        ("digits/logs/worker-9.log", "", "the checkpoint folder of this machine does not have"),
    ],
)
def test_a_log_that_is_not_here_is_told_in_words(
    page: Dashboard, log: str, job: str, message: str
) -> None:
    connect(page, log, job)
    code, told = worker_log(page)
    assert code == 404 and message in told["error"]


def test_an_unknown_worker_is_told(page: Dashboard) -> None:
    code, told = worker_log(page, "<b>nobody")
    assert code == 404 and "no such worker" in told["error"]
