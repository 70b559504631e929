"""Choice of the sampler that a search names. Its library is imported only if it is used."""

from __future__ import annotations

from common.errors import ConfigError
from common.search.search_file import Search
from common.search.space import Space
from master.samplers.protocol import Sampler


def make_sampler(search: Search, space: Space, stage: str) -> Sampler:
    """Return the sampler that a search names.

    Args:
        search: gives the sampler, the seed and the strategy's options.
        space: the ranges that the stage samples.
        stage: its name.

    Raises:
        ConfigError: its library is not installed.
    """
    if search.sampler == "staged":
        from master.samplers.bred import BredSampler

        return BredSampler(search, space, stage)
    if search.sampler in ("tpe", "gp"):
        from master.samplers.optuna import OptunaSampler

        return OptunaSampler(search, space)
    if search.sampler == "smac":
        from master.samplers.smac import SmacSampler

        return SmacSampler(search, space)
    raise ConfigError(
        f"sampler = {search.sampler!r}: draws a whole stage at once; it cannot suggest trials one "
        "at a time"
    )
