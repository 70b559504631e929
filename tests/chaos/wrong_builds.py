"""Builds that are wrong on purpose, made by changing a child: the harness has to see each of them."""

from __future__ import annotations


def apply(name: str) -> None:
    raise ValueError(name)
