"""The cell and its loops against slow, obvious references."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlstm_jax.config import ModelConfig
from mlstm_jax.model import cell, parameters
from mlstm_jax.model.unroll import unroll
from mlstm_jax.training import updates

HIDDEN = 24


def forward(weights, data, state, precision=None):
    """Logits of the byte after each byte, and the last state."""
    hidden, state = unroll(weights, data, state, precision)
    return parameters.read_out(weights, hidden, precision).swapaxes(0, 1), state


@pytest.fixture
def params():
    params = parameters.init(ModelConfig(hidden=HIDDEN, embed=8), seed=1)
    return params | {"b": jax.random.normal(jax.random.key(2), params["b"].shape)}


@pytest.fixture
def data():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 20)), jnp.uint8)


def some_state(batch, scale=0.5):
    c, h = jax.random.normal(jax.random.key(3), (2, batch, HIDDEN)) * scale
    return c, h


def unroll_by_autodiff(weights, data, state):
    """The plain scan, differentiated by jax: what `unroll` is checked against."""

    def body(state, byte):
        state = cell.step(weights, state, byte)
        return state, state[1]

    state, hidden = jax.lax.scan(body, state, data.T)
    return hidden, state


def test_matches_numpy_loop(params, data):
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    norm = lambda v, g: v / np.sqrt((v**2).sum(0)) * g
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    wx, wh = norm(p["wx"], p["gx"]), norm(p["wh"], p["gh"])
    wmx, wmh = norm(p["wmx"], p["gmx"]), norm(p["wmh"], p["gmh"])
    c, h = (np.asarray(s, np.float64) for s in some_state(3))
    expected = []
    for byte in np.asarray(data.T):
        x = p["embed"][byte]
        m = (x @ wmx) * (h @ wmh)
        i, f, o, u = np.split(x @ wx + m @ wh + p["b"], 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
        h = sigmoid(o) * np.tanh(c)
        expected.append(h @ p["out"] + p["out_b"])
    logits, state = forward(parameters.prepare(params), data, some_state(3))
    np.testing.assert_allclose(logits, np.stack(expected, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state[0], c, rtol=1e-4, atol=1e-5)


def test_two_batches_equal_one_long_batch(params, data):
    whole, last = forward(parameters.prepare(params), data, some_state(3))
    first, state = forward(parameters.prepare(params), data[:, :13], some_state(3))
    second, state = forward(parameters.prepare(params), data[:, 13:], state)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state, last, rtol=1e-5, atol=1e-6)


def test_future_bytes_do_not_matter(params, data):
    changed = data.at[:, 11:].add(1)
    before, _ = forward(parameters.prepare(params), data, some_state(3))
    after, _ = forward(parameters.prepare(params), changed, some_state(3))
    assert (before[:, :11] == after[:, :11]).all()
    assert (before[:, 11:] != after[:, 11:]).any(axis=2).all()


def test_trained_path_equals_the_scan_of_steps(params, data):
    weights = parameters.prepare(params)
    hidden, state = unroll(weights, data, some_state(3))
    expected_state, expected = cell.scan(weights, data, some_state(3), emit=lambda s: s[1])
    np.testing.assert_allclose(hidden.swapaxes(0, 1), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(state, expected_state, rtol=1e-6, atol=1e-7)


def loss_through(unroll, params, data, state):
    """A loss that depends on every output of the loop: all hidden states and the final (c, h)."""
    weights = parameters.prepare(params)
    hidden, (c, h) = unroll(weights, data[:, :-1], state)
    logits = parameters.read_out(weights, hidden)
    targets = jax.nn.one_hot(data[:, 1:].T, 256, dtype=logits.dtype)
    return -(jax.nn.log_softmax(logits) * targets).mean() * 256 + (c**2).mean() + jnp.sin(h).mean()


def with_remat(remat_every, precision=None):
    return partial(unroll, precision=precision, remat_every=remat_every)


@pytest.mark.parametrize("remat_every", [0, 1, 4, 16])
def test_hand_written_gradient_equals_autodiff(params, data, remat_every):
    gradients = [
        jax.jit(jax.grad(partial(loss_through, unroll), argnums=(0, 2)))(params, data[:, :17], some_state(3))
        for unroll in (with_remat(remat_every), unroll_by_autodiff)
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, gradients), strict=True):
        assert np.linalg.norm(theirs) > 0
        assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 1e-5


@pytest.mark.parametrize("remat_every", [0, 4])
def test_units_in_two_parts_have_the_gradient_of_the_whole(params, data, remat_every):
    """As along a mesh's axis, here one of vmap's."""
    weights, data, (c, h) = parameters.prepare(params), data[:, :16], some_state(3)

    def loss(wmh, wh, x, mx, state, axis=None):
        own = cell.Weights(x, mx, wmh, wh, weights.out, weights.out_b)
        hidden, (c, h) = unroll(own, data, state, axis=axis, remat_every=remat_every)
        return jnp.sin(3 * hidden).sum() + (c**2).sum() + (h**3).sum()

    gradient = lambda axis: jax.jit(jax.grad(partial(loss, axis=axis), argnums=(0, 1, 2, 3, 4)))
    columns = lambda a, of=1: jnp.moveaxis(a.reshape(len(a), of, 2, -1), 2, 0).reshape(2, len(a), -1)
    gates, rows = partial(columns, of=4), lambda a: a.reshape(2, -1, a.shape[1])
    split = lambda wmh, wh, x, mx, state: (
        rows(wmh),
        gates(wh),
        gates(x),
        jnp.stack([mx, mx]),
        tuple(map(columns, state)),
    )
    whole = weights.wmh, weights.wh, weights.x, weights.mx, (c, h)
    parts = jax.vmap(gradient("part"), axis_name="part")(*split(*whole))
    expected = split(*gradient(None)(*whole))
    for ours, theirs in zip(*map(jax.tree.leaves, (parts, expected)), strict=True):
        assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 1e-5


@pytest.mark.parametrize("remat_every", [0, 4])
def test_in_bfloat16_the_gradient_is_close_to_that_in_float32(params, data, remat_every):
    """One or two roundings to 8 bits a step; what is added up, in the tables and matrices, is added in float32."""
    exact, narrow = (
        jax.jit(jax.grad(partial(loss_through, unroll), argnums=(0, 2)))(params, data[:, :17], some_state(3))
        for unroll in (with_remat(0), with_remat(remat_every, "bfloat16"))
    )
    for theirs, ours in zip(*map(jax.tree.leaves, (exact, narrow)), strict=True):
        assert ours.dtype == jnp.float32
        assert 0 < np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 1e-2


def test_in_bfloat16_the_loss_is_within_a_hundredth_of_that_in_float32(params, data):
    exact, narrow = (
        jax.jit(partial(updates.gradient, precision=precision))(params, data, some_state(3)).nats
        for precision in ("float32", "bfloat16")
    )
    assert 0 < abs(exact - narrow) < 1e-2


@pytest.mark.parametrize("remat_every", [0, 4])
def test_hand_written_gradient_equals_finite_differences_in_float64(params, data, remat_every):
    with jax.enable_x64(True):
        weights, state = jax.tree.map(lambda a: a.astype(jnp.float64), (parameters.prepare(params), some_state(3)))
        data = data[:, :8]

        @jax.jit
        def loss(tree):
            weights, state = tree
            hidden, (c, h) = unroll(weights, data, state, remat_every=remat_every)
            return jnp.sin(3 * hidden).mean() + (c**2).mean() + (h**3).mean()

        tree = (weights, state)
        gradient = jax.jit(jax.grad(loss))(tree)
        rng = np.random.default_rng(4)
        for _ in range(3):
            direction = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape)), tree)
            shifted = lambda e: loss(jax.tree.map(lambda a, d: a + e * d, tree, direction))  # noqa: B023
            numeric = (shifted(1e-6) - shifted(-1e-6)) / 2e-6
            analytic = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
            assert abs(numeric - analytic) < 1e-8 * max(1, abs(analytic))


def loops(jaxpr):
    """Every scan in a jaxpr, however deep."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from loops(inner)


