"""Text that is written while the value of the held unit may change at any time."""

import codecs
import secrets

import jax
import jax.numpy as jnp
import numpy as np

from mlstm_jax.demo.reading import Kept
from mlstm_jax.inference import generate
from mlstm_jax.inference.options import SamplingOptions
from mlstm_jax.model.cell import Held, Weights
from mlstm_jax.text import printable

PIECE = 4  # bytes in one compiled call: as often a change of what is held is heard of


class Writer:
    """A text that goes on from a state, a few bytes at a time."""

    def __init__(self, weights: Weights, state: Kept, options: SamplingOptions = SamplingOptions()):
        self.weights = weights
        self._state = tuple(map(jnp.array, state))  # copies: writing takes the memory of the state before it
        self._keys = jax.random.fold_in(jax.random.key(options.seed), 0)[None]  # that of the first of `generate`
        self._limits = generate.limits_of(options)
        self._place = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # no character is cut between two pieces

    def write(self, held: Held) -> str:
        """The next characters, with these units held. Often fewer than `PIECE`, as a character may have four bytes."""
        clamps = Held(*(np.repeat(part[None], PIECE, axis=0) for part in held))
        self._state, written = generate.write(
            self.weights, self._state, self._keys, np.int32(self._place), self._limits, clamps, "cell"
        )
        self._place += PIECE
        return printable(self._decoder.decode(np.asarray(written)[0].tobytes()))


def drawn_anew() -> SamplingOptions:
    """The usual options, with a seed that nobody knows: every text is another one."""
    return SamplingOptions(seed=secrets.randbits(32))
