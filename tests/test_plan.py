"""Planning for hardware that is not there: what the compiler says is read rightly, and the estimate adds up."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import jax
import pytest

from helpers.programs import ROOT, TINY
from mlstm_jax import hardware
from mlstm_jax.cli import train
from mlstm_jax.config import Config, ModelConfig
from mlstm_jax.errors import UserError
from mlstm_jax.model import parameters
from mlstm_jax.planning import hlo, plan, topology
from mlstm_jax.training import sharding, updates

PAPER = Config(model=ModelConfig(hidden=4096, embed=64), batch_size=128, seq_length=256)
ONE = {"data": 1, "fsdp": 1, "model": 1}

HLO = """
HloModule jit_f, entry_computation_layout={()->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%inner.clone (p: f32[64,32]) -> f32[64,32] {
  ROOT %r = f32[64,32]{1,0:T(8,128)S(1)} all-reduce(f32[64,32] %p), to_apply=%add
}

%body.1 (state: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %f = f32[64,32]{1,0} fusion(f32[64,32] %x), kind=kLoop, calls=%inner.clone
  %g = (f32[8,32]{1,0}, f32[64,32]{1,0}) all-gather-start(f32[8,32] %y), dimensions={0}
  %h = f32[64,32]{1,0} all-gather-done((f32[8,32], f32[64,32]) %g)
  %go_on = f32[64,128]{1,0} all-gather(f32[8,128] %w), channel_id=1, frontend_attributes={chain_id="0"}
}

%condition.1 (state: (s32[], f32[64,32])) -> pred[] {
  ROOT %less = pred[] compare(s32[] %i, s32[] %n), direction=LT
}

%started (w: f32[8,128]) -> (f32[8,128], f32[64,128]) {
  %begin = f32[64,128]{1,0} all-gather(f32[8,128] %w), channel_id=1, frontend_attributes={chain_id="0"}
  ROOT %s = (f32[8,128], f32[64,128]) custom-call(f32[64,128] %begin), custom_call_target="AsyncCollectiveStart"
}

ENTRY %main (w: f32[32,128]) -> f32[] {
  %loop = (s32[], f32[64,32]) while((s32[], f32[64,32]) %t), condition=%condition.1, body=%body.1
  %a = (f32[8,128], f32[64,128]) fusion(f32[8,128] %w), kind=kOutput, calls=%started
  %all = (f32[32,128]{1,0}, f32[]) all-reduce(f32[32,128] %d, f32[] %l), to_apply=%add
  %finite = ((pred[2]{0}), pred[2]{0}) all-reduce-start(%both), to_apply=%and
  ROOT %scatter = f32[4,128]{1,0} reduce-scatter(f32[32,128] %d), dimensions={0}, to_apply=%add
}
"""


def test_collectives_in_bodies_of_loops_are_told_from_others():
    in_loop, outside = hlo.collectives(HLO)
    assert in_loop == {"all-reduce f32[64,32]": 1, "all-gather f32[64,32]": 1}
    matrices = {"all-reduce f32[32,128]": 1, "reduce-scatter f32[4,128]": 1, "all-gather f32[64,128]": 1}
    assert outside == matrices | {"all-reduce pred[2]": 1}


def test_the_papers_epoch_costs_what_it_should():
    """517 MFLOP a byte and 2.0e19 an epoch with the tables; 40 % of an H200's peak takes some 14 hours."""
    per_byte = hardware.flops_per_byte(PAPER.model)
    assert per_byte == pytest.approx(510e6, rel=0.01)
    assert hardware.parameters(PAPER.model) == 86_319_360
    hours = plan.EPOCH * per_byte / (0.4 * hardware.CHIPS["h200"].flops) / 3600
    assert hours == pytest.approx(14, rel=0.05)


def test_below_the_ridge_the_time_loop_takes_the_time_of_reading_its_matrices():
    chip = hardware.CHIPS["h200"]
    time = lambda batch_size: plan.seconds_by_part(replace(PAPER, batch_size=batch_size), chip, ONE, "bfloat16")[
        "time_loop"
    ]
    reading = 2 * 256 * 5 * 4096**2 * 2 / (plan.OF_BANDWIDTH * chip.bandwidth)
    assert time(16) == time(64) == pytest.approx(reading)
    assert time(1024) == pytest.approx(2 * time(512)) and time(512) > 2 * reading


def test_what_bounds_the_time_loop_is_named():
    chip, bound = hardware.CHIPS["h200"], lambda config: plan.estimate(config, chip, ONE, "bfloat16").time_loop_bound
    assert (
        bound(replace(PAPER, batch_size=16)) == "memory_bandwidth"
        and bound(replace(PAPER, batch_size=1024)) == "compute"
    )
    assert bound(replace(PAPER, model=ModelConfig(hidden=64))) == "latency"


def test_an_estimate_adds_up():
    chip = hardware.CHIPS["v5e"]
    found = plan.estimate(PAPER, chip, ONE | {"data": 8}, "bfloat16")
    assert found.seconds_per_update == sum(found.seconds_by_part.values())
    assert found.bytes_per_second * found.seconds_per_update == pytest.approx(128 * 256)
    assert found.bytes_per_second_per_chip == pytest.approx(found.bytes_per_second / 8)
    assert 0 < found.model_flops_utilization < 1 and found.epoch_source == "paper"
    assert found.seconds_per_epoch == pytest.approx(plan.EPOCH / found.bytes_per_second)


@pytest.fixture
def here(monkeypatch):
    """A plan whose chips are this machine's devices, so that it is compiled for them."""
    monkeypatch.setattr(plan, "compilable", lambda hardware: jax.devices()[:1])
    return ["--config", TINY, "--plan", "v5e:1x1"]


def test_json_has_the_figures_that_the_words_are_made_of(here, capsys):
    assert train.run([*here, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    size = ModelConfig(hidden=16, embed=8)
    assert found["hidden"] == 16 and found["mesh"] == ONE and found["chips"] == 1 and found["kernels"] == "xla"
    assert found["parameters"] == hardware.parameters(size) and found["flops_per_byte"] == hardware.flops_per_byte(size)
    assert found["flops_per_update"] == found["flops_per_byte"] * found["batch_size"] * found["seq_length"]
    memory = found["memory"]
    assert memory["argument_bytes"] > 3 * 4 * found["parameters"], "parameters and Adam's moments, float32"
    others = ("argument_bytes", "output_bytes", "temporary_bytes", "code_bytes")
    assert memory["peak_bytes"] == sum(memory[kind] for kind in others) - memory["alias_bytes"]
    assert found["fits"] and found["memory_used"] == memory["peak_bytes"] / found["memory_bytes"]
    assert found["compiler_error"] is None and found["compile_seconds"] > 0 and found["largest_hidden"] is None
    assert found["collectives"] == {"in_time_loop": {}, "once_per_update": {}}
    assert [loop["backward"] for loop in found["time_loops"]].count(True) >= 1
    estimate = found["estimate"]
    assert estimate["seconds_per_update"] == sum(estimate["seconds_by_part"].values())

    assert train.run(here) == 0
    words = capsys.readouterr().out
    assert f"{found['parameters']:,} parameters, {found['flops_per_byte']:,} floating-point operations a byte" in words
    assert f"{estimate['bytes_per_second']:,.0f} bytes/s" in words and "it fits" in words
    assert f"{memory['argument_bytes'] / 2**30:.2f} GiB kept" in words


def test_json_of_an_update_that_the_compiler_refuses(here, monkeypatch, capsys):
    monkeypatch.setattr(plan, "compile_update", lambda config, mesh, precision: "Ran out of memory in hbm")
    assert train.run([*here, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"] and found["compiler_error"] == "Ran out of memory in hbm"
    assert found["memory"] is found["collectives"] is found["time_loops"] is None
    assert train.run(here) == 1
    assert "it does not fit" in (words := capsys.readouterr().out) and words.endswith("Ran out of memory in hbm\n")


def test_json_without_a_plan_is_refused():
    with pytest.raises(UserError, match="--json goes with --plan"):
        train.run(["--config", TINY, "--json"])


def test_devices_share_the_work_and_pay_for_talking():
    chip = hardware.CHIPS["v5e"]
    many = replace(PAPER, batch_size=2048)
    alone = plan.seconds_by_part(many, chip, ONE, "bfloat16")
    eight = plan.seconds_by_part(many, chip, ONE | {"data": 8}, "bfloat16")
    assert eight["time_loop"] == pytest.approx(alone["time_loop"] / 8) and alone["summing_gradients"] == 0
    assert eight["summing_gradients"] > 0 and eight["gathering_weights"] == 0
    split = plan.seconds_by_part(many, chip, ONE | {"model": 8}, "bfloat16")
    assert split["sums_over_model"] > 0 and split["time_loop"] == pytest.approx(alone["time_loop"] / 8)


@pytest.mark.parametrize("units, most", [(4096, 5248), (128, 5248), (9000, 5248), (5248, 5248)])
def test_the_most_units_that_fit_are_found_whatever_one_begins_with(monkeypatch, units, most):
    chip, tried = hardware.CHIPS["v5e"], []

    def compile_update(config, mesh, precision):
        hidden = config.model.hidden
        tried.append(hidden)
        need = 600 * hidden**2 + 50_000 * hidden
        memory = plan.Memory(need, need // 3, 0, 0, need - need // 3, 0)
        return "Ran out of memory" if need > 1.2 * chip.memory else plan.Compiled(memory, None, None)

    monkeypatch.setattr(plan, "compile_update", compile_update)
    config = replace(PAPER, model=ModelConfig(hidden=units))
    found = plan.largest(config, chip, sharding.one_device(), "bfloat16")
    assert (
        found
        == most
        == math.floor(max(h for h in range(1, 9000) if 600 * h**2 + 50_000 * h <= chip.memory) / 128) * 128
    )
    assert len(tried) == len(set(tried)) <= 9


@pytest.mark.parametrize(
    "name, printed",
    [
        ("v9:2x2", "no hardware 'v9'; there are v4, v5e"),
        ("v5e", "name the topology too, as v5e:2x4, or the accelerator type, as v5e-8"),
        ("v5e:2x", "name the topology too"),
        ("v5e:0x4", "name the topology too"),
        ("v5e-24", "name the topology too"),
        ("v5p-1", "name the topology too"),
        ("h200:9", "a box has 1 to 8 GPUs; name them as h200:8"),
        ("h200-8", "a box has 1 to 8 GPUs"),
        ("h200:", "a box has 1 to 8 GPUs"),
        ("\n", "no hardware '"),
    ],
)
def test_hardware_that_is_not_known_is_one_clear_line(monkeypatch, name, printed):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UserError, match=printed):
        train.run(["--config", str(ROOT / "configs" / "amazon.py"), "--plan", name])


@pytest.mark.parametrize(
    "name, module, extra", [("v5e:2x2", "libtpu", "tpu"), ("h200", "jax_plugins.xla_cuda13", "cuda")]
)
def test_a_missing_plugin_is_named(monkeypatch, name, module, extra):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'mlstm-jax\[{extra}\]'"):
        train.run(["--config", str(ROOT / "configs" / "amazon.py"), "--plan", name])


@pytest.mark.parametrize(
    "name, bounds",
    [
        ("h100", (1,)),
        ("H100:8", (8,)),
        ("b200:4", (4,)),
        ("v5e:4x8", (4, 8)),
        ("v5litepod-1", (1, 1)),
        ("v5litepod-4", (2, 2)),
        ("v5litepod-8", (2, 4)),
        ("v5e-32", (4, 8)),
        ("v6e-256", (16, 16)),
        ("v5p-8", (2, 2, 1)),
        ("v5p-16", (2, 2, 2)),
        ("v5p-32", (2, 2, 4)),
        ("v4-64", (2, 4, 4)),
        ("v5p-128", (4, 4, 4)),
    ],
)
def test_hardware_is_named_as_its_users_do(name, bounds):
    found = topology.parse(name)
    assert found.bounds == bounds and found.devices == math.prod(bounds) and found.chip is hardware.CHIPS[found.name]


NOTE = "`plan` for a TPU takes libtpu"


@pytest.fixture
def half_compilable(monkeypatch):
    """GPUs are this machine's devices, TPUs cannot be compiled for."""

    def compilable(hardware):
        if hardware.name not in topology.GPUS:
            raise UserError(NOTE)
        return jax.devices()[:1] * hardware.devices

    update = lambda config, mesh, precision: plan.Compiled(plan.Memory(3 << 30, 1, 1, 1, 1, 1), None, None)
    monkeypatch.setattr(plan, "compilable", compilable)
    monkeypatch.setattr(plan, "compile_update", update)


def test_the_table_says_what_is_compiled_and_what_is_a_formula(half_compilable, capsys):
    args = ["--config", str(ROOT / "configs" / "amazon.py"), "--plan", "all"]
    assert train.run([*args, "--json"]) == 0
    rows = {row["hardware"]: row for row in json.loads(capsys.readouterr().out)}
    assert [*rows] == plan.ALL and {row["compiled"] for row in rows.values()} == {True, False}
    for name, row in rows.items():
        known = topology.parse(name)
        assert math.prod(row["mesh"].values()) == row["devices"] == known.devices
        assert row["compiled"] == (known.name in topology.GPUS) and row["note"] == (None if row["compiled"] else NOTE)
        assert row["memory_used"] == 3 << 30 if row["compiled"] else 1.5 < row["memory_used"] / 2**30 < 4
        assert row["seconds_per_epoch"] == plan.estimate(PAPER, known.chip, row["mesh"], "bfloat16").seconds_per_epoch

    assert train.run(args) == 0
    words = capsys.readouterr().out
    assert words.startswith(
        "4,096 units, batch size 128, sequences of 256 bytes; an epoch is the paper's 38,800,000,000"
    )
    assert re.search(r"\| h100:8 \| 8 \| 8 x 1 x 1 \| 16 \| 3.0 \| 74.5 \| the compiler \| [\d.]+ \|\n", words)
    assert re.search(r"\| v5p-64 \| 32 \| 32 x 1 x 1 \| 4 \| 1.9 \| 95.0 \| a formula \| [\d.]+ \|\n", words)
    assert "v5e-8, v5e-32, v5p-8, v5p-64, v6e-8, v6e-32: --plan for a TPU takes libtpu\n" in words


def test_in_the_table_a_mesh_or_memory_that_does_not_fit_is_said(half_compilable, monkeypatch, capsys):
    monkeypatch.setattr(plan, "compile_update", lambda config, mesh, precision: "Ran out of memory")
    args = ["--config", str(ROOT / "configs" / "amazon.py"), "--plan", "all", "--mesh.model", "2"]
    assert train.run(args) == 0
    words = capsys.readouterr().out
    assert "| h100 | 1 | none fits |  |  | 74.5 |  |  |\n" in words
    assert "| h100:8 | 8 | 4 x 1 x 2 | 32 | more: does not fit | 74.5 | the compiler |  |\n" in words


@pytest.mark.parametrize(
    "name, hidden, rows, mesh, compiled",
    [
        ("h100", 4096, 128, (1, 1, 1), 3.9),
        ("h100:8", 4096, 128, (8, 1, 1), 1.8),
        ("b200", 4096, 128, (1, 1, 1), 3.7),
        ("v5e-8", 4096, 128, (8, 1, 1), 2.0),
        ("v5e-8", 4096, 2048, (8, 1, 1), 16.5),
        ("v5e-8", 8192, 128, (1, 4, 2), 3.8),
        ("v5e-32", 4096, 128, (32, 1, 1), 1.7),
        ("v5p-8", 4096, 128, (4, 1, 1), 3.0),
        ("v5p-64", 4096, 2048, (32, 1, 1), 5.5),
        ("v6e:2x2", 4096, 128, (1, 2, 2), 2.5),
    ],
)
def test_the_formula_for_memory_is_near_to_the_compilers_figures(name, hidden, rows, mesh, compiled):
    """The figures, in GiB, are those of jax 0.12.0.1 and libtpu 0.0.50.1."""
    config = replace(PAPER, batch_size=rows, model=ModelConfig(hidden=hidden))
    chip, axes = topology.parse(name).chip, dict(zip(sharding.AXES, mesh, strict=True))
    found = plan.memory(config, chip, axes, "bfloat16")
    assert found / 2**30 == pytest.approx(compiled, rel=0.33)
    for less in (dict(remat_every=32), dict(grad_accumulation=2)):
        assert plan.memory(replace(config, **less), chip, axes, "bfloat16") < found


def test_a_run_explains_itself(reviews, tmp_path, capsys):
    args = ["--config", TINY, "--data", str(reviews), "--run-dir", str(tmp_path / "run"), "--updates", "4"]
    assert train.run([*args, "--model.hidden", "256", "--profile", "1"]) == 0
    out = capsys.readouterr().out
    assert f"1 x {jax.devices()[0].platform}" in out and "mesh: data 1, fsdp 1, model 1" in out
    size = ModelConfig(hidden=256, embed=8)
    assert hardware.parameters(size) == sum(p.size for p in jax.tree.leaves(parameters.init(size, 0)))
    assert f"256 units, {hardware.parameters(size):,} parameters" in out and "4 of 4 rows a device" in out
    assert f"{6 * (5 * 256**2 + 256 * 256):,} floating-point operations a byte" in out
    assert "warning: fewer than 64 rows a device (4)" in out and "the first update took" in out
    assert "a trace of 1 updates is in" in out and list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.parametrize("flag, there", [("avx512_bf16", True), ("amx_bf16", True), ("avx512f", False)])
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_bfloat16_products_of_a_cpu_are_pointed_out(monkeypatch, tmp_path, flag, there, precision):
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor : 0\nflags : fpu {flag} sse\n")
    assert hardware.cpu_has_bfloat16(info) == there and not hardware.cpu_has_bfloat16(tmp_path / "none")
    monkeypatch.setattr(plan, "cpu_has_bfloat16", lambda: there)
    config, mesh = Config(model=ModelConfig(hidden=8, embed=4), precision=precision), sharding.one_device()
    lines = plan.explain(config, updates.draw_state(config, mesh), mesh, "float32", 1)
    assert any("`precision` bfloat16" in line for line in lines) == (there and precision == "auto")


def planned(*args):
    return subprocess.run([sys.executable, "train.py", *args], cwd=ROOT, capture_output=True, text=True, timeout=600)


@needs_libtpu
def test_a_plan_for_chips_that_are_not_there():
    done = planned("--config", "configs/tiny.py", "--plan", "v5e:2x2", "--batch-size", "8", "--mesh.model", "2")
    assert done.returncode == 0, done.stderr
    assert "4 x TPU v5 lite (data 2, fsdp 1, model 2): 16 units" in done.stdout
    assert "collectives in the time loop: 2 x all-reduce f32[4,16]" in done.stdout
    assert "it fits" in done.stdout and "hours for the paper's" in done.stdout


@needs_libtpu
def test_a_model_that_does_not_fit_ends_with_status_1():
    done = planned("--config", "configs/amazon.py", "--plan", "v5e:2x4", "--model.hidden", "16384")
    assert done.returncode == 1, done.stderr
    assert "it does not fit" in done.stdout and "out of memory" in done.stdout


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, in_loop",
    [
        (["v5e:2x4"], {}),
        (["v5e:2x4", "--mesh.data", "1", "--mesh.fsdp", "8"], {}),
        (["v6e:2x2", "--mesh.data", "1", "--mesh.fsdp", "2", "--mesh.model", "2"], {"all-reduce f32[64,4096]": 2}),
    ],
)
def test_in_the_papers_update_no_weight_moves_inside_the_time_loop(arguments, in_loop):
    done = planned("--config", "configs/amazon.py", "--json", "--plan", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["collectives"]["in_time_loop"] == in_loop


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["v5e:1x1", "--batch-size", "128"], ["v5e:2x4", "--batch-size", "1024"]])
def test_both_matrices_of_2048_units_stay_in_a_chips_vmem(arguments):
    done = planned(
        "--config", "configs/amazon.py", "--model.hidden", "2048", "--kernels", "pallas", "--plan", *arguments
    )
    assert done.returncode == 0, done.stderr
    assert "time loops: kernels of our own" in done.stdout and "it fits" in done.stdout
