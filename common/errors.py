"""The errors that a user may meet.

SearchError
|-- ConfigError       the search file or the command line is wrong   (exit 2)
|-- TaskError         the task cannot be loaded or raised            (exit 1)
|-- CheckpointError   the checkpoint folder cannot be used           (exit 1)
|   |-- DamagedFileError    a file in it is damaged
|   '-- ProtocolError       another version of this program launched the search
'-- QueueError        Redis cannot be reached or refuses             (exit 4)
    |-- DamagedReplyError   it holds values that this program did not write
    |-- NotAllowedError     its user lacks a right
    '-- PutAside            this machine gets no more trials of the search

Every message names the wrong value and the remedy. A command prints it alone, without a traceback.
"""

# Characters of a message: a screenful. The middle of a longer one is left out.
LONGEST = 3000
TAIL = 600  # of these from the end of the message, where the remedy is


class SearchError(Exception):
    """Base of all errors that users see; ``exit_code`` is the exit code of the command."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        if len(message) > LONGEST:
            left_out = len(message) - LONGEST
            message = (
                f"{message[: LONGEST - TAIL]}... ({left_out:,} characters left out) "
                f"...{message[-TAIL:]}"
            )
        super().__init__(message)


class ConfigError(SearchError):
    """A search file, a hyperparameter or a command-line value is wrong."""

    exit_code = 2


class TaskError(SearchError):
    """A task cannot be found or loaded, or its own code raised."""


class CheckpointError(SearchError):
    """The checkpoint folder cannot be read or written, or a file in it is damaged."""


class DamagedFileError(CheckpointError):
    """A file in the checkpoint folder is not what this program writes, however often it is read."""


class ProtocolError(CheckpointError):
    """The search was launched by a program that speaks another protocol.

    ``search_id`` is the search's id and ``found`` its protocol.
    """

    def __init__(self, message: str, search_id: str, found: int) -> None:
        super().__init__(message)
        self.search_id = search_id
        self.found = found


class QueueError(SearchError):
    """Redis cannot be reached, refuses the login, or refuses to write."""

    exit_code = 4


class DamagedReplyError(QueueError):
    """Redis holds something that this program did not write."""


class NotAllowedError(QueueError):
    """Redis does not let this user do what a search needs."""


HOPELESS = (DamagedReplyError, NotAllowedError)  # waiting does not help


class PutAside(QueueError):
    """Several trials raised on this machine and not elsewhere, so it gets no more of the search.

    Unless ``for_good``, this holds only for now.
    """

    def __init__(self, message: str, for_good: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good
