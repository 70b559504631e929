"""The ranges of the next stage.

An end of a range moves out where the best trials press against it. No range narrows: plain draws
stay global as a protection against a wrong turn, and the samplers narrow by themselves. An end may
move again at every launch.

Source: CS231n notes, "Hyperparameter optimization": "Careful with best values on border".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.search.parameters import Choice, Fixed, Normal, Parameter, Ranged
from common.search.space import Space
from master.strategy.borders import Border, borders_of
from master.strategy.freezing import Seen, rank_seen
from master.strategy.scales import EXTREME, LARGEST, Side, format_range, round_end

# An end moves by this share of the first range, measured in its sampling scale.
EXTENT = 0.5
# An end moves by at most this share of the first range in all. To search beyond that, the user has
# to edit the range.
FARTHEST = 1.0
SLACK = 1e-9  # share of the first range that rounding may add to a move


@dataclass(frozen=True)
class Proposal:
    """The ranges proposed for the next stage, with a reason for each sampled hyperparameter."""

    space: Space
    notes: dict[str, str]


def propose(first: Space, box: Space, seen: Sequence[Seen]) -> Proposal:
    """Return the ranges of the next stage.

    Args:
        first: the space of the search file; moves are measured in its ranges.
        box: the ranges of the previous stage.
        seen: the trials of all stages so far, in any order.
    """
    top = [one.hyperparameters for one in rank_seen(seen)]
    found = {border.hyperparameter: border for border in borders_of(top, box)}
    parameters: dict[str, Parameter] = {}
    notes: dict[str, str] = {}
    for name, parameter in box.parameters.items():
        if isinstance(parameter, Fixed):
            parameters[name] = parameter
        elif isinstance(parameter, Choice):
            parameters[name], notes[name] = parameter, "kept: no option is dropped"
        elif isinstance(parameter, Normal):
            parameters[name], notes[name] = parameter, "kept: a distribution has no border"
        elif name not in found:
            parameters[name], notes[name] = parameter, _inside(len(top))
        else:
            parameters[name], notes[name] = _move(first, name, parameter, found[name])
    return Proposal(Space(parameters), notes)


def _inside(n: int) -> str:
    return (
        "kept: the best value lies on no border" if n else "kept: no trial has learned anything yet"
    )


def _move(first: Space, name: str, parameter: Ranged, border: Border) -> tuple[Ranged, str]:
    """Return the range and the reason: its end at the border is moved out, or kept."""
    end = parameter.low if border.side == "low" else parameter.high
    where = (
        f"best value on the {border.side} border, support {border.support} of the best {border.of}"
    )
    if not border.moves:
        return parameter, f"kept: {where}: too weak to move the range"
    moved = _end(first, name, parameter, border.side)
    if moved is None:
        return parameter, f"kept: {where}: {end:.6g} is as far as that end may go"
    low, high = (moved, parameter.high) if border.side == "low" else (parameter.low, moved)
    note = (
        f"{border.side} end moved from {end:.6g} to {moved:.6g}: {where}; the range was "
        f"{format_range(parameter.low, parameter.high)}"
    )
    return parameter.move_to(low, high), note


def _end(first: Space, name: str, parameter: Ranged, side: Side) -> float | None:
    """Return the new value of the end, or None if it may not move further.

    The end moves by ``EXTENT``, or less where that would pass ``FARTHEST`` or the limits of the
    hyperparameter. The end of a range of whole numbers or steps moves by at least one of them,
    because ``EXTENT`` of a short range can be less than that.
    """
    own, (start, stop) = first.ranged[name], first.ranged[name].scaled
    width, pitch = stop - start, parameter.pitch
    half = pitch / 2
    least, most = first.limits(name)
    if side == "low":
        farthest = max(start - FARTHEST * width, -EXTREME if own.log else -LARGEST)
        wanted = max(own.to_scale(parameter.low - half) - EXTENT * width, farthest)
        end = round_end(parameter if pitch else own, own.from_scale(wanted) + half, up=True)
        if (
            pitch
            and parameter.low - pitch < end
            and own.to_scale(parameter.low - pitch - half) >= farthest - SLACK * width
        ):
            end = parameter.to_grid(parameter.low - pitch)
        end = parameter.to_grid(max(end, least), math.ceil)
        return end if end < parameter.low else None
    farthest = min(stop + FARTHEST * width, EXTREME if own.log else LARGEST)
    wanted = min(own.to_scale(parameter.high + half) + EXTENT * width, farthest)
    end = round_end(parameter if pitch else own, own.from_scale(wanted) - half, up=False)
    if (
        pitch
        and end < parameter.high + pitch
        and own.to_scale(parameter.high + pitch + half) <= farthest + SLACK * width
    ):
        end = parameter.to_grid(parameter.high + pitch)
    end = parameter.to_grid(min(end, most), math.floor)
    return end if end > parameter.high else None
