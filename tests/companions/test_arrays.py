"""States of JAX, as they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import TaskError
from worker.own.saved import frozen, thaw


class Moments(NamedTuple):
    """As optax has them."""

    count: Any
    mean: dict[str, Any]


def test_arrays_of_jax_come_back_as_arrays_of_numpy() -> None:
    weights = {"w": jnp.arange(6.0).reshape(2, 3), "b": [jnp.float32(2.5), jnp.arange(3)]}
    back = thaw(frozen({"weights": weights, "moments": Moments(jnp.int32(7), weights)}))
    assert isinstance(back["weights"]["w"], np.ndarray)
    assert back["weights"]["w"].dtype == np.float32 and back["weights"]["b"][1].dtype == np.int32
    for one, other in zip(
        jax.tree.leaves((weights, Moments(jnp.int32(7), weights))),
        jax.tree.leaves((back["weights"], back["moments"])),
        strict=True,
    ):
        assert np.array_equal(one, other)


def test_types_that_numpy_has_not_come_back_as_float32() -> None:
    values = [1.5, -3.0, 0.0]
    back = thaw(frozen({"w": jnp.array(values, dtype=jnp.bfloat16)}))
    assert back["w"].dtype == np.float32 and back["w"].tolist() == values
    again = jnp.asarray(back["w"], dtype=jnp.bfloat16)
    assert np.array_equal(again, jnp.array(values, dtype=jnp.bfloat16))


def test_a_random_key_is_refused_with_its_place() -> None:
    with pytest.raises(TaskError, match=r"state\['key'\] is a jax.*which numpy cannot read"):
        frozen({"key": jax.random.key(1)})
    data = jax.random.key_data(jax.random.key(1))
    assert np.array_equal(thaw(frozen({"key": data}))["key"], data)
