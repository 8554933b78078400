"""The processes of a run: one, several started here, or one of those that torchrun started."""

import argparse
import contextlib
import ctypes
import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from detectron2.utils import comm
from torch import distributed

from ..errors import UserError
from ..files import DISK_FULL
from .stop import STOP_SIGNALS, Stopped

# how long a process waits for the others, which may be evaluating, before it gives up
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
# how long the other processes may take to end, once one has failed
GRACE_SECONDS = 5
# how long they may take to save a checkpoint, once one has stopped
STOP_SECONDS = 60
PR_SET_PDEATHSIG = 1
# errors whose message is all that a user needs; they are printed without a traceback
USER_ERRORS = (UserError, FloatingPointError)
LAST_LINE = re.compile(r"^(?:clockdistill\.errors\.\w+|FloatingPointError): (.+)\s*\Z", re.MULTILINE)
HINTS = {
    "SIGKILL": " (the machine may be out of memory)",
    "SIGABRT": f" (perhaps after {COLLECTIVE_TIMEOUT.total_seconds() / 60:.0f} minutes of waiting for another process)",
}
TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOST_CONNECTION = re.compile(
    r"connection (closed|reset) by peer|broken pipe|remote process exited|ncclRemoteError|communicator was aborted",
    re.IGNORECASE,
)
TIMED_OUT = re.compile(r"timed out waiting|collective operation timeout", re.IGNORECASE)

logger = logging.getLogger(__name__)

Main = Callable[[argparse.Namespace], None]


class World(NamedTuple):
    """The processes of a run: `local_size` of them on this machine, whose ranks start at `first_rank`."""

    size: int
    local_size: int
    first_rank: int
    url: str


def run(main: Main, args: argparse.Namespace) -> int:
    """Run an entry point in all processes of this machine, and print errors in one sentence.

    Under torchrun, this process is one of them, and a training that torchrun restarts is resumed.

    Args:
        main: called in every process.
        args: from Detectron2's `default_argument_parser`.

    Returns:
        The exit status: 1 after an error, 128 plus the signal's number after a signal.
    """
    try:
        under_torchrun = "LOCAL_RANK" in os.environ
        world = torchrun_world(args) if under_torchrun else check_arguments(args)
        if world.size > 1 and not under_torchrun:
            return Launcher(main, args, world).run()
        if world.size > 1:
            end_with_parent()
            join(world, int(os.environ["LOCAL_RANK"]))
        # only the machines whose processes failed count a restart
        if any(comm.all_gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))):
            args.resume = True
        run_and_synchronize(main, args)
    except Stopped as stopped:
        return stopped.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        sentence = error_sentence(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1
    return 0


def check_arguments(args: argparse.Namespace) -> World:
    """Return the processes that the arguments ask for.

    Raises:
        UserError: they contradict one another, or this machine cannot run that many processes.
    """
    if args.num_gpus < 0:
        raise UserError(f"--num-gpus cannot be {args.num_gpus}: give the number of GPUs, or 0 to run on the CPU")
    if args.num_machines < 1:
        raise UserError(f"--num-machines cannot be {args.num_machines}: give the number of machines, at least 1")
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank cannot be {args.machine_rank}: give this machine's number, from 0 to "
            f"{args.num_machines - 1} (--num-machines is {args.num_machines})"
        )
    if args.num_machines == 1 and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        raise UserError(
            f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} separate runs: start one torchrun per machine, as "
            "docs/clusters.md shows, or set --num-machines and --machine-rank"
        )
    local_size = max(args.num_gpus, 1)
    check_local_size(local_size, f"--num-gpus is {args.num_gpus}")
    url = args.dist_url
    if args.num_machines * local_size > 1:
        url = check_url(url, args)
    return World(args.num_machines * local_size, local_size, args.machine_rank * local_size, url)


def check_local_size(local_size: int, given: str) -> None:
    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    if gpus and local_size > gpus:
        raise UserError(f"{given}, but this machine has {gpus} GPU(s): start one process per GPU at most")
    if not gpus and local_size > cores:
        raise UserError(f"{given}, but this machine has no GPU and {cores} core(s): start one process per core at most")


