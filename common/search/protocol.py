"""The protocol of master and worker: keys, scripts and values in Redis, and files in a folder.

Raise ``PROTOCOL`` by one in each change after which an older program would misread what the new one
writes, or the other way round. An optional field needs no new protocol. What all searches of a
Redis share (``{cf}:searches``, ``{cf}:workers`` and similar keys) is read by programs of every
protocol: new fields may be added there, and nothing else may change.
"""

from __future__ import annotations

PROTOCOL = 2
FIRST = 1  # the protocol of a search or a worker that states none
REMEDY = "install the same version of coarsefine"


def tell_apart(who: str, search: str, found: int) -> str:
    """Return the message about a search that another protocol launched.

    Args:
        who: the program that reads it, such as "this worker".
        search: the search's name.
        found: the protocol that launched it.
    """
    return (
        f"{who} speaks protocol {PROTOCOL}, search {search!r} was launched by protocol {found}: "
        f"{REMEDY}"
    )
