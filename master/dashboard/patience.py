"""Time limit on each wait for an HTTP client.

It ends connections of clients that send half a request, send none, or do not read the answer.
"""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds from the last answer to a complete request, and seconds in which some more of an answer
# must be read.
PATIENCE_S = 20.0
# Twice what the most open pages hold, and half of the files that a process may usually open.
MOST_CONNECTIONS = 500


class Impatient(H11Protocol):
    """uvicorn's HTTP protocol with a time limit on each wait for the client.

    When too many connections are open, the one that has waited longest is ended. The time that the
    application takes to answer does not count, nor does a stream of events without an event.
    """

    patience_s = PATIENCE_S
    most = MOST_CONNECTIONS
    _due: asyncio.TimerHandle | None = None  # timer of the wait; None: not waiting for the client
    _unread = 0  # bytes that the client had not read when the wait began

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit of this connection.

        If there are too many connections, end the one that has waited longest.
        """
        super().connection_made(transport)
        self._look()
        if len(self.connections) > self.most:
            waiting = [
                other for other in cast(set[Impatient], self.connections) if other._due is not None
            ]
            min(waiting, key=lambda other: other._due.when() if other._due else 0.0)._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the time limit."""
        super().connection_lost(exc)
        self._forget()

    def data_received(self, data: bytes) -> None:
        """Receive a part of a request. This does not restart the time limit."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Start the time limit for the next request."""
        super().on_response_complete()
        self._forget()
        self._look()

    def pause_writing(self) -> None:
        """Start the time limit: the client reads more slowly than the application writes."""
        super().pause_writing()
        self._look()

    def resume_writing(self) -> None:
        """End the wait: the client has read nearly all."""
        super().resume_writing()
        self._look()

    def _look(self) -> None:
        """Start the time limit, let it run on, or cancel it, whichever fits the state."""
        if not self._is_its_turn():
            self._forget()
        elif self._due is None:
            self._unread = self.transport.get_write_buffer_size()
            self._due = self.loop.call_later(self.patience_s, self._judge)

    def _is_its_turn(self) -> bool:
        asks = self.cycle is None or self.cycle.response_complete or self.cycle.more_body
        return self in self.connections and (asks or self.flow.write_paused)

    def _judge(self) -> None:
        """End the connection, or give more time to a client that has read something since."""
        if self.transport.get_write_buffer_size() < self._unread:
            self._forget()
            self._look()
        else:
            self._end()

    def _end(self) -> None:
        self._forget()
        self.transport.abort()  # close() would wait until the client reads the rest

    def _forget(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
