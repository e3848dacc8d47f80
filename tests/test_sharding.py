"""One run on one device or on eight: the same figures, nothing gathered inside the loops over time, the same files."""

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.programs import ROOT, assert_same_figures, end, figures, start, train
from mlstm_jax.cli.train import run
from mlstm_jax.config import Config, MeshConfig, ModelConfig
from mlstm_jax.errors import UserError
from mlstm_jax.run import Run
from mlstm_jax.training import checkpoint, sharding

MESHES = ["8x1x1", "4x2x1", "2x2x2", "1x1x8", "1x8x1"]  # data, fsdp, model
COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
# One process compiles on one core, so that two of them share the work.
WORK = [
    ["wide_meshes", "scores", "restored", "rows", "moved", "muon"],
    ["narrow_meshes", "groups", "narrow_products", "gradients", "drawn", "refused", "bad_loops"],
]


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """All that helpers/eight_devices.py has to tell."""
    folder = tmp_path_factory.mktemp("eight")
    ended = end(*(start(["-W", "error", "-m", "helpers.eight_devices", folder, *names], devices=8) for names in WORK))
    assert [process.status for process in ended] == [0, 0], "".join(process.err[-4000:] for process in ended)
    return {name: json.loads((folder / f"{name}.json").read_text()) for names in WORK for name in names}


@pytest.fixture(scope="module")
def updates(eight):
    """Losses and program of 20 updates by the mesh."""
    return eight["wide_meshes"] | eight["narrow_meshes"]


@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_have_the_losses_of_one(mesh, updates):
    assert updates[mesh]["losses"] == pytest.approx(updates["1x1x1"]["losses"], rel=1e-5)


def test_the_losses_are_those_of_a_model_that_learns(updates):
    losses = updates["1x1x1"]["losses"]
    assert len(set(losses)) == 20 and losses[-1] < losses[0] - 1


@pytest.mark.parametrize("mesh", ["1x1x1 in 4", "2x2x2 in 2"])
def test_rows_in_groups_make_the_same_update(mesh, eight, updates):
    assert eight["groups"][mesh]["losses"] == pytest.approx(updates["1x1x1"]["losses"], rel=1e-5)


def test_muon_makes_the_same_updates_on_a_mesh(eight, updates):
    one, many = (eight["muon"][mesh]["losses"] for mesh in ("1x1x1", "2x2x2"))
    assert many == pytest.approx(one, rel=1e-4) and one != updates["1x1x1"]["losses"]


