"""What test_sharding.py looks at, computed on eight devices, which a process has or has not from its start on.

`python -m helpers.eight_devices FOLDER NAME...` writes FOLDER/NAME.json for every name of a function below.
"""

import io
import json
import re
import signal
import sys
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import conftest  # noqa: F401  (annotations are checked here too)
from helpers.programs import SHORT, TINY, interrupting, write_reviews
from mlstm_jax.cli import train
from mlstm_jax.config import Config, MeshConfig, ModelConfig
from mlstm_jax.corpus import batches
from mlstm_jax.corpus.batches import scoring_batches
from mlstm_jax.errors import UserError
from mlstm_jax.model import parameters
from mlstm_jax.run import Run
from mlstm_jax.training import checkpoint, sharding, updates, validation

HIDDEN, BATCH, SEQ = 48, 16, 12  # so that every matrix has a shape of its own, and sequences x units another one
MESHES = [(1, 1, 1), (8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 1, 8), (1, 8, 1)]


def config_on(shape, groups=1):
    size = ModelConfig(hidden=HIDDEN, embed=8)
    return Config(model=size, batch_size=BATCH, seq_length=SEQ, mesh=MeshConfig(*shape), grad_accumulation=groups)


def mesh_on(shape):
    return sharding.make(config_on(shape), jax.devices()[: int(np.prod(shape))])


@cache
def first_state():
    """The state before the first update, drawn on one device."""
    return jax.jit(partial(updates.new_state, config_on((1, 1, 1))))()


def state_on(shape):
    return sharding.spread_tree(first_state(), updates.shardings(config_on(shape), mesh_on(shape)))


def placed(rows, mesh):
    own = sharding.own_rows(mesh, len(rows))
    return sharding.place(rows[own], own, mesh, len(rows))


def some_updates(shape, groups=1, precision="float32", optimizer="adam"):
    """The losses of 20 updates, the compiled program, and what it was asked to gather."""
    mesh = mesh_on(shape)
    places = updates.Update(updates.shardings(config_on(shape), mesh), sharding.named(mesh, P()))
    options = dict(clip_norm=1.0, precision=precision, groups=groups, optimizer=optimizer)
    step = partial(updates.train_step, mesh=mesh, **options)
    step = jax.jit(step, out_shardings=places, donate_argnames="state")
    state, draw, losses, compiled = state_on(shape), np.random.default_rng(0), [], None
    for number in range(20):
        batch = placed(draw.integers(97, 123, (BATCH, SEQ + 1)).astype(np.uint8), mesh)
        given = (state, batch, np.bool_(number % 7 == 0), np.float32(1e-2))
        if not compiled:
            lowered = step.lower(*given)
            compiled = lowered.compile()
        update = compiled(*given)
        state = update.state
        losses.append(float(update.metrics["bits_per_byte"]))  # waits: steps that overlap may hang on older jax
    gathered = re.findall(r"stablehlo.all_gather.*-> tensor<(\S+)>", lowered.as_text())
    return {"losses": losses, "program": compiled.as_text(), "gathered": gathered}


def named(shape):
    return "x".join(map(str, shape))


def wide_meshes():
    return {named(shape): some_updates(shape) for shape in MESHES[:4]}


def narrow_meshes():
    return {named(shape): some_updates(shape) for shape in MESHES[4:]}


def groups():
    """Rows in groups: by the mesh and the number of groups."""
    return {
        f"{named(shape)} in {count}": some_updates(shape, count) for shape, count in [((1, 1, 1), 4), ((2, 2, 2), 2)]
    }


def narrow_products():
    return {named(shape): some_updates(shape, precision="bfloat16") for shape in ((1, 1, 1), (2, 2, 2))}


def muon():
    return {named(shape): some_updates(shape, optimizer="muon") for shape in ((1, 1, 1), (2, 2, 2))}


def drawn():
    """What is drawn on a mesh: how far it is from what is drawn on one device; and the shapes of arrays and parts."""
    found = {}
    for shape in ((2, 2, 2), (1, 8, 1)):
        state = updates.draw_state(config_on(shape), mesh_on(shape))
        arrays = {jax.tree_util.keystr(path): a for path, a in jax.tree.leaves_with_path(state)}
        distance = lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max())
        found[named(shape)] = {
            "distance": max(jax.tree.leaves(jax.tree.map(distance, state.params, first_state().params))),
            "parts": {name: [a.shape, *{s.data.shape for s in a.addressable_shards}] for name, a in arrays.items()},
        }
    return found


def gradients():
    """By the parameter, how far the gradient on 2 x 2 x 2 devices is from the one on one, of its largest number."""
    draw = np.random.default_rng(1)
    rows = draw.integers(97, 123, (BATCH, SEQ + 1)).astype(np.uint8)
    carry = tuple(draw.normal(size=(2, BATCH, HIDDEN)).astype(np.float32) * 0.5)
    found = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh, state = mesh_on(shape), state_on(shape)
        here = jax.device_put(carry, NamedSharding(mesh, P(sharding.BATCH, "model")))
        slopes = jax.jit(partial(updates.gradient, precision="float32", mesh=mesh))
        found.append(jax.device_get(slopes(state.params, placed(rows, mesh), here).slopes))
    one, many = found
    return {name: float(np.abs(many[name] - one[name]).max() / np.abs(one[name]).max()) for name in one}


