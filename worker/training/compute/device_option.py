"""The value of ``--device``."""

from __future__ import annotations

from common.errors import ConfigError


def split_devices(wanted: str) -> list[int]:
    """Return the numbers in ``cuda:N`` or ``cuda:0,cuda:1``.

    Raises:
        ConfigError: one is no device.
    """
    numbers = []
    for name in wanted.split(","):
        kind, _, number = name.strip().partition(":")
        if kind != "cuda" or not (number.isascii() and number.isdigit()):
            raise ConfigError(
                f"--device {wanted}: not a device; use auto, cpu, cuda:N, all, or several such as "
                "cuda:0,cuda:1"
            )
        numbers.append(int(number))
    return numbers