def check_url(url: str, args: argparse.Namespace) -> str:
    """Return the address at which the processes meet: `tcp://HOST:PORT`."""
    if url == "auto":
        if args.num_machines > 1:
            raise UserError(
                "--dist-url auto works on one machine only: give all machines the address of the first one, as in "
                "--dist-url tcp://10.0.0.1:29500"
            )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{free.getsockname()[1]}"
    try:
        address = urlparse(url)
        valid = address.scheme == "tcp" and address.hostname and address.port
    except ValueError:  # a port that is not one
        valid = False
    if not valid:
        raise UserError(f"--dist-url cannot be {url}: write tcp://HOST:PORT, or auto on one machine")
    if args.machine_rank == 0:
        with socket.socket() as test:
            # as torch's store does, ignore connections that are just being closed
            test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                test.bind(("", address.port))
            except OSError as error:
                raise UserError(
                    f"port {address.port} of --dist-url {url} cannot be used ({error.strerror}): choose another port"
                ) from error
    return url


def torchrun_world(args: argparse.Namespace) -> World:
    """Return the processes that torchrun started."""
    absent = [name for name in TORCHRUN_VARIABLES if name not in os.environ]
    if absent:
        raise UserError(
            f"LOCAL_RANK is set, but {', '.join(absent)} not: start the processes with torchrun, or unset LOCAL_RANK"
        )
    if args.num_gpus > 1 or args.num_machines > 1:
        raise UserError("torchrun starts the processes itself: leave out --num-gpus and --num-machines")
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    check_local_size(local_size, f"torchrun started {local_size} processes")
    first_rank = int(os.environ["RANK"]) - int(os.environ["LOCAL_RANK"])
    return World(int(os.environ["WORLD_SIZE"]), local_size, first_rank, "env://")


def join(world: World, local_rank: int) -> None:
    """Make this process a member of the process group.

    Raises:
        UserError: the processes cannot meet.
    """
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank)
    try:
        store = restart_store(world)
        distributed.init_process_group(
            "nccl" if has_gpu else "gloo",
            init_method=world.url if store is None else None,
            store=store,
            world_size=world.size,
            rank=world.first_rank + local_rank,
            timeout=COLLECTIVE_TIMEOUT,
        )
        comm.create_local_process_group(world.local_size)
        comm.synchronize()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the {world.size} processes cannot meet at {world.url} ({' '.join(str(error).split())[:500]}): check the "
            "address, that the port is free on the first machine, and that all machines can reach it"
        ) from error


