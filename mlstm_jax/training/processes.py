"""Several processes that train together: how they start, and values that they agree on."""

import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mlstm_jax.config import Config
from mlstm_jax.errors import UserError

logger = logging.getLogger(__name__)

# Processes


def start(config: Config) -> None:
    """Join the other processes of this run, where there are any; before the first use of a device.

    They are named by `coordinator`, or found by jax on Slurm, TPU slices and GKE. A process that dies ends the others
    within two minutes. Raises UserError where they do not find each other.
    """
    several = _cluster(os.environ)
    if config.coordinator is None and not several:
        tasks = os.environ.get("SLURM_NTASKS", "1")
        if tasks != "1" and "SLURM_STEP_NUM_TASKS" not in os.environ:
            srun = f"the same command behind srun starts all {tasks} tasks of this Slurm job"
            logger.warning(f"this process trains alone; {srun}")
        return
    if config.coordinator and config.process_id:
        _reach(config.coordinator)
    elif config.coordinator:
        logger.info(f"waiting for {(config.num_processes or 1) - 1} more processes at {config.coordinator} ...")
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            initialization_timeout=120,
            heartbeat_timeout_seconds=60,
            shutdown_timeout_seconds=30,
        )
    except (RuntimeError, ValueError) as error:
        line = str(error).strip().partition("\n")[0]
        if several == "a TPU host":
            return logger.warning(f"this host trains alone: jax found no others ({line})")
        where = f"as {several}" if config.coordinator is None else f"at {config.coordinator}"
        raise UserError(f"the processes of this run did not find each other {where}: {line}") from None


def _reach(address: str, seconds: float = 120) -> None:
    """Wait until the first process listens: where it never does, jax ends the process without raising anything."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
            return
        except (OSError, ValueError) as error:
            if time.monotonic() >= deadline or not isinstance(error, OSError):
                raise UserError(f"the processes of this run did not find each other at {address}: {error}") from None
        time.sleep(1)


def _cluster(environment) -> str | None:
    """What says that there are several processes, or a TPU slice, which may have several hosts."""
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1:  # which only srun sets; a batch script is one process
        return "Slurm" if "SLURM_PROCID" in environment else None
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return "a TPU slice"
    chips = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0") and find_spec("libtpu")
    return "a TPU host" if chips and environment.get("JAX_PLATFORMS") != "cpu" else None


LOST = "Gloo|NCCL|coordination service|distributed service|[Cc]onnection (reset|closed|refused)|heartbeat"


@contextmanager
def ending_with_others() -> Iterator[None]:
    """Where a collective fails because another process is gone, end this one at once, with one line and status 2.

    Python's own end would wait for the others, and jax would then abort it.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if jax.process_count() == 1 or isinstance(error, UserError) or not re.search(LOST, str(error)):
            raise
        reason = str(error).strip().partition("\n")[0][:200]
        sys.stdout.flush()
        logger.error(f"error: another process of this run has ended ({reason}); start all of them again to resume")
        sys.stderr.flush()
        os._exit(2)


def is_first_named(config: Config) -> bool:
    """`is_first` before the processes have met, by what names them."""
    number = os.environ.get("SLURM_PROCID") or os.environ.get("TPU_WORKER_ID") or 0
    return int(number if config.process_id is None else config.process_id) == 0


def is_first() -> bool:
    """Whether this process writes what is written once: logs, config, pictures."""
    return jax.process_index() == 0


def number() -> int:
    """This process's number, from 0."""
    return jax.process_index()


def gathered(tree: Any) -> Any:
    """Arrays that are spread over all processes, whole and on the host; one after the other, to take less memory."""
    return jax.tree.map(lambda array: multihost_utils.process_allgather(array, tiled=True), tree)


def highest(number: int) -> int:
    """The highest of all processes' numbers. All of them must call it."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())
