"""One run by several processes: the same figures, one log, and an end that all of them come to."""

import signal

import jax
import pytest

from helpers.programs import assert_same_figures, end, figures, free_port, train, two
from mlstm_jax.cli import train as cli_train
from mlstm_jax.config import Config
from mlstm_jax.errors import UserError
from mlstm_jax.run import Run
from mlstm_jax.training import processes

SPREAD = "--mesh.data 1 --mesh.fsdp 2 --mesh.model 2".split()


def two_by_slurm(reviews, run_dir, *arguments):
    """Run by two processes that nothing tells of each other but what Slurm sets."""
    job = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    job["JAX_COORDINATOR_PORT"] = str(free_port())
    task = lambda number: {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
    return end(*(train(reviews, run_dir, *arguments, devices=2, **job, **task(n)) for n in (0, 1)))


def of_ours(text):
    """The lines of an output that are not the collectives' own."""
    return [line for line in text.splitlines() if not line.startswith("[Gloo]")]


def test_two_processes_train_as_one_does_and_one_of_them_speaks(whole, reviews, tmp_path):
    first, second = two(reviews, tmp_path / "run", "--mesh.data", "4")
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert_same_figures(tmp_path / "run", whole)
    assert [row["update"] for row in Run(tmp_path / "run").read_metrics() if "bits_per_byte" in row] == [*range(1, 13)]
    assert "validation: " in first.out and of_ours(second.out) == []


@pytest.mark.parametrize(
    "signalled, number, mesh",
    [(1, signal.SIGTERM, SPREAD), pytest.param(0, signal.SIGINT, ["--mesh.data", "4"], marks=pytest.mark.slow)],
)
def test_a_signal_to_one_of_two_processes_stops_both_and_one_device_resumes(
    signalled, number, mesh, whole, reviews, tmp_path
):
    run_dir, at = tmp_path / "run", [None, None]
    at[signalled] = (5, number)
    first, second = two(reviews, run_dir, *mesh, at=at)
    assert (first.status, second.status) == (128 + number, 128 + number), first.err + second.err
    assert "stopped and saved after update 6 of 12" in first.out
    assert max(Run(run_dir).steps()) == 6 and figures(run_dir, "bits_per_byte")[0] == [*range(1, 7)]
    (one,) = end(train(reviews, run_dir))
    assert one.status == 0 and "after update 6" in one.out, one.err
    assert_same_figures(run_dir, whole)


def test_a_preemption_of_all_processes_saves_one_update_and_what_is_left_goes_on_without_flags(
    whole, reviews, tmp_path, capfd
):
    run_dir = tmp_path / "run"
    ended = two(reviews, run_dir, *SPREAD, at=[(5, signal.SIGTERM), (5, signal.SIGTERM)])
    assert [process.status for process in ended] == [143, 143], ended[0].err + ended[1].err
    assert "stopped and saved after update 6 of 12" in ended[0].out and max(Run(run_dir).steps()) == 6
    assert cli_train.run(["--run-dir", str(run_dir)]) == 0  # one process of one device
    said = capfd.readouterr().out
    assert "the mesh 1 x 2 x 2 (data, fsdp, model) is fitted to 1 device: 1 x 1 x 1\n" in said
    assert f"resuming {run_dir} after update 6\n" in said
    assert_same_figures(run_dir, whole)


def test_a_run_of_one_device_is_resumed_by_two_processes_of_a_slurm_job(whole, reviews, tmp_path):
    run_dir = tmp_path / "stopped"
    (stopped,) = end(train(reviews, run_dir, at=(5, signal.SIGTERM)))
    assert stopped.status == 143
    first, second = two_by_slurm(reviews, run_dir, *SPREAD)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert "after update 6" in first.out and of_ours(second.out) == []
    assert_same_figures(run_dir, whole)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_goes_on_from_its_checkpoint(killed, whole, reviews, tmp_path):
    run_dir, at = tmp_path / "run", [None, None]
    at[killed] = (10, signal.SIGKILL)
    ended = two(reviews, run_dir, "--mesh.data", "4", at=at, timeout=120)
    assert ended[killed].status == -signal.SIGKILL
    assert ended[1 - killed].status not in (0, -signal.SIGKILL) and ended[1 - killed].err.strip()
    # One line where a collective fails; where it hangs, jax's runtime aborts the process in its own words.
    survivor = ended[1 - killed]
    assert "Traceback" not in survivor.err and (survivor.status == 2) == ("has ended (" in survivor.err)
    saved = max(Run(run_dir).steps())
    assert saved in (4, 8), "the last one may not have been whole yet"
    again = two(reviews, run_dir, "--mesh.data", "4") if killed else end(train(reviews, run_dir))
    assert [process.status for process in again] == [0] * len(again), again[0].err
    assert f"after update {saved}\n" in again[0].out
    assert_same_figures(run_dir, whole)


def test_processes_that_do_not_find_each_other_are_one_line(monkeypatch):
    asked = []

    def nobody(*named, **_):
        asked.append(named)
        raise RuntimeError("DEADLINE_EXCEEDED: Deadline Exceeded\nand much more")

    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    with pytest.raises(UserError, match="did not find each other at localhost:1: DEADLINE_EXCEEDED") as error:
        processes.start(Config(coordinator="localhost:1", num_processes=2, process_id=0))
    assert asked == [("localhost:1", 2, 0)] and "\n" not in str(error.value)


def test_a_coordinator_that_does_not_listen_is_one_line():
    with pytest.raises(UserError, match="did not find each other at localhost:") as error:
        processes._reach(f"localhost:{free_port()}", seconds=0)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_coordinator_that_is_not_there_is_one_line_and_status_2(reviews, tmp_path):
    named = ["--coordinator", f"localhost:{free_port()}", "--num-processes", "2", "--process-id", "1"]
    (alone,) = end(train(reviews, tmp_path / "run", *named))
    assert alone.status == 2 and alone.err.count("\n") == 1
    assert alone.err.startswith("error: the processes of this run did not find each other at localhost:")


def test_a_tpu_host_that_has_no_others_trains_alone(monkeypatch, capsys):
    def nobody(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(processes, "_cluster", lambda environment: "a TPU host")
    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    processes.start(Config())
    assert "this host trains alone" in capsys.readouterr().err


def test_a_batch_script_without_srun_trains_alone_and_names_srun(reviews, tmp_path):
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "localhost"}
    (alone,) = end(train(reviews, tmp_path / "run", "--updates", "1", **job))
    assert alone.status == 0, alone.err
    assert "this process trains alone; the same command behind srun starts all 4 tasks" in alone.err


def test_one_process_starts_without_looking_for_others(monkeypatch):
    monkeypatch.setattr(processes, "_cluster", lambda environment: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("it looked"))
    assert processes.start(Config()) is None


@pytest.mark.parametrize(
    "environment, found",
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "Slurm"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script without srun
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, "Slurm"),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "2"}, None),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, "a TPU slice"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1"}, "a TPU slice"),
    ],
)
def test_what_says_that_there_are_several_processes(environment, found, monkeypatch):
    monkeypatch.setattr(processes.os.path, "exists", lambda path: False)
    assert processes._cluster(environment) == found


@pytest.mark.parametrize(
    "device, libtpu, environment, found",
    [
        ("/dev/accel0", False, {}, "a TPU host"),
        ("/dev/vfio/0", True, {}, "a TPU host"),
        ("/dev/vfio/0", False, {}, None),  # any device that is handed to a virtual machine
        ("/dev/accel0", True, {"JAX_PLATFORMS": "cpu"}, None),
    ],
)
def test_what_says_that_this_is_a_tpu_host(device, libtpu, environment, found, monkeypatch):
    monkeypatch.setattr(processes.os.path, "exists", lambda path: path == device)
    monkeypatch.setattr(processes, "find_spec", lambda name: libtpu or None)
    assert processes._cluster(environment) == found


def test_a_tpu_host_may_be_one_of_several(monkeypatch):
    monkeypatch.setattr(processes.os.path, "exists", lambda path: path == "/dev/accel0")
    assert processes._cluster({}) == "a TPU host"