def test_bfloat16_on_a_mesh_is_close_to_bfloat16_on_one_device(eight, updates):
    one, many = (eight["narrow_products"][mesh] for mesh in ("1x1x1", "2x2x2"))
    assert many["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert one["losses"] != updates["1x1x1"]["losses"], "the products are narrow"


def test_the_matrices_travel_in_the_precision_of_the_products(eight, updates):
    matrices = {"24x48", "24x192", "24x256"}  # wmh, wh, out: the rows of one half of the units
    typed = lambda kind: {f"{matrix}x{kind}" for matrix in matrices}
    assert typed("bf16") <= set(eight["narrow_products"]["2x2x2"]["gathered"])
    assert typed("f32") <= set(updates["2x2x2"]["gathered"])


def test_eight_devices_have_the_gradient_of_one(eight):
    assert len(eight["gradients"]) == 12 and all(far < 1e-5 for far in eight["gradients"].values()), eight["gradients"]


@pytest.mark.parametrize("mesh", ["8x1x1", "2x2x2"])
def test_eight_devices_have_the_held_out_figures_of_one(mesh, eight):
    assert eight["scores"][mesh] == pytest.approx(eight["scores"]["1x1x1"], rel=1e-6)


@pytest.mark.parametrize("mesh", ["2x2x2", "1x8x1"])
def test_what_is_drawn_is_the_same_on_every_mesh_to_a_rounding(mesh, eight):
    assert eight["drawn"][mesh]["distance"] < 1e-6


def test_every_device_holds_its_part_of_the_parameters_and_of_adams_moments(eight):
    parts = eight["drawn"]["2x2x2"]["parts"]
    for place in (".params", ".moments.mu", ".moments.nu"):
        for name, spec in sharding.PARAMS.items():
            whole, *found = parts[f"{place}['{name}']"]
            shared = [size // 4 if axis == sharding.WIDTH else size for size, axis in zip(whole, spec, strict=False)]
            assert found == [shared + whole[len(shared) :]], (place, name)
    assert parts[".params['wh']"] == [[48, 192], [12, 192]]


def test_every_device_holds_the_state_of_its_rows_and_units(eight):
    parts = eight["drawn"]["2x2x2"]["parts"]
    assert parts[".carry[0]"] == parts[".carry[1]"] == [[16, 48], [4, 24]]


# The compiled program of an update


def collectives(program):
    """The collectives inside and outside of a program's loops, as (operation, shapes), and the number of loops."""
    parts = dict(re.findall(r"^(?:ENTRY )?%(\S+) \(.*\{\n((?:.*\n)*?)\}", program, re.M))
    looped, waiting = set(), re.findall(r"(?:body|condition)=%([\w.-]+)", program)
    while waiting:
        if (name := waiting.pop()) not in looped:
            looped.add(name)
            waiting += [other for other in re.findall(r"%([\w.-]+)", parts[name]) if other in parts]

    def of(names):
        text = "".join(parts[name] for name in names)
        found = re.findall(rf" = (.+?) ({COLLECTIVES})(?:-start)?\(", text)
        return sorted((operation, re.findall(r"\w+\[[\d,]*\]", shapes)) for shapes, operation in found)

    return of(looped), of(parts.keys() - looped), len(set(re.findall(r" while\(.*body=%([\w.-]+)", program)))


@pytest.mark.parametrize("mesh", ["8x1x1", "4x2x1", "1x8x1"])
def test_no_device_speaks_inside_the_loops_where_rows_alone_are_spread(mesh, updates):
    inside, _, loops = collectives(updates[mesh]["program"])
    assert loops == 2, "over time, forward and backward"
    assert inside == []


@pytest.mark.parametrize("mesh, state", [("2x2x2", "f32[4,48]"), ("1x1x8", "f32[16,48]")])
def test_a_step_sums_one_array_of_rows_and_units_where_the_units_are_spread(mesh, state, updates):
    inside, _, loops = collectives(updates[mesh]["program"])
    assert loops == 2 and inside == [("all-reduce", [state])] * 2


def test_groups_of_rows_share_one_gathering_and_one_reduction(eight):
    inside, outside, loops = collectives(eight["groups"]["2x2x2 in 2"]["program"])
    assert loops == 3, "over groups, and over time"
    logits = "f32[24,256]"
    assert inside == [("all-reduce", [shape]) for shape in sorted((logits, "f32[2,48]", "f32[2,48]"))]
    at_once = collectives(eight["wide_meshes"]["2x2x2"]["program"])[1]
    assert sorted([*outside, ("all-reduce", ["f32[48,256]"])]) == at_once, "the logits' sum alone has moved"


def test_over_data_the_gradients_are_reduced_at_once_and_nothing_else_is_said(updates):
    _, outside, _ = collectives(updates["8x1x1"]["program"])
    gradients = ["f32[256,4,1,48]", "f32[256,48]", "f32[48,48]", "f32[48,192]", "f32[48,256]", "f32[256]"]
    assert [(operation, sorted(shapes)) for operation, shapes in outside] == [
        ("all-reduce", sorted([*gradients, "f32[]"])),  # the last one is the loss
        ("all-reduce", ["pred[]", "pred[]"]),  # whether the carried states, c and h, are finite on every device
    ]


@pytest.mark.parametrize("mesh, part", [("4x2x1", 24), ("1x8x1", 6)])
def test_over_fsdp_every_weight_is_gathered_once_and_its_gradient_scattered_once(mesh, part, updates):
    _, outside, _ = collectives(updates[mesh]["program"])
    matrices = [[operation, *shapes] for operation, shapes in outside if any("," in shape for shape in shapes)]
    gathered = [shapes for operation, *shapes in matrices if operation == "all-gather"]
    assert sorted(gathered) == sorted([[f"f32[{s}]"] for s in ("48,48", "48,192", "48,256", "256,48", "256,192")])
    scattered = [shapes for operation, *shapes in matrices if operation == "reduce-scatter"]
    assert sorted(scattered) == sorted(
        [[f"f32[{s}]"] for s in (f"{part},48", f"{part},192", f"{part},256", f"256,{part}")]
    )


def test_where_all_axes_are_used_a_matrix_is_gathered_once_for_its_part_of_the_units(updates):
    _, outside, _ = collectives(updates["2x2x2"]["program"])
    for matrix in ("f32[24,48]", "f32[24,192]", "f32[24,256]"):
        assert outside.count(("all-gather", [matrix])) == 1, matrix
    assert not [shapes for _, shapes in outside for shape in shapes if shape in ("f32[48,48]", "f32[48,192]")]


@pytest.mark.parametrize("loop, found", [("gathering", "all-gather"), ("summing", "all-reduce")])
def test_the_search_finds_a_weight_that_a_loop_gathers_or_sums(loop, found, eight):
    inside, _, loops = collectives(eight["bad_loops"][loop])
    assert loops == 1 and (found, ["f32[48,48]"]) in inside


# Meshes that do not fit


@pytest.mark.parametrize(
    "mesh, expected",
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(2, -1, 2), (2, 2, 2)),
        (MeshConfig(1, 1, -1), (1, 1, 8)),
        (MeshConfig(-1, 2, 4), (1, 2, 4)),
    ],
)
def test_what_is_left_of_the_devices_goes_to_one_axis(mesh, expected):
    assert tuple(sharding.shape(mesh, 8).values()) == expected


