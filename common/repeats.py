"""Messages that would be printed many times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

MOST_NAMED = 5


class Repeats:
    """Prints the first message of a kind, and then the 10th, the 100th and so on.

    Args:
        say: prints a message.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._counts: Counter[Hashable] = Counter()

    def tell(self, kind: Hashable, message: str) -> None:
        """Print ``message`` if it is the first of its kind, or a power of ten of them came."""
        self._counts[kind] += 1
        n = self._counts[kind]
        if n == 1:
            self._say(message)
        elif n == 10 ** (len(str(n)) - 1):
            self._say(f"{message} ({n} messages of this kind so far)")


def say_once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that prints a message, unless it has printed the same one before."""
    said: set[str] = set()

    def once(message: str) -> None:
        if message not in said:
            said.add(message)
            say(message)

    return once


def list_few(names: Sequence[str]) -> str:
    """Return names as text: the first five, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
