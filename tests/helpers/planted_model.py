"""A model made by hand whose unit 7 copies the last smiley, and which writes smileys by unit 7; texts for it."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mlstm_jax.config import ModelConfig
from mlstm_jax.inference.language_model import LanguageModel
from mlstm_jax.model import parameters

UNIT, HIDDEN = 7, 16
CONFIG = ModelConfig(hidden=HIDDEN, embed=8)
I, F, O, U = range(4)  # noqa: E741 the gates, as the paper names them


def smileys() -> LanguageModel:
    """Unit 7 goes to 1 at ")", to -1 at "(", and stays. Writes ":) " and ":( ", the first the likelier the higher.

    Units 0 to 2 tell the kind of the last byte; all others are as drawn, but cannot tell ")" from "(".
    """
    params = {name: np.array(array) for name, array in parameters.init(CONFIG, seed=0).items()}
    at = lambda gate, unit: gate * HIDDEN + unit
    embed, b = params["embed"], params["b"]
    embed[:, :4] = [0, 0, 0, 1]  # which smiley; a smiley's end; a colon; any other byte
    embed[ord(")"), :4], embed[ord("("), :4], embed[ord(":"), :4] = [1, 1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, 0]
    embed[ord("(")][4:] = embed[ord(")")][4:]
    for v in ("wx", "wmx"):
        params[v][:4] = 0  # no other unit is told
    params["wh"][UNIT] = params["wmh"][UNIT] = 0  # nor hears it from unit 7
    for unit in (0, 1, 2, UNIT):
        for gate in (I, F, O, U):
            params["wx"][:, at(gate, unit)] = params["wh"][:, at(gate, unit)] = 0
    for unit, kind in ((0, 2), (1, 1), (2, 3)):  # the last byte's kind, and nothing of what was before
        params["wx"][kind, at(U, unit)] = 3
        b[at(I, unit)], b[at(F, unit)], b[at(O, unit)] = 8, -8, 8
    b[at(I, UNIT)], b[at(F, UNIT)], b[at(O, UNIT)] = -12, 12, 8
    params["wx"][1, at(I, UNIT)], params["wx"][1, at(F, UNIT)], params["wx"][0, at(U, UNIT)] = 24, -24, 3
    out = params["out"] = np.zeros((HIDDEN, 256), np.float32)
    out[2, ord(":")] = out[0, ord(")")] = out[0, ord("(")] = out[1, ord(" ")] = 20
    out[UNIT, ord(")")], out[UNIT, ord("(")] = 1, -1
    params["out_b"] = np.full(256, -30, np.float32)
    params["out_b"][list(b":)( ")] = 0
    for gain, v in (("gx", "wx"), ("gh", "wh"), ("gmx", "wmx"), ("gmh", "wmh")):
        params[gain] = np.linalg.norm(params[v], axis=0)  # weight norm changes nothing
    return LanguageModel({name: jnp.asarray(array) for name, array in params.items()}, Path("planted"))


def random_weights() -> LanguageModel:
    """A model of the same size that has learnt nothing."""
    return LanguageModel(parameters.init(CONFIG, seed=1), Path("random"))


def write_labelled(path: Path, n: int = 500, wrong: float = 0.1) -> Path:
    """A CSV file of texts that begin with a smiley, which tells the label but for a share that is `wrong`."""
    rng = np.random.default_rng(0)
    rows = ["text,sentiment"]
    for _ in range(n):
        words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(6)]
        positive = bool(rng.integers(2))
        rows.append(f"{':)' if positive else ':('} {' '.join(words)},{int(positive != (rng.random() < wrong))}")
    path.write_text("\n".join([*rows, ""]))
    return path
