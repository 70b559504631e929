"""`master ensemble`: build ensembles of trained models and print them.

It reads the folder alone and needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.console import draw_columns
from common.errors import ConfigError
from common.folder import ledger
from common.folder.chosen import Chosen
from common.folder.predictions import Part
from common.folder.records import SearchFolder
from common.search.search_file import Search
from master.ensembles.ensemble import Ensemble, Gain, Score, gain, greedy, of_all, score
from master.ensembles.pool import Pool, pool
from master.report.reading import strict_json


@dataclass(frozen=True)
class Request:
    """The options of the command line."""

    kinds: Sequence[str] = ("top",)
    stage: str | None = None
    top: int | None = None
    test: bool = False


@dataclass(frozen=True)
class Row:
    """The scores of one model or ensemble."""

    val: Score
    test: Score | None


@dataclass(frozen=True)
class Result:
    """One ensemble with everything that is printed about it."""

    ensemble: Ensemble
    pool: Pool
    rows: Sequence[Row]  # one per member
    whole: Row
    best: Row
    val_gain: Gain
    test_gain: Gain | None


def ensemble(chosen: Chosen, request: Request, as_json: bool, warn: Callable[[str], None]) -> str:
    """Return the ensembles that were requested, as text.

    With ``test``, each accuracy on the test part is first noted in the ledger.

    Args:
        chosen: the search.
        request: the options.
        as_json: whether to return JSON.
        warn: called with a message about each damaged file of predictions.

    Raises:
        ConfigError: no such stage, or no stage has what is requested.
        CheckpointError: there are no predictions.
    """
    search, folder = chosen.search, chosen.folder
    pools = {kind: pool(kind, chosen, request.stage, request.top, warn) for kind in request.kinds}
    results = [_result(kind, found, search, request.test) for kind, found in pools.items()]
    looks = _count(folder, results) if request.test else None
    if as_json:
        return strict_json(
            {
                "search": search.name,
                "looks": looks and [looks.first, looks.last],
                "ensembles": [_plain(r) for r in results],
            }
        )
    parts = [_text(result) for result in results]
    return "\n\n".join(parts + ([looks.told] if looks else []))


def _result(kind: str, pool: Pool, search: Search, test: bool) -> Result:
    by_loss = search.metric == "val_loss"
    made = greedy(pool.members, by_loss) if kind == "greedy" else of_all(kind, pool.members)
    val, whole_test = made.val, made.test
    if test and whole_test is None:
        raise ConfigError(
            "--test: the task has no test part, so there is nothing to look at; leave --test out"
        )
    best = made.best.predictions
    return Result(
        made,
        pool,
        [_row(m.predictions.val, m.predictions.test if test else None) for m in made.members],
        _row(val, whole_test if test else None),
        _row(best.val, best.test if test else None),
        gain(val, best.val),
        gain(whole_test, best.test)
        if test and whole_test is not None and best.test is not None
        else None,
    )


def _row(val: Part, test: Part | None) -> Row:
    return Row(score(val), score(test) if test else None)


def _count(folder: SearchFolder, results: Sequence[Result]) -> ledger.Looks:
    """Note each accuracy on the test part that will be shown.

    There is one for each model and one for each ensemble.
    """
    entries: dict[str, Mapping[str, object]] = {}
    for result in results:
        made = result.ensemble
        for member, row in [*zip(made.members, result.rows, strict=True), (made.best, result.best)]:
            assert row.test is not None
            entries[member.checkpoint] = {
                "checkpoint": member.checkpoint,
                "correct": row.test.correct,
                "n": row.test.n,
            }
    for result in results:
        whole, made = result.whole.test, result.ensemble
        assert whole is not None
        of = {
            member.checkpoint: weight
            for member, weight in zip(made.members, made.weights, strict=True)
        }
        entries[f"{made.kind} ensemble"] = {"ensemble": of, "correct": whole.correct, "n": whole.n}
    return ledger.note(folder, list(entries.values()))


def _text(result: Result) -> str:
    made, pool = result.ensemble, result.pool
    tested, weighted = (
        result.whole.test is not None,
        len(set(made.weights)) > 1 or made.kind == "greedy",
    )
    headers = [
        "model",
        "epoch",
        *(["weight"] if weighted else []),
        "val_acc",
        "val_log_loss",
        *(["test_acc", "test_log_loss"] if tested else []),
    ]
    rows = [
        (member.trial, str(member.epoch), *([str(weight)] if weighted else []), *_cells(row))
        for member, weight, row in zip(made.members, made.weights, result.rows, strict=True)
    ]
    total = [str(sum(made.weights))] if weighted else []
    rows.append((f"ensemble of {len(made.members)}", "", *total, *_cells(result.whole)))
    columns = dict(zip(headers, zip(*rows, strict=True), strict=True))
    spare = ("test_log_loss", "val_log_loss", "epoch")
    lines = [
        f"{made.kind}, stage {pool.stages}",
        draw_columns(columns, spare, right=headers[1:]),
        _gain_line(f"validation{_describe_flattery(pool)}", result.val_gain, made),
    ]
    if result.test_gain is not None:
        lines.append(_gain_line("test", result.test_gain, made))
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    return [
        text
        for s in (row.val, row.test)
        if s is not None
        for text in (f"{s.accuracy:.4f}", f"{s.log_loss:.4f}")
    ]


def _describe_flattery(pool: Pool) -> str:
    """Return how many models the members were selected from, since that selection flatters them."""
    return f", selected over {pool.selected_over} {pool.unit}" if pool.selected_over > 1 else ""


def _gain_line(part: str, found: Gain, made: Ensemble) -> str:
    best = (
        f"{made.best.trial} epoch {made.best.epoch}"
        if made.kind == "snapshots"
        else made.best.trial
    )
    interval = f"95 % interval {found.low:+.4f} to {found.high:+.4f}, paired on {found.n} examples"
    return f"on {part}: {found.value:+.4f} against the best single model, {best} ({interval})"


def _plain(result: Result) -> dict[str, Any]:
    made = result.ensemble
    members = [
        {
            "trial": m.trial,
            "checkpoint": m.checkpoint,
            "epoch": m.epoch,
            "weight": weight,
            **_scores(row),
        }
        for m, weight, row in zip(made.members, made.weights, result.rows, strict=True)
    ]
    return {
        "kind": made.kind,
        "stage": result.pool.stages,
        "selected_over": result.pool.selected_over,
        "members": members,
        "ensemble": _scores(result.whole),
        "best": {
            "trial": made.best.trial,
            "checkpoint": made.best.checkpoint,
            "epoch": made.best.epoch,
            **_scores(result.best),
        },
        "gain": {"val": _plain_gain(result.val_gain), "test": _plain_gain(result.test_gain)},
    }


def _scores(row: Row) -> dict[str, Any]:
    return {
        name: None
        if s is None
        else {"accuracy": s.accuracy, "correct": s.correct, "n": s.n, "log_loss": s.log_loss}
        for name, s in (("val", row.val), ("test", row.test))
    }


def _plain_gain(found: Gain | None) -> dict[str, float] | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high}
