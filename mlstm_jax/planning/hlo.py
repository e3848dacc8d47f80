"""From a compiled program's text: its collectives, and what a step of its loops does."""

import math
import re
from collections import Counter
from typing import NamedTuple

COLLECTIVES = re.compile(r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{\n((?:.*\n)*?)\}", re.M)
INSTRUCTION = re.compile(r"^ *(ROOT )?%(\S+) = (.+?) ([a-z][a-z-]*)\((.*?)\)(?:, (.*))?$", re.M)
NO_KERNEL = re.compile("parameter|constant|tuple|get-tuple-element|bitcast|opt-barrier|after-all|.*-done")


class Loop(NamedTuple):
    """One step of a loop over time, as a GPU runs it."""

    backward: bool
    products: int
    others: int  # kernels besides
    written: Counter[str]  # what they all write, "bf16[128,4096]" -> how many


def collectives(hlo: str) -> tuple[Counter[str], Counter[str]]:
    """The collectives of an optimised HLO module, as "all-reduce f32[64,4096]": in bodies of loops, and elsewhere.

    A TPU does some in a chain of fusions, beside other work; such a one is where its chain starts.
    """
    found, calls, bodies, name, chain = {}, {}, [], None, None
    for line in hlo.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = head[1]
            found[name], calls[name], chain = Counter(), [], None
        if name is None:
            continue
        if match := COLLECTIVES.search(line):
            shapes = SHAPE.findall(match[1])
            size = lambda shape: math.prod(int(n) for n in shape[1].split(",") if n)
            kind, dims = max(shapes, key=size)
            chain = f"{match[2]} {kind}[{dims}]"
            found[name][chain] += "chain_id=" not in line
        found[name][chain] += '"AsyncCollectiveStart"' in line
        bodies += re.findall(r"\bbody=%?([\w.\-]+)", line)
        calls[name] += re.findall(r"\b(?:body|condition|calls|to_apply)=%?([\w.\-]+)", line)
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            calls[name] += re.findall(r"[\w.\-]+", branches)
    inside, ahead = set(), bodies
    while ahead:
        if (name := ahead.pop()) not in inside:
            inside.add(name)
            ahead += calls.get(name, [])
    total = lambda names: sum((found[name] for name in names), Counter())  # without those that count 0
    return total(inside & found.keys()), total(found.keys() - inside)


def time_loops(hlo: str) -> list[Loop]:
    """What the bodies of an optimised HLO module's innermost loops do, forward before backward.

    Of an array that is updated in place only the part that is written counts, or where a kernel of ours does that, none
    of it; an array that is copied counts whole.
    """
    parts = {name: [m.groups("") for m in INSTRUCTION.finditer(text)] for name, text in COMPUTATION.findall(hlo)}
    called = lambda more: [name for name in re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", more) if name in parts]

    def multiplies(operation: str, more: str) -> bool:
        inner = any(multiplies(op, m) for name in called(more) for _, _, _, op, _, m in parts[name])
        # As a target, triton is a kernel of ours: every one of them is a product and what follows it.
        return (
            inner or operation in ("dot", "convolution") or bool(re.search('target="[^"]*(gemm|matmul|triton)', more))
        )

    def writes(instructions: list[tuple[str, ...]], root: tuple[str, ...]) -> list[str]:
        _, _, shape, operation, operands, more = root
        named = {i[1]: i for i in instructions}
        operands = [named[name] for name in re.findall(r"%([\w.\-]+)", operands) if name in named]
        if operation == "tuple":
            return [written for one in operands for written in writes(instructions, one)]
        if operation == "bitcast" and operands:
            return writes(instructions, operands[0])
        if operation == "dynamic-update-slice":
            shape = operands[1][2]
        elif operation.startswith(("fusion", "async-start", "call")):
            inside = parts[called(more)[0]]
            return writes(inside, next(i for i in inside if i[0]))
        in_place = set(map(int, re.findall(r"\{(\d+)\}: \(", more.partition("output_to_operand_aliasing={")[2])))
        shapes = re.findall(r"([a-z]+[0-9]*)\[(?:1,)*([0-9,]*)\]", shape)
        return [f"{kind}[{dims}]" for i, (kind, dims) in enumerate(shapes) if i not in in_place]

    found = []
    for body in re.findall(r"\bbody=%?([\w.\-]+)", hlo):
        kernels = [i for i in parts.get(body, []) if not NO_KERNEL.fullmatch(i[3])]
        if not any(i[3] == "while" for i in kernels):
            products = sum(multiplies(operation, more) for _, _, _, operation, _, more in kernels)
            backward = any("transpose(" in more for *_, more in kernels)
            written = Counter(shape for i in kernels for shape in writes(parts[body], i))
            found.append(Loop(backward, products, len(kernels) - products, written))
    return sorted(found, key=lambda loop: loop.backward)


def elements(shape: str) -> int:
    """How many numbers an array like "bf16[128,4096]" holds."""
    return math.prod(map(int, re.findall(r"\d+(?=[,\]])", shape)))
