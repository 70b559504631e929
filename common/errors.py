"""The errors that a user may meet, as a tree.

SearchError
|-- ConfigError       the search file or the command line is wrong   (exit 2)
|-- TaskError         the task cannot be loaded or raised            (exit 1)
|-- CheckpointError   the checkpoint folder cannot be used           (exit 1)
'-- QueueError        Redis cannot be reached or refuses             (exit 4)
    |-- DamagedReplyError   it holds what this program has not written
    |-- NotAllowedError     its user may not do that
    |-- LeaseLost     somebody else holds the trial now
    '-- PutAside      this machine gets no more trials of the search

Every message names the value that is wrong and the remedy; a command prints it alone, without a traceback.
"""

LONGEST = 3000  # characters of a message: a screenful; whose value is longer is shown by its beginning
TAIL = 600  # of these from its end, where the remedy stands


class SearchError(Exception):
    """Base of all errors that are the user's to see; ``exit_code`` is what the command ends with."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        if len(message) > LONGEST:
            left_out = len(message) - LONGEST
            message = f"{message[: LONGEST - TAIL]}... ({left_out:,} characters left out) ...{message[-TAIL:]}"
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


class QueueError(SearchError):
    """Redis cannot be reached, refuses the login, or refuses to write."""

    exit_code = 4


class DamagedReplyError(QueueError):
    """Redis holds something that this program did not write."""


class NotAllowedError(QueueError):
    """Redis does not let this user do what a search needs."""


HOPELESS = (DamagedReplyError, NotAllowedError)  # of these no waiting helps


class LeaseLost(QueueError):
    """The fence (attempt, token) is stale: the trial has been given to another or has ended."""


class PutAside(QueueError):
    """Several trials raised on this machine and not elsewhere, so it gets no more of the search; unless ``for_good``, only for now."""

    def __init__(self, message: str, for_good: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good
