from __future__ import annotations

from common.repeats import Repeats, list_few, say_once


def test_a_kind_is_told_once_and_then_counted() -> None:
    told: list[str] = []
    repeats = Repeats(told.append)
    for n in range(150):
        repeats.tell("state", f"trial {n}: no state")
        if n == 0:
            repeats.tell("picture", "trial 0: no picture")
    assert told == [
        "trial 0: no state",
        "trial 0: no picture",
        "trial 9: no state (10 messages of this kind so far)",
        "trial 99: no state (100 messages of this kind so far)",
    ]


def test_the_same_message_is_printed_once() -> None:
    told: list[str] = []
    say = say_once(told.append)
    for message in ("a", "b", "a"):
        say(message)
    assert told == ["a", "b"]


def test_of_many_names_a_few_are_listed() -> None:
    assert list_few(["a", "b"]) == "a, b"
    assert list_few([str(n) for n in range(8)]) == "0, 1, 2, 3, 4 and 3 more"