@pytest.mark.parametrize("mesh", [MeshConfig(3, 1, 1), MeshConfig(-1, 3, 1), MeshConfig(2, 2, 1), MeshConfig(16, 1, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_one_line_that_says_what_to_change(mesh):
    with pytest.raises(UserError, match="does not fit 8 devices; change `mesh.data`, `mesh.fsdp` or") as error:
        sharding.shape(mesh, 8)
    assert "\n" not in str(error.value)


some_meshes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.sampled_from([None, 0, 1, 2])).map(
    lambda drawn: MeshConfig(*(-1 if axis == drawn[3] else size for axis, size in enumerate(drawn[:3])))
)
sizes_of = dataclasses.astuple


@given(some_meshes, st.integers(1, 64), st.integers(1, 96), st.integers(1, 96), st.sets(st.sampled_from(sharding.AXES)))
def test_a_fitted_mesh_uses_all_devices_in_equal_parts_and_keeps_what_is_named(mesh, devices, hidden, rows, named):
    found = sharding.fit(mesh, devices, hidden, rows, named)
    possible = [
        (data, fsdp, devices // (data * fsdp))
        for data in range(1, devices + 1)
        for fsdp in range(1, devices + 1)
        if devices % (data * fsdp) == 0 and rows % (data * fsdp) == 0 and hidden % (devices // data) == 0
    ]
    asked = dict(zip(sharding.AXES, sizes_of(mesh), strict=True))
    where = lambda axis: sharding.AXES.index(axis)
    possible = [p for p in possible if all(asked[axis] in (-1, p[where(axis)]) for axis in named)]
    assert (found is None) == (possible == [])
    assume(found)
    assert sizes_of(found) in possible
    for axis in ("model", "fsdp", "data"):  # what can stay as it is stays, in this order
        kept = [p for p in possible if asked[axis] in (-1, p[where(axis)])]
        assert not kept or sizes_of(found) in kept
        possible = [p for p in possible if p[where(axis)] == sizes_of(found)[where(axis)] or asked[axis] == -1]


@pytest.mark.parametrize(
    "mesh, devices, found",
    [
        (MeshConfig(-1, 1, 1), 8, (8, 1, 1)),
        (MeshConfig(2, 2, 2), 8, (2, 2, 2)),
        (MeshConfig(2, 2, 2), 4, (1, 2, 2)),
        (MeshConfig(2, 2, 2), 2, (1, 1, 2)),
        (MeshConfig(-1, 2, 2), 1, (1, 1, 1)),
        (MeshConfig(2, 2, 2), 32, (8, 2, 2)),
        (MeshConfig(1, 8, 1), 4, (1, 4, 1)),
        (MeshConfig(-1, 1, 1), 64, (32, 1, 2)),  # no more than its 32 rows
    ],
)
def test_a_fitted_mesh_is_the_nearest(mesh, devices, found):
    assert sizes_of(sharding.fit(mesh, devices, hidden=48, rows=32)) == found
    assert sharding.fit(mesh, 7, hidden=48, rows=32) is None


class Device(NamedTuple):
    process_index: int
    id: int


def fitted(monkeypatch, mesh, named=(), processes=1, each=8, rows=32):
    """What is said of the mesh that is fitted to so many devices, and the devices in it."""
    made = []
    monkeypatch.setattr(sharding, "make", lambda _, devices: made.extend(devices))
    devices = [Device(process, number) for process in range(processes) for number in range(each)]
    config = Config(model=ModelConfig(hidden=48), batch_size=rows, mesh=mesh)
    return sharding.fitted.__wrapped__(config, named, devices).change, made


def test_how_a_mesh_was_fitted_is_one_line(monkeypatch):
    said = lambda *args, **more: fitted(monkeypatch, *args, **more)[0]
    assert said(MeshConfig(2, 2, 2)) is said(MeshConfig(-1, 1, 2)) is None
    assert said(MeshConfig(1, 2, 2), each=1) == (
        "the mesh 1 x 2 x 2 (data, fsdp, model) is fitted to 1 device: 1 x 1 x 1"
    )
    line, used = fitted(monkeypatch, MeshConfig(2, 2, 2), each=7)
    assert "fitted to 6 of 7 devices: 1 x 2 x 3; 32 rows and 48 units have no equal parts on all" in line
    assert [device.id for device in used] == [*range(6)]


def test_where_not_all_devices_can_be_used_as_many_are_of_every_process(monkeypatch):
    _, used = fitted(monkeypatch, MeshConfig(), processes=2, each=5)
    assert used == [Device(process, number) for process in (0, 1) for number in range(4)]


def test_what_is_named_is_binding(monkeypatch):
    with pytest.raises(UserError, match="a mesh of 3 x 1 x 1 .* does not fit 8 devices; change"):
        sharding.fitted(Config(mesh=MeshConfig(3, 1, 1)), ["data"], jax.devices() * 8)
    assert "fitted to 8 devices: 4 x 2 x 1" in fitted(monkeypatch, MeshConfig(4, 1, 1), named=["data"])[0]


def test_rows_that_cannot_be_spread_are_one_line_that_says_what_to_change():
    eight_devices = jax.devices() * 8
    with pytest.raises(UserError, match="^12 rows cannot be spread over 8 devices .*; change `batch_size`, `grad_acc"):
        sharding.make(Config(batch_size=12), eight_devices)
    with pytest.raises(UserError, match="^16 rows in 4 groups cannot be spread over 8 devices in equal parts"):
        sharding.make(Config(batch_size=16, grad_accumulation=4), eight_devices)


def test_units_that_cannot_be_spread_are_one_line_that_says_what_to_change(eight):
    assert re.fullmatch(
        "36 units cannot be spread over 8 devices .*; change `model.hidden` or `mesh`", eight["refused"]
    )


# Runs and their files


SPREAD = "--mesh.data 2 --mesh.fsdp 2 --mesh.model 2".split()


def test_a_run_killed_on_eight_devices_resumes_on_one_and_on_four(whole, reviews, tmp_path):
    (killed,) = end(train(reviews, tmp_path / "one", *SPREAD, devices=8, at=(10, signal.SIGKILL)))
    assert killed.status == -signal.SIGKILL
    shutil.copytree(tmp_path / "one", tmp_path / "four")
    assert figures(tmp_path / "one", "bits_per_byte")[0] == [*range(1, 11)]
    saved = max(Run(tmp_path / "one").steps())
    assert saved in (4, 8), "the last one may not have been whole yet"
    one = train(reviews, tmp_path / "one")
    four = train(reviews, tmp_path / "four", "--mesh.data", "2", "--mesh.fsdp", "2", devices=4)
    for process, name in zip(end(one, four), ("one", "four"), strict=True):
        assert process.status == 0 and f"after update {saved}\n" in process.out, process.err
        assert_same_figures(tmp_path / name, whole)


def test_a_run_goes_from_eight_devices_to_one_and_back_and_to_any_other_number_without_flags(whole, eight):
    """Its mesh stays 2 x 2 x 2: what is fitted to fewer devices is not kept. On five, four are used."""
    where, starts = eight["moved"]["run_dir"], eight["moved"]["starts"]
    fitted = [re.findall(r"the mesh 2 x 2 x 2 .* is fitted to (.*?)(?:;|\n)", said) for said in starts]
    assert fitted == [[], ["1 device: 1 x 1 x 1"], ["4 of 5 devices: 1 x 2 x 2"], []]
    meshes = [re.findall(r"(\d) x cpu .* mesh: data (\d), fsdp (\d), model (\d)", said) for said in starts]
    assert meshes == [[tuple(sizes)] for sizes in ("8222", "1111", "4122", "8222")]
    assert Run(Path(where)).read_config().mesh == MeshConfig(2, 2, 2)
    assert_same_figures(Path(where), whole)


def test_a_mesh_that_does_not_fit_makes_no_run(reviews, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["--config", str(ROOT / "configs" / "tiny.py"), "--data", str(reviews), "--run-dir", str(run_dir)]
    with pytest.raises(UserError, match="a mesh of 3 x 1 x 1 .* does not fit 1 device; change `mesh.data`"):
        run([*arguments, "--mesh.data", "3"])
    assert [path.name for path in run_dir.iterdir()] == [".lock"], "with this alone another try is let in"


def test_a_state_has_the_same_fingerprint_and_numbers_on_every_mesh(eight):
    assert len(eight["restored"]) == 4
    for mesh, printed in eight["restored"].items():
        assert printed == eight["restored"]["saved"], mesh


@pytest.mark.parametrize("mesh", ["1x1x1", *MESHES])
def test_rows_that_are_placed_are_the_rows_that_were_given(mesh, eight):
    found, (data, fsdp, _) = eight["rows"][mesh], map(int, mesh.split("x"))
    assert found["own"] == [*range(16)] and found["placed"], "one process has all rows"
    assert found["filled"] and found["length"] % (data * fsdp) == 0


TREE = {"a": jnp.zeros((3, 5), jnp.float32), "b": jnp.zeros(4, jnp.int32), "c": jnp.zeros((2, 3), jnp.bfloat16)}
some_trees = st.fixed_dictionaries({name: st.binary(min_size=a.nbytes, max_size=a.nbytes) for name, a in TREE.items()})


def fingerprint(tree):
    """The fingerprint of arrays of these bytes, NaN among them."""
    numbers = {name: np.frombuffer(tree[name], a.dtype).reshape(a.shape) for name, a in TREE.items()}
    return checkpoint.fingerprint(jax.device_put(numbers))


@settings(deadline=None, max_examples=100)
@given(some_trees, st.data())
def test_a_fingerprint_changes_with_every_bit(tree, data):
    name = data.draw(st.sampled_from(sorted(TREE)))
    bit = data.draw(st.integers(0, 8 * len(tree[name]) - 1))
    changed = bytearray(tree[name])
    changed[bit // 8] ^= 1 << bit % 8
    assert fingerprint(tree) == fingerprint(dict(tree))
    assert fingerprint(tree | {name: bytes(changed)}) != fingerprint(tree)


@settings(deadline=None, max_examples=100)
@given(some_trees, st.data())
def test_a_fingerprint_changes_where_two_numbers_are_swapped(tree, data):
    name = data.draw(st.sampled_from(sorted(TREE)))
    numbers = np.frombuffer(tree[name], f"u{TREE[name].dtype.itemsize}").copy()
    i, j = data.draw(st.tuples(*[st.integers(0, len(numbers) - 1)] * 2))
    assume(numbers[i] != numbers[j])
    numbers[[i, j]] = numbers[[j, i]]
    assert fingerprint(tree | {name: numbers.tobytes()}) != fingerprint(tree)