def scores():
    """Validation bits per byte by the mesh, in as many rows as suit the devices and in five."""
    part = np.random.default_rng(2).integers(97, 123, 700).astype(np.uint8)
    found = {}
    for shape in ((1, 1, 1), (8, 1, 1), (2, 2, 2)):
        mesh = mesh_on(shape)
        prepare = jax.jit(parameters.prepare, out_shardings=sharding.named(mesh, sharding.PREPARED))
        weights = prepare(state_on(shape).params)
        cuts = [scoring_batches(part, rows, 32) for rows in (16, 5)]
        found[named(shape)] = [validation.bits_per_byte(weights, cut, "float32", mesh) for cut in cuts]
    return found


def rows():
    """Whether rows that were placed are the rows that were given."""
    given = np.arange(16 * 3, dtype=np.uint8).reshape(16, 3)
    found = {}
    for shape in MESHES:
        mesh = mesh_on(shape)
        filled = np.asarray(sharding.spread_rows(given[:5], mesh))
        found[named(shape)] = {
            "own": sharding.own_rows(mesh, 16).tolist(),
            "placed": np.asarray(placed(given, mesh)).tolist() == given.tolist(),
            "filled": filled[:5].tolist() == given[:5].tolist() and not filled[5:].any(),
            "length": len(filled),
        }
    return found


def restored():
    """The fingerprints and digest of a state as it is saved on 2 x 2 x 2 devices, and as it is restored on others."""
    tell = lambda state: [*map(checkpoint.fingerprint, checkpoint._parts(state)), checkpoint.digest(state)]
    state = state_on((2, 2, 2))
    with checkpoint.Saver(Run(FOLDER), keep=1) as saver:
        saver.save(state, checkpoint.Meta(config_on((2, 2, 2)), data="", start=0, end=1))
    again = lambda shape: tell(checkpoint.restore(Run(FOLDER), print, mesh_on(shape))[0])
    return {"saved": tell(state), "one": tell(checkpoint.restore(Run(FOLDER), print)[0])} | {
        named(shape): again(shape) for shape in ((4, 1, 1), (1, 8, 1))
    }


def moved():
    """A run of a mesh of 2 x 2 x 2, each of whose starts has other devices and is told of none; what each says."""
    run_dir, starts = FOLDER / "moved", []
    named = ["--config", TINY, "--data", str(write_reviews(FOLDER / "reviews.txt")), *SHORT]
    named += "--mesh.data 2 --mesh.fsdp 2 --mesh.model 2".split()
    stream, eight = batches.stream, jax.devices()
    for devices, stop in [(8, 2), (1, 4), (5, 8), (8, None)]:
        interrupted = stream if stop is None else interrupting(stream, stop, signal.SIGUSR1)
        with (
            patch.object(jax, "devices", lambda *_, count=devices: eight[:count]),
            patch.object(batches, "stream", interrupted),
            redirect_stdout(io.StringIO()) as said,
        ):
            train.run(["--run-dir", str(run_dir), *named])
        starts.append(said.getvalue())
        named = []
    return {"run_dir": str(run_dir), "starts": starts}


def refused():
    """What is said of units that cannot be spread."""
    config = Config(model=ModelConfig(hidden=36, embed=8), batch_size=BATCH, mesh=MeshConfig(1, 8, 1))
    try:
        updates.shardings(config, sharding.make(config))
    except UserError as error:
        return str(error)


def bad_loops():
    """Programs that do in their loop what training must not do there: gather a weight; sum a weight's gradient."""
    mesh = mesh_on((4, 2, 1))
    weight, h = jnp.ones((HIDDEN, HIDDEN)), jnp.ones((BATCH, HIDDEN))

    def gathering(weight, h):
        def body(h, _):
            whole = jax.lax.all_gather(jnp.tanh(weight + h.mean()), "fsdp", tiled=True)
            return jnp.tanh(h @ whole), None

        return jax.lax.scan(body, h, length=5)[0]

    def summing(weight, h):
        def body(weight, _):
            d = jnp.tanh(h @ weight)
            return weight - jax.lax.psum(h.T @ d, "data"), None

        return jax.lax.scan(body, weight, length=5)[0]

    def compiled(loop, weight_spec, h_spec, out_spec):
        here = jax.shard_map(loop, mesh=mesh, in_specs=(weight_spec, h_spec), out_specs=out_spec, check_vma=False)
        return jax.jit(here).lower(weight, h).compile().as_text()

    return {
        "gathering": compiled(gathering, P("fsdp"), P(sharding.BATCH), P(sharding.BATCH)),
        "summing": compiled(summing, P(), P("data"), P()),
    }


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    for name in sys.argv[2:]:
        (FOLDER / f"{name}.json").write_text(json.dumps(globals()[name]()))