def restart_store(world: World) -> distributed.Store | None:
    """Return the store through which the processes that torchrun has started or restarted on one machine meet, or None.

    Without --rdzv-backend, torchrun keeps its store when it restarts the processes, and PyTorch 2.11 would read the
    addresses of those that ended. On several machines the numbers of restarts may differ, and the store is a new one.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or world.size > world.local_size:
        return None
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(*address, is_master=False, timeout=COLLECTIVE_TIMEOUT)
    return distributed.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def run_and_synchronize(main: Main, args: argparse.Namespace) -> None:
    """Run an entry point and wait for all processes: one that exits early would terminate the others."""
    main(args)
    if comm.get_world_size() > 1:
        comm.synchronize()
        distributed.destroy_process_group()


class Launcher:
    """Starts the processes of this machine, forwards signals to them, and ends all if one fails."""

    def __init__(self, main: Main, args: argparse.Namespace, world: World):
        context = multiprocessing.get_context("spawn")
        self.processes: list[multiprocessing.Process] = []
        self.readers: dict[Connection, multiprocessing.Process] = {}
        self.reports: list[tuple] = []  # of failed processes, see `work`
        self.received = 0
        for local_rank in range(world.local_size):
            reader, writer = context.Pipe(duplex=False)
            arguments = main, args, world, local_rank, writer
            process = context.Process(target=work, args=arguments, name=f"rank {world.first_rank + local_rank}")
            self.processes.append(process)
            self.readers[reader] = process

    def run(self) -> int:
        """Return the exit status."""
        handlers = {number: signal.signal(number, self.forward) for number in STOP_SIGNALS}
        try:
            for process in self.processes:
                process.start()
            if self.received:  # perhaps before all were started
                self.forward(signal.SIGTERM, None)
            failed = self.wait()
        finally:
            for process in self.processes:
                if process.is_alive():
                    process.kill()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if (failed and not self.received) or any(not lost for lost, *_ in self.reports):
            print(f"error: {self.explain(failed)}", file=sys.stderr)
            return 1
        return 128 + self.received if self.received else max(process.exitcode or 0 for process in self.processes)

    def forward(self, number: int, frame: object) -> None:
        """Let the processes stop after a signal; a second Ctrl-C kills them."""
        for process in self.processes:
            if process.is_alive():
                if number == self.received == signal.SIGINT:
                    process.kill()
                else:
                    # Ctrl-C in a terminal reaches all processes, which therefore ignore SIGINT
                    os.kill(process.pid, signal.SIGTERM if number == signal.SIGINT else number)
        self.received = self.received or number

    def wait(self) -> list[multiprocessing.Process]:
        """Wait until all processes have ended, or some time after one has failed. Return those that failed by then."""
        deadline, is_failing = None, False
        while alive := [process for process in self.processes if process.exitcode is None]:
            timeout = None if deadline is None else max(0, deadline - time.monotonic())
            ready = wait([*(process.sentinel for process in alive), *self.readers], timeout)
            if not ready:
                break
            self.read(set(ready))
            if deadline is None and any(process.exitcode for process in self.processes):
                deadline = time.monotonic() + STOP_SECONDS
            if (self.reports or self.failed()) and not is_failing:
                is_failing, deadline = True, time.monotonic() + GRACE_SECONDS
        self.read({reader for reader in self.readers if reader.poll()})
        return self.failed()

    def read(self, ready: set[Connection]) -> None:
        """Read the reports that have arrived."""
        for reader in self.readers.keys() & ready:
            with contextlib.suppress(EOFError):
                self.reports.append(reader.recv())
            del self.readers[reader]

    def failed(self) -> list[multiprocessing.Process]:
        """Return the processes that have ended neither normally nor after a signal to stop."""
        statuses = (None, 0, *(128 + number for number in STOP_SIGNALS))
        return [process for process in self.processes if process.exitcode not in statuses]

    def explain(self, failed: list[multiprocessing.Process]) -> str:
        """Say why the first process failed; the others may have failed because it did."""
        # reports of processes that lost the connection to a failed one come last
        lost, _, message = min(self.reports, default=(True, 0, ""))
        if not lost:
            return message
        for process in failed:
            if process.exitcode < 0:
                name = signal.Signals(-process.exitcode).name
                return f"{process.name} was ended by {name}{HINTS.get(name, '')}: continue with --resume"
        return message or f"{failed[0].name} exited with status {failed[0].exitcode}"


def work(main: Main, args: argparse.Namespace, world: World, local_rank: int, writer: Connection) -> None:
    """Run an entry point in one of the launcher's processes.

    Args:
        writer: gets (whether a connection to another process was lost, time, message) after an error.
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        join(world, local_rank)
        run_and_synchronize(main, args)
    except Stopped as stopped:
        sys.exit(stopped.status)
    except Exception as error:
        sentence = error_sentence(error)
        rank = world.first_rank + local_rank
        lost = LOST_CONNECTION.search(str(error)) is not None
        writer.send((lost, time.time(), sentence or f"rank {rank} failed:\n\n{traceback.format_exc()}"))
        sys.exit(1)


def end_with_parent() -> None:
    """Let the kernel kill this process when the launcher or torchrun has been killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def error_sentence(error: Exception) -> str | None:
    """Return the message of a user error, or None for any other error.

    Errors of data workers arrive as the text of their traceback, whose last line is the message.
    """
    last_line = LAST_LINE.search(str(error))
    if last_line:
        return last_line[1]
    if isinstance(error, USER_ERRORS):
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        what = error.filename or "the output"
        return f"cannot write {what} ({error.strerror}): free some space, or set train.output_dir to another disk"
    if isinstance(error, RuntimeError) and distributed.is_initialized():
        rank = comm.get_rank()
        if TIMED_OUT.search(str(error)):
            minutes = COLLECTIVE_TIMEOUT.total_seconds() / 60
            return f"rank {rank} waited {minutes:.0f} minutes in vain for the other processes: see their logs"
        if LOST_CONNECTION.search(str(error)):
            return f"rank {rank} lost its connection to another process, which has ended: see its log"
    return None
