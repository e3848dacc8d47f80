"""The update of the paper's size as a GPU runs it, compiled ahead of time: no GPU and no driver is needed."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from helpers.programs import ROOT
from mlstm_jax.planning import hlo

HLO = """
HloModule jit_f

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%store (all: bf16[9,4,8], row: f32[4,8], t: s32[]) -> bf16[9,4,8] {
  %all = bf16[9,4,8]{2,1,0} parameter(0)
  %narrow = bf16[4,8]{1,0} convert(%row)
  %row.1 = bf16[1,4,8]{2,1,0} bitcast(%narrow)
  ROOT %stored = bf16[9,4,8]{2,1,0} dynamic-update-slice(%all, %row.1, %t, %zero, %zero)
}

%gemm (a: bf16[4,8], w: bf16[8,32]) -> f32[4,32] {
  ROOT %dot.1 = f32[4,32]{1,0} dot(%a, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%gates (z: f32[4,32]) -> (f32[4,8], bf16[4,8]) {
  %c = f32[4,8]{1,0} add(%z, %z)
  %h = bf16[4,8]{1,0} convert(%c)
  ROOT %both = (f32[4,8]{1,0}, bf16[4,8]{1,0}) tuple(%c, %h)
}

%forward (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state = (s32[], f32[4,8]{1,0}, bf16[9,4,8]{2,1,0}) parameter(0)
  %all.1 = bf16[9,4,8]{2,1,0} get-tuple-element(%state), index=2
  %start = ((bf16[9,4,8]{2,1,0}, s32[]), bf16[9,4,8]{2,1,0}, u32[]) fusion-start(%all.1, %x, %t), calls=%store
  %z = f32[4,32]{1,0} fusion(%a, %w), kind=kCustom, calls=%gemm, backend_config={"kind":"__triton_gemm"}
  %done = bf16[9,4,8]{2,1,0} fusion-done(%start)
  %fused = (f32[4,8]{1,0}, /*index=1*/bf16[4,8]{1,0}) fusion(%z), kind=kLoop, calls=%gates
  ROOT %next = (s32[], f32[4,8]{1,0}, bf16[9,4,8]{2,1,0}) tuple(%t, %c.1, %done)
}

%backward (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %called = (f32[4,8]{1,0}, s8[64]{0}) custom-call(%a, %w), custom_call_target="__cublas$lt$matmul"
  %ours = (bf16[4,8], f32[9,4,8]) custom-call(), custom_call_target="triton", output_to_operand_aliasing={{1}: (1, {})}
  %total = f32[] reduce(%z, %zero), dimensions={0,1}, to_apply=%add, metadata={op_name="transpose(jvp())/while/body"}
  ROOT %copied = f32[8,32]{1,0} copy(%accumulator)
}

%outer (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  ROOT %inner = (s32[], f32[4,8]) while(%tuple), condition=%less, body=%backward
}

ENTRY %main (w: f32[32,128]) -> f32[] {
  %two = (s32[], f32[4,8]) while(%tuple), condition=%less, body=%outer
  ROOT %one = (s32[], f32[4,8]) while(%tuple.1), condition=%less, body=%forward
}
"""


def test_kernels_of_a_step_and_what_they_write_are_counted():
    forward, backward = hlo.time_loops(HLO)
    assert forward == (False, 1, 2, {"bf16[4,8]": 2, "f32[4,32]": 1, "f32[4,8]": 1}), "in place, a row is written"
    written = {"f32[4,8]": 1, "s8[64]": 1, "bf16[4,8]": 1, "f32[]": 1, "f32[8,32]": 1}
    assert backward == (True, 2, 2, written), "a copy is written whole, what a kernel of ours updates is not"
    assert hlo.elements("bf16[8,32]") == 256 and hlo.elements("f32[]") == 1


def planned(*arguments):
    """The figures of the paper's update on an H200."""
    command = [sys.executable, "train.py", "--config", "configs/amazon.py", "--plan", "h200", "--json", *arguments]
    # As on a machine with neither GPU nor driver, whatever this one has.
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="jax's CUDA plugin is not installed")
@pytest.mark.parametrize(
    "arguments, most, kernels",
    [
        ([], 4e9, {"forward": 7, "backward": 7}),
        (["--batch-size", "256", "--remat-every", "16"], 4e9, {"forward": 5, "backward": 7}),
        (["--batch-size", "256"], 5.5 * 2**30, {"forward": 7, "backward": 7}),
        (["--kernels", "pallas"], 4e9, {"forward": 1, "backward": 1}),
    ],
)
def test_the_papers_update_is_lean_on_an_h200(arguments, most, kernels):
    """At most 4 GB besides what is kept, few kernels a byte, and nothing of a weight's size written at any byte."""
    found = planned(*arguments)
    assert found["memory"]["peak_bytes"] - found["memory"]["argument_bytes"] <= most
    assert [loop["backward"] for loop in found["time_loops"]] == [False, True]
    for loop in found["time_loops"]:
        assert loop["products"] == 2 and loop["others"] <= kernels["backward" if loop["backward"] else "forward"]
        sizes = [hlo.elements(array) for array in loop["written"]]
        assert len(sizes) > 1 and max(sizes) < 4096**2
    assert found["writes_weight_every_byte"] is False
