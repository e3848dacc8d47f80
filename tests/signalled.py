"""train.py, sending itself a signal when it takes a batch: `python tests/signalled.py POSITION SIGNAL ARGUMENT...`."""

import runpy
import sys
from pathlib import Path

from launch import interrupting

from mlstm_jax.corpus import batches

batches.stream = interrupting(batches.stream, *map(int, sys.argv[1:3]))
script = Path(__file__).parent.parent / "train.py"
sys.argv = [str(script), *sys.argv[3:]]
runpy.run_path(str(script), run_name="__main__")