def time_loops(unroll, params, data):
    """The loops over time of the loss and its gradient: all that have no other in them."""
    jaxpr = jax.make_jaxpr(jax.grad(partial(loss_through, unroll)))(params, data, some_state(3))
    return [scan for scan in loops(jaxpr.jaxpr) if not any(loops(scan.params["jaxpr"].jaxpr))]


@pytest.mark.parametrize("unroll, accumulators", [(unroll, 0), (with_remat(4, "bfloat16"), 0), (unroll_by_autodiff, 2)])
def test_backward_loop_has_no_weight_gradient_accumulator(params, data, unroll, accumulators):
    """No loop carries or writes an array of a recurrent matrix's size; autodiff's does, so the check can fail."""
    scans = time_loops(unroll, params, data[:, :17])
    assert len(scans) == 2
    carried_and_written = [v.aval.shape for scan in scans for v in scan.params["jaxpr"].jaxpr.outvars]
    matrices = (HIDDEN, HIDDEN), (HIDDEN, 4 * HIDDEN)
    assert sum(carried_and_written.count(matrix) for matrix in matrices) == accumulators


@pytest.mark.parametrize("remat_every, kept", [(0, ["bf16", "f32", "bf16x4", "bf16"]), (4, ["bf16", "f32"])])
def test_what_waits_for_products_waits_in_their_precision(params, data, remat_every, kept):
    """h, c, z, h wmh are kept of every step, with segments h and c alone; backward dz, over z, and dm."""
    kinds = {jnp.dtype("float32"): "f32", jnp.dtype("uint16"): "bf16"}  # bits, which are written in place
    tell = lambda a: kinds[a.dtype] + ("x4" if a.shape[-1] == 4 * HIDDEN else "")
    data = data[:, :17]
    first, second = time_loops(with_remat(remat_every, "bfloat16"), params, data)
    steps = data.shape[1] - 1
    of = lambda scan, steps: [tell(v.aval) for v in scan.outvars if v.aval.shape[0] == steps]
    assert of(first, steps) == kept
    assert of(second, remat_every or steps) == ["bf16x4", "bf16"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_turned_weights_read_and_write_alike(params, data, precision):
    weights = parameters.prepare(params, precision)
    turned = cell.turn(weights)
    assert turned.wh.columns.shape == weights.wh.shape[::-1] and turned.hidden == weights.hidden == len(weights.wmh)
    read = lambda weights: cell.scan(weights, data, some_state(3), emit=lambda s: parameters.read_out(weights, s[1]))
    for found, expected in zip(jax.tree.leaves(read(turned)), jax.tree.leaves(read(weights)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 if precision == "float32" else 1e-3)


def test_padding_and_lengths_leave_a_state_as_it_is(params, data):
    weights = parameters.prepare(params)
    lengths = jnp.array([5, 0, 20])
    state, _ = cell.scan(weights, data, some_state(3), lengths)
    short, _ = cell.scan(weights, data[:1, :5], tuple(s[:1] for s in some_state(3)))
    np.testing.assert_allclose(state[0][0], short[0][0], rtol=1e-5, atol=1e-6)
    assert (state[0][1] == some_state(3)[0][1]).all()


def test_a_clamp_overwrites_the_cell_after_the_byte_and_leaves_that_bytes_hidden_state(params, data):
    weights = parameters.prepare(params)
    clamp = cell.Held(jnp.arange(HIDDEN) == 5, jnp.full(HIDDEN, 2.5))
    c, h = cell.step(weights, some_state(3), data[:, 0], clamp)
    free_c, free_h = cell.step(weights, some_state(3), data[:, 0])
    assert (c[:, 5] == 2.5).all() and (h == free_h).all()
    assert (jnp.delete(c, 5, axis=1) == jnp.delete(free_c, 5, axis=1)).all()


def test_weight_norm_gain_starts_at_the_columns_own_norm_or_a_constant():
    own = parameters.init(ModelConfig(hidden=8, embed=4), seed=0)
    np.testing.assert_allclose(parameters.normalise(own["wh"], own["gh"]), own["wh"], rtol=1e-5)
    constant = parameters.init(ModelConfig(hidden=8, embed=4, gain=0.5), seed=0)
    np.testing.assert_allclose(
        np.linalg.norm(parameters.normalise(constant["wh"], constant["gh"]), axis=0), 0.5, rtol=1e-5
    )


def test_types_are_kept_apart_under_strict_promotion(params, data):
    """bfloat16 stays in the matrix products: state, logits and gradients are float32."""
    with jax.numpy_dtype_promotion("strict"):
        logits, (c, h) = jax.jit(forward)(parameters.prepare(params, "bfloat16"), data, some_state(3))
        gradient = jax.jit(partial(updates.gradient, precision="bfloat16"))(params, data, some_state(3)).slopes
    assert {a.dtype for a in (logits, c, h, *jax.tree.leaves(gradient))} == {jnp.dtype("float32")}
    exact, _ = forward(parameters.prepare(params), data, some_state(3))
    assert 0 < np.abs(logits - exact).max() < 3e-2
