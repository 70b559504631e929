"""Reading a JSON file of this program as a validated model."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from common import safe_read
from common.errors import CheckpointError
from common.folder import durable

T = TypeVar("T", bound=BaseModel)


def read_model(model: type[T], path: Path, most_bytes: int, remedy: str) -> T | None:
    """Return the file's content; None if there is no such file.

    Args:
        model: the model that the content must fit.
        path: the file.
        most_bytes: the largest size allowed.
        remedy: what to do if it is damaged, for the message.

    Raises:
        CheckpointError: it is damaged, or cannot be read.
    """
    try:
        return model.model_validate_json(safe_read.read_bytes(path, most_bytes))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise durable.explain_os_error(error, path) from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise CheckpointError(f"{path}: damaged ({problem}); {remedy}") from None
