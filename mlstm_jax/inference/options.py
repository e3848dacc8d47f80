"""How samples are drawn: the same options in Python and on the command line. Never imports jax: --help is instant."""

import math
from dataclasses import dataclass
from typing import Literal

from mlstm_jax.errors import UserError


@dataclass(frozen=True)
class SamplingOptions:
    """How the bytes of a sample are drawn, where it ends, and which state of a held unit is held."""

    temperature: float = 0.7
    """Below 1 is more cautious; 0 always takes the likeliest byte."""
    top_k: int = 0
    """Draw from this many of the likeliest bytes only; 0 is all."""
    top_p: float = 1.0
    """Draw from the fewest bytes that have this much of the probability; 1 is all."""
    seed: int = 0
    """The same seed gives the same texts, each the same alone and in a batch, but for the last digit."""
    clamp_feature: Literal["cell", "hidden"] = "cell"
    """Which state of the clamped units is held, after every byte."""
    clamp_prime: bool = False
    """Hold the units while the prime is read, too, at the values they have at byte 0."""
    stop: bool = False
    """End a sample before the first newline it writes: there the review ends. The length is then the most."""

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise UserError("temperature must be 0 (argmax) or a finite number above")
        if self.top_k < 0:
            raise UserError("top_k must be 0 (all bytes) or the number of bytes to draw from")
        if not 0 < self.top_p <= 1:
            raise UserError("top_p must lie above 0, and at most at 1 (all bytes)")
        if not 0 <= self.seed < 2**32:
            raise UserError("seed must lie between 0 and 2**32 - 1")
        if self.clamp_feature not in ("cell", "hidden"):
            raise UserError(f"clamp_feature is cell or hidden, not {self.clamp_feature!r}")
