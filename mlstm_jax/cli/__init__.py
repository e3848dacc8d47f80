"""The programs: `mlstm COMMAND ...`, each in the module that its command names here."""

import importlib
import sys

from mlstm_jax.cli.program import script

COMMANDS = {
    "train": ("train", "train a model byte by byte"),
    "eval": ("evaluate", "find the sentiment unit of a trained model"),
    "sample": ("sample", "generate reviews, with units held where asked"),
    "score": ("score", "score reviews by the sentiment unit"),
    "heatmap": ("heatmap", "show a text byte by byte, coloured by a unit"),
    "demo": ("demo", "serve a page to type, write and score on"),
    "convert": ("convert", "convert weights to another format"),
    "corpus": ("corpus", "prepare reviews of any size for training"),
}


def mlstm() -> None:
    """The installed command: runs the program that the first argument names, with the others."""
    command, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if command in COMMANDS:
        module = importlib.import_module(f"mlstm_jax.cli.{COMMANDS[command][0]}")
        sys.argv = [f"mlstm {command}", *arguments]
        script(lambda: module.run(sys.argv[1:]))
    elif command == "--version":
        from mlstm_jax import __version__

        print(f"mlstm_jax {__version__}")
    else:
        known = "\n".join(f"  {name:8}  {summary}" for name, (_, summary) in COMMANDS.items())
        usage = (
            f"usage: mlstm COMMAND ...\n\n{known}\n\nmlstm COMMAND --help shows its options; mlstm --version the "
            "version. Every command takes --quiet, which shows warnings and results only."
        )
        wrong = command not in ("--help", "-h")
        print(f"error: no command {command!r}\n{usage}" if wrong else usage, file=sys.stderr if wrong else sys.stdout)
        sys.exit(2 * wrong)
