"""Laws of the configs: every field explains itself, nothing wrong passes, and whatever is wrong is said in one line."""

import ast
import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.programs import ROOT
from mlstm_jax import config as configs
from mlstm_jax.cli import arguments, program
from mlstm_jax.config import Config, MeshConfig, ModelConfig
from mlstm_jax.errors import UserError

FILES = sorted((ROOT / "configs").glob("*.py"))

unhurried = settings(deadline=None, max_examples=50)


@pytest.fixture(scope="module")
def without_jax(tmp_path_factory):
    """An environment for programs in which an import of jax or flax fails."""
    folder = tmp_path_factory.mktemp("stubs")
    for name in ("jax", "jaxlib", "flax"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name} is imported')\n")
    path = os.pathsep.join([str(folder), str(ROOT)])
    return os.environ | {"PYTHONPATH": path, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"}


@pytest.fixture(scope="module")
def python(without_jax, tmp_path_factory):
    """Runs a program without jax, in an empty folder."""
    folder = tmp_path_factory.mktemp("empty")

    def run(*args):
        return subprocess.run(
            [sys.executable, *map(str, args)], cwd=folder, env=without_jax, capture_output=True, encoding="utf-8"
        )

    return run


@pytest.fixture(scope="module")
def train(python):
    """Runs train.py without jax: what is asked of it here must be answered before jax is needed."""
    return lambda *args: python(ROOT / "train.py", *args)


@pytest.fixture
def config_file(tmp_path):
    """Writes a config file with these lines after its import, and gives its path."""

    def write(*lines):
        path = tmp_path / "mine.py"
        path.write_text("\n".join(["from mlstm_jax.config import Config, ModelConfig", *lines, ""]))
        return path

    return write


def docstrings(cls):
    """The docstring under each field of a dataclass."""
    body = ast.parse(inspect.getsource(cls)).body[0].body
    pairs = zip(body, body[1:], strict=False)
    return {a.target.id: ast.literal_eval(b.value) for a, b in pairs if isinstance(a, ast.AnnAssign) and is_string(b)}


def is_string(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def flags():
    """Every field by its name on the command line, with the value that configs/quickstart.py gives it."""
    values = configs.to_dict(arguments.load_file(arguments.find_config("quickstart")))
    groups = {name: values.pop(name) for name in ("model", "mesh")}
    flat = values | {f"{group}.{name}": value for group, fields in groups.items() for name, value in fields.items()}
    return {"--" + name.replace("_", "-"): value for name, value in flat.items()}


def refused(result):
    """The error output of a program that refused its input properly."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return " ".join(re.sub("[─│╭╮╰╯]", " ", result.stderr).split())


# Config files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file_loads_with_the_right_types(path):
    config = arguments.load_file(path)  # the hook of conftest.py checks the type of every field
    assert type(config) is Config and type(config.model) is ModelConfig
    assert config.run_dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file_opens_with_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_a_config_files_own_run_folder_is_kept(config_file):
    assert arguments.load_file(config_file("config = Config(run_dir='elsewhere')")).run_dir == "elsewhere"


@pytest.mark.parametrize(
    "lines, message",
    [
        (["config = Config(batch_size=0)"], "line 2: batch_size must be at least 1"),
        (["", "config = Config(batch_size=3"], "line 3: '(' was never closed"),
        (["import nothing_of_this_name"], "line 2: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        (["Config()"], "no object `config = Config(...)` in this file"),
        (["config = dict(batch_size=3)"], "no object `config = Config(...)` in this file"),
    ],
)
def test_what_is_wrong_in_a_config_file_is_said_in_one_line(config_file, lines, message):
    path = config_file(*lines)
    with pytest.raises(UserError) as error:
        arguments.load_file(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ("batch_size=64.0", "batch_size must be int, not 64.0"),
        ("updates='900'", "updates must be int or None, not '900'"),
        ("learning_rate='5e-4'", "learning_rate must be float, not '5e-4'"),
        ("model=256", "model must be ModelConfig, not 256"),
        ("precision='half'", "precision must be one of 'auto', 'float32', 'bfloat16', not 'half'"),
    ],
)
def test_a_wrong_type_in_a_config_file_ends_with_status_2(train, config_file, fields, message):
    assert message in refused(train("--config", config_file(f"config = Config({fields})")))


@pytest.mark.parametrize(
    "fields, message",
    [
        ("batch_sise=3", "line 2: Config has no field 'batch_sise'; the nearest is 'batch_size'"),
        ("model=ModelConfig(hiden=3)", "line 2: ModelConfig has no field 'hiden'; the nearest is 'hidden'"),
        ("hidden=3", "line 2: Config has no field 'hidden'; the nearest is"),
    ],
)
def test_a_misspelt_field_in_a_config_file_ends_with_status_2(train, config_file, fields, message):
    said = refused(train("--config", config_file(f"config = Config({fields})")))
    assert said.startswith("error: ") and message in said


def test_a_syntax_error_in_a_config_file_ends_with_status_2(train, config_file):
    assert "mine.py, line 2: '(' was never closed" in refused(train("--config", config_file("config = Config(")))


def test_a_missing_config_file_ends_with_status_2_and_names_those_there(train, config_file):
    path = config_file("config = Config()")
    said = refused(train("--config", path.with_name("yours.py")))
    assert "no config file" in said and "yours.py" in said and str(path) in said


def test_whole_numbers_are_floats_too():
    program = "from mlstm_jax.config import Config; Config(epochs=2, clip_norm=0, learning_rate=1)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


# The command line


@pytest.fixture(scope="module")
def help_text(train):
    result = train("--help")
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return result.stdout


@pytest.mark.parametrize("cls", [Config, ModelConfig, MeshConfig])
def test_every_field_has_a_sentence(cls):
    explained = docstrings(cls)
    for name in {f.name for f in dataclasses.fields(cls)} - {"model", "mesh"}:
        assert explained[name].endswith(".") and explained[name][0].isupper(), name


@pytest.mark.parametrize("flag", flags())
def test_help_shows_every_field_with_its_default(help_text, flag):
    text = " ".join(re.sub("[─│╭╮╰╯]", " ", help_text).split())
    entry = re.search(rf"{flag}(?:, --no-[a-z-]+)? ((?!--).)*?\(default: ([^)]*)\)", text)
    assert entry, flag
    assert entry[2] == str(flags()[flag])


def test_help_explains_every_field(help_text):
    text = " ".join(re.sub("[─│╭╮╰╯]", " ", help_text).split())
    explained = docstrings(Config) | docstrings(ModelConfig) | docstrings(MeshConfig)
    assert all(" ".join(sentence.split()) in text for sentence in explained.values())


def test_help_names_where_its_defaults_are_from(help_text, train, config_file):
    assert "now: quickstart" in help_text
    path = config_file("config = Config(batch_size=77)")
    mine = train("--config", path, "--help").stdout
    assert f"now: {path}" in " ".join(mine.split()) and "(default: 77)" in mine


@pytest.mark.parametrize(
    "args, nearest",
    [(["--batch_sise", "3"], "--batch-size"), (["--modle.hidden", "3"], "--model.hidden"), (["--sede=3"], "--seed")],
)
def test_a_wrong_flag_ends_with_status_2_and_names_the_nearest(train, args, nearest):
    said = refused(train(*args))
    assert "Unrecognized options" in said and nearest in said


def parse(*args, stored=None):
    return arguments.from_command_line(list(args), lambda run_dir: stored)


@pytest.mark.parametrize(
    "args, message",
    [
        ("--batch-size 0", "batch_size must be at least 1"),
        ("--shards -1", "shards must be at least 1"),
        ("--model.hidden 0", "model.hidden and model.embed must be at least 1"),
        ("--model.embed 0", "model.hidden and model.embed must be at least 1"),
        ("--model.gain 0", "model.gain must be a finite number above 0"),
        ("--validation-fraction 0.9", "validation_fraction must lie between 0 and 0.5"),
        ("--validation-fraction 0", "validation_fraction must lie between 0 and 0.5"),
        ("--validation-fraction nan", "validation_fraction must lie between 0 and 0.5"),
        ("--epochs 0", "epochs must be a finite number above 0"),
        ("--epochs inf", "epochs must be a finite number above 0"),
        ("--updates 0", "updates must be at least 1"),
        ("--learning-rate nan", "learning_rate must be a finite number above 0"),
        ("--clip-norm -1", "clip_norm must be 0 (off) or a finite number above 0"),
        ("--seed -1", "seed must lie between 0 and 2**32 - 1"),
        ("--seed 4294967296", "seed must lie between 0 and 2**32 - 1"),
        ("--keep 0", "keep must be at least 1"),
        ("--eval-bytes 5 --eval-batch-size 5", "eval_bytes must be above eval_batch_size"),
        ("--more-updates -1", "must be 0 or more"),
        ("--eval-every -1", "eval_every must be 0 or more"),
        ("--batch-size many", "invalid literal for int()"),
        ("--precision half", "invalid choice 'half'"),
    ],
)
def test_a_value_out_of_range_ends_with_status_2(capsys, monkeypatch, args, message):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        parse(*args.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_value_out_of_range_ends_the_program_without_a_traceback(train):
    assert "batch_size must be at least 1" in refused(train("--batch-size", "0"))
    assert "model.hidden and model.embed must be at least 1" in refused(train("--model.hidden", "0"))
    assert "validation_fraction must lie between 0 and 0.5" in refused(train("--validation-fraction", "0.9"))


def test_data_that_are_not_there_end_with_status_2_before_jax_is_imported(train):
    assert "error: no such file: mine.jsonl" in refused(train("--data", "mine.jsonl"))
    assert "--text-key" in refused(train("--text-key", "text"))


def test_a_flag_overrides_the_config_file(config_file):
    path = config_file("config = Config(model=ModelConfig(hidden=8), batch_size=7, seq_length=9)")
    for named in (["--config", str(path)], [f"--config={path}"]):
        config, old = parse(*named, "--batch-size", "5", "--model.embed", "3")
        assert (config.batch_size, config.seq_length, config.model) == (5, 9, ModelConfig(8, 3)) and old is None
        assert config.run_dir == "runs/mine"


def test_a_flag_and_its_value_may_be_joined():
    config, _ = parse("--batch_size=5", "--data=a=b.txt", "--run-dir=-x", "--model.gain=None")
    assert (config.batch_size, config.data, config.run_dir, config.model.gain) == (5, "a=b.txt", "-x", None)


def test_a_stored_config_is_the_default_of_its_run_unless_a_file_is_named(config_file):
    stored = Config(batch_size=11, run_dir="where/it/was")
    config, old = parse("--run-dir", "where/it/is", "--seq-length", "5", stored=stored)
    assert old == stored
    assert config == dataclasses.replace(stored, seq_length=5, run_dir="where/it/is")
    config, old = parse("--config", str(config_file("config = Config(batch_size=7)")), stored=stored)
    assert old == stored and config.batch_size == 7


def test_the_run_folder_is_never_none():
    assert parse("--run-dir", "None")[0].run_dir == "runs/quickstart"
    assert parse()[0].run_dir == "runs/quickstart"


# JSON and differences

positive = st.integers(1, 10**6)
model_configs = st.builds(ModelConfig, hidden=positive, embed=positive, gain=st.none() | st.floats(0.01, 10))
meshes = st.builds(MeshConfig, data=positive | st.just(-1), fsdp=positive, model=positive)
some_configs = st.builds(
    Config,
    model=model_configs,
    mesh=meshes,
    data=st.text(),
    text_key=st.none() | st.text(),
    batch_size=positive,
    validation_fraction=st.floats(0.001, 0.499),
    updates=st.none() | positive,
    learning_rate=st.floats(1e-30, 1e30),
    precision=st.sampled_from(["auto", "float32", "bfloat16"]),
)


@unhurried
@given(some_configs)
def test_a_config_comes_back_from_json(config):
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config)))) == config


@unhurried
@given(some_configs, some_configs)
def test_differences_name_exactly_the_fields_that_differ(a, b):
    found = configs.differences(a, b)
    names = {f.name for f in dataclasses.fields(Config)} - {"model", "mesh"}
    expected = {name: (getattr(a, name), getattr(b, name)) for name in names}
    for group, cls in (("model", ModelConfig), ("mesh", MeshConfig)):
        of = lambda config, field: getattr(getattr(config, group), field.name)  # noqa: B023
        expected |= {f"{group}.{f.name}": (of(a, f), of(b, f)) for f in dataclasses.fields(cls)}
    assert found == {name: pair for name, pair in expected.items() if pair[0] != pair[1]}
    assert configs.differences(a, a) == {}


@pytest.mark.parametrize(
    "named, updates, epochs",
    [("", None, 1.0), ("--epochs 3", None, 3.0), ("--updates 7", 7, 1.0), ("--config amazon_2048", None, 1.0)],
)
def test_initial_weights_make_one_pass_the_default(named, updates, epochs):
    config, _ = parse("--init", "weights", *named.split())
    assert (config.updates, config.epochs) == (updates, epochs)
    assert parse()[0].updates == 900


def test_a_config_that_names_initial_weights_itself_and_a_run_keep_their_updates(config_file):
    path = config_file("config = Config(init='weights', updates=5, epochs=2.0)")
    assert parse("--config", str(path))[0].updates == 5
    assert parse("--init", "weights", stored=Config(init="weights", updates=900))[0].updates == 900


def test_a_difference_in_the_model_is_named_as_on_the_command_line():
    assert configs.differences(Config(), Config(model=ModelConfig(hidden=8))) == {"model.hidden": (4096, 8)}


def test_every_fixed_field_is_a_field():
    assert set(configs.FIXED) <= {f.name for f in dataclasses.fields(Config)}


def test_a_home_folder_behind_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [program.at_home(a) for a in ("--run-dir=~/x", "--prime=a ~", "~/x", "--a")] == [
        "--run-dir=/home/me/x",
        "--prime=a ~",
        "~/x",
        "--a",
    ]


@pytest.mark.parametrize("path, typed", [("a", "a"), ("a b", "'a b'"), ("-x", "./-x"), ("/-x", "/-x")])
def test_a_path_in_a_suggested_command(path, typed):
    assert program.as_argument(path) == typed


# Imports


def test_the_rooms_before_the_model_never_import_jax(python):
    modules = "mlstm_jax, mlstm_jax.config, mlstm_jax.text, mlstm_jax.corpus.build, mlstm_jax.corpus.batches"
    loaded = "[m for m in sys.modules if m.split('.')[0] in ('jax', 'jaxlib', 'flax')]"
    result = python("-c", f"import sys, {modules}; sys.exit(str({loaded}) if {loaded} else 0)")
    assert result.returncode == 0, result.stderr


def test_the_package_has_no_other_names():
    import mlstm_jax

    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        mlstm_jax.laod  # noqa: B018


def test_a_user_error_is_one_line_and_status_2(capsys):
    def main():
        raise UserError("what to put right")

    with pytest.raises(SystemExit) as ended:
        program.script(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: what to put right\n"
