"""Parameters, their initialisation, weight norm, and the function from bytes to logits."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mlstm_jax.config import ModelConfig, Precision
from mlstm_jax.model.cell import Turned, Weights, dot, narrow_dot, total, turn

Params = dict[str, Array]


class MLSTM(nnx.Module):
    """All parameters in one table, named as in the paper's release; gates along every 4 * hidden axis are i, f, o, u.

    The recurrent matrices are weight-normalised (Salimans & Kingma 2016): each column of v is scaled to the gain g.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        e, h, vocab = config.embed, config.hidden, 256
        glorot = nnx.initializers.glorot_normal()
        draw = lambda *shape: nnx.Param(glorot(rngs.params(), shape, jnp.float32))
        gain = lambda v: nnx.Param(
            jnp.linalg.norm(v[...], axis=0) if config.gain is None else jnp.full(v.shape[1], config.gain, jnp.float32)
        )
        self.embed = draw(vocab, e)
        self.wx, self.wh = draw(e, 4 * h), draw(h, 4 * h)
        self.wmx, self.wmh = draw(e, h), draw(h, h)
        self.gx, self.gh = gain(self.wx), gain(self.wh)
        self.gmx, self.gmh = gain(self.wmx), gain(self.wmh)
        self.b = nnx.Param(jnp.zeros(4 * h, jnp.float32))
        self.out = draw(h, vocab)
        self.out_b = nnx.Param(jnp.zeros(vocab, jnp.float32))


def init(config: ModelConfig, seed: int) -> Params:
    """Fresh float32 parameters as a plain dict; the same seed gives the same values, on a mesh to a rounding."""
    build = lambda: nnx.to_pure_dict(nnx.state(MLSTM(config, rngs=nnx.Rngs(seed)), nnx.Param))
    return jax.jit(build)()


def normalise(v: Float[Array, "rows columns"], g: Float[Array, "columns"]) -> Float[Array, "rows columns"]:
    """Weight norm: every column of v divided by its L2 norm (at least 1e-6) and multiplied by its gain."""
    return v * (g * jax.lax.rsqrt(jnp.maximum((v**2).sum(axis=0), 1e-12)))[None]


def prepare(params: Params, precision: Precision = "float32") -> Weights:
    """Weight norm, the two 256-row input tables, casts: once an update, or once a load."""
    p, dtype = params, jnp.dtype(precision)
    wx, wmx = normalise(p["wx"], p["gx"]), normalise(p["wmx"], p["gmx"])
    wh, wmh = normalise(p["wh"], p["gh"]), normalise(p["wmh"], p["gmh"])
    return Weights(
        x=dot(p["embed"], wx) + p["b"][None],
        mx=dot(p["embed"], wmx),
        wmh=wmh.astype(dtype),
        wh=wh.astype(dtype),
        out=p["out"].astype(dtype),
        out_b=p["out_b"],
    )


def prepare_to_read(params: Params, precision: Precision = "float32") -> Weights:
    """`prepare`d for reading and writing on this device."""
    weights = prepare(params, precision)
    return turn(weights) if jax.default_backend() == "cpu" else weights


def read_out(
    weights: Weights, h: Float[Array, "*batch units"], precision: str | None = None, axis: str | None = None
) -> Float[Array, "*batch vocab"]:
    """Logits of the next byte from the hidden state, float32. `precision` and `axis` as in `unroll.unroll`."""
    out = weights.out.astype(precision) if precision else weights.out
    product = dot if isinstance(out, Turned) or out.dtype.itemsize >= 4 else narrow_dot
    logits = total(product(h.reshape(-1, h.shape[-1]).astype(out.dtype), out), axis) + weights.out_b[None]
    return logits.reshape(*h.shape[:-1], -1)
