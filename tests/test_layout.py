"""The rooms of the package: imports run one way, and in no circle; the command line is known to cli/ alone."""

import ast
import json
import re
import sys
import tomllib
from graphlib import TopologicalSorter

import pytest

from helpers.programs import ROOT
from mlstm_jax.cli.program import PARAMETERS

# A room imports only from rooms that stand to its right, and from itself.
ORDER = (
    "cli demo sentiment planning inference report weights training tasks corpus model unit_record run hardware config "
    "progress storage disk text signals errors"
).split()


def modules():
    """Every module of the package, and the modules of the package that it imports, anywhere in it."""
    files = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "mlstm_jax").rglob("*.py")
    }
    names = {name.removesuffix(".__init__"): path for path, name in files.items()}
    found = {}
    for name, path in names.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: imports are absolute"
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                # `from package import module` imports the module, any other import the package it names.
                imported |= {part if part in names else node.module for part in parts}
        found[name] = {other for other in imported if other in names and other != "mlstm_jax"} - {name}
    return found


def room(module):
    return module.split(".")[1]


IMPORTS = {name: imported for name, imported in modules().items() if name.count(".") and "__main__" not in name}


def test_every_room_has_its_place():
    assert {room(name) for name in IMPORTS} == set(ORDER)
    assert len(list((ROOT / "mlstm_jax").glob("[!_]*"))) <= 26


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_imports_run_from_left_to_right(name):
    wrong = [other for other in IMPORTS[name] if ORDER.index(room(other)) < ORDER.index(room(name))]
    assert not wrong, f"{name} imports {', '.join(wrong)}"


def test_there_is_no_circle():
    assert list(TopologicalSorter(IMPORTS).static_order())


def test_every_package_that_is_imported_is_asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    names = {re.match(r"[\w-]+", line)[0].lower().replace("-", "_") for line in asked}
    names |= {"sklearn", "orbax", "jax_plugins", "libtpu"}  # of scikit-learn, orbax-checkpoint, jax[cuda13], jax[tpu]
    ours = {path.stem for path in (ROOT / "tests").rglob("*")} | {"benchmarks", "mlstm_jax"}
    for path in (path for folder in ("mlstm_jax", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) else []
            tops = {name.partition(".")[0] for name in found}
            assert {top.lower() for top in tops - sys.stdlib_module_names - ours} <= names, path


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_short_and_kept_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert len(cells) <= 10
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


# Text outside cli/ that names flags or commands which are none of our messages'.
OTHERS = {
    "corpus/beam.py": r"--runner=",  # an option of Apache Beam
    "corpus/packaged.py": r"pip install --no-deps",
    "report/html_page.py": r"--[a-z]+(?=[:)])",  # variables of CSS
    "weights/card.py": r"`python (eval_sst|sample)\.py FOLDER( --sentiment \+2)?`",  # a page for a model hub
}
COMMAND = (
    r"--[a-z]|python3? \w+\.py|\b(train|eval_sst|sample)\.py|\bmlstm (train|eval|sample|score|heatmap|demo|convert)\b"
)


def strings(path):
    """The texts in a file that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described:
            yield node.value


LIBRARY = [path for path in (ROOT / "mlstm_jax").rglob("*.py") if "cli" not in path.parts]


def test_a_library_logs_and_does_not_print():
    calls = {path: re.search(r"\bprint\(", path.read_text(encoding="utf-8")) for path in LIBRARY}
    # The progress of training, tables of results, a signal that ends a program.
    assert {path.name for path, found in calls.items() if found} == {"log.py", "sections.py", "signals.py"}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT / "mlstm_jax")))
def test_a_library_names_parameters_not_flags_and_no_command(path):
    other = OTHERS.get(path.relative_to(ROOT / "mlstm_jax").as_posix(), "(?!)")
    for text in strings(path):
        assert not re.search(COMMAND, re.sub(other, "", text)), text
        if path.name != "card.py":
            assert set(re.findall("`([a-z][a-z_.]*)`", text)) <= PARAMETERS, text
