"""train.py, sending itself a signal when it takes a batch.

`python -m helpers.signalled_training POSITION SIGNAL ARGUMENT...`
"""

import runpy
import sys

from helpers.programs import ROOT, interrupting
from mlstm_jax.corpus import batches

batches.stream = interrupting(batches.stream, *map(int, sys.argv[1:3]))
script = ROOT / "train.py"
sys.argv = [str(script), *sys.argv[3:]]
runpy.run_path(str(script), run_name="__main__")
