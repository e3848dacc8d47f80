"""What does a GPU or a TPU that is not there get to run? `python -m benchmarks.compiled` from the repository's root.

Compiles the real update ahead of time with `train.py --plan`, for an H200 and a v5e, with the plain loops and with the
kernels of our own. jax's plugins for such hardware do not get on with a machine that lacks it, so each has an
environment of its own below build/, made at the first call (0.5 GB of downloads). The GPU's takes a CUDA assembler,
ptxas, on the PATH.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import tyro

from benchmarks.common import console, machine, tell

ROOT = Path(__file__).parent.parent
INSTALL = {"h200": ["-e", ".", "jax[cuda13-local]"], "v5e:1x1": ["-e", ".[tpu]"]}
PROGRAMS = [
    ("h200", "--model.hidden 4096 --batch-size 128"),
    ("h200", "--model.hidden 4096 --batch-size 256"),
    ("h200", "--model.hidden 4096 --batch-size 256 --remat-every 16"),
    ("h200", "--model.hidden 4096 --batch-size 128 --kernels pallas"),
    ("h200", "--model.hidden 4096 --batch-size 256 --kernels pallas"),
    ("v5e:1x1", "--model.hidden 2048 --batch-size 128"),
    ("v5e:1x1", "--model.hidden 2048 --batch-size 128 --kernels pallas"),
    ("v5e:1x1", "--model.hidden 1024 --batch-size 128 --kernels pallas"),
]


def environment(hardware: str) -> Path:
    """The Python of an environment that compiles for this hardware."""
    folder = ROOT / "build" / hardware.partition(":")[0]
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        console.print(f"making {folder} ...")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "-q", "-c", "constraints.txt", *INSTALL[hardware]]
        subprocess.run(install, cwd=ROOT, check=True)
        (folder / "ready").touch()
    return python


def planned(hardware: str, settings: str) -> dict[str, object]:
    """What the compiler says of one update of the paper's config with these settings."""
    command = [
        environment(hardware),
        "train.py",
        "--config",
        "configs/amazon.py",
        "--plan",
        hardware,
        "--json",
        *settings.split(),
    ]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # the same on machines that have some
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=hidden)
    plan = json.loads(done.stdout or "{}")  # nothing but after an error
    if not plan.get("memory"):
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    memory, loops = plan["memory"], plan["time_loops"] or []
    kernels = {loop["backward"]: f"{loop['products']} + {loop['others']}" for loop in loops}
    return {
        "hardware": hardware,
        "settings": settings,
        "GB": f"{(memory['peak_bytes'] - memory['argument_bytes']) / 1e9:.2f}",
        "forward": kernels.get(False, "no loop"),
        "backward": kernels.get(True, "no loop"),
        "of a weight's size": "some" if plan["writes_weight_every_byte"] else "none",
        "s": round(plan["compile_seconds"]),
    }


def main(json: Path | None = None) -> None:
    """Tell memory, and kernels a byte (products + others), of every program; "no loop": a kernel does whole batches.

    Args:
        json: File of JSON lines to which the figures are added.
    """
    console.print(machine())
    tell(json, "compiled", [planned(*program) for program in PROGRAMS])


if __name__ == "__main__":
    tyro.cli(main)
