"""Named random streams: every key is a pure function of (seed, step, stream), never of the process or the device count."""

import enum

import jax


class Stream(enum.IntEnum):
    """What a key is for. Numbers are part of a run's identity: append, never renumber."""

    INIT = 0
    NOISE = 1
    SAMPLE = 2
    AUGMENT = 3
    NOISE_AGAIN = 4


def stream(seed: int | jax.Array, step: int | jax.Array, name: Stream) -> jax.Array:
    """The key of a stream at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step), int(name))
