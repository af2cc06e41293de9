"""A process with everything imported, of which each command of a test is a fork: it starts at once.

Importing torch, Hydra and matplotlib costs 3 to 6 seconds, and the tests call some hundred commands. Each is
still a process of its own: own arguments, environment, folder, standard streams and exit code. Tests of what
a command imports, of signals and of an interpreter's own environment variables start a fresh interpreter.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from pathlib import Path

PATIENCE = 600.0  # seconds: a loaded machine is no failure
MARK = b"tests.warm"  # in its command line: conftest leaves it alone
HEAVY = (
    "hydra.main",
    "hydra._internal.hydra",
    "torch",
    "scipy.sparse.linalg",
    "scipy.stats",
    "sklearn.linear_model",
    "sklearn.svm",
    "sklearn.datasets",
    "sklearn.model_selection",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_svg",
    "matplotlib.backends.backend_agg",
    "pandas",
    "jinja2",
    "influence",
    "experiments.suite.job",
    "experiments.suite.sweeps",
    "experiments.suite.commands",
    "experiments.suite.tracking",
    "experiments.verification.report",
    "experiments.loo_linear.experiment",
    "experiments.loo_linear.figure",
    "experiments.label_errors.find",
    "threadpoolctl",
)
# Not wandb: it makes a temporary folder when it is imported, and the first fork that ends removes it for all.
# Read by an interpreter or a library before the first line of a command: a fork would not see a change.
AT_START = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONPATH", "LD_PRELOAD", "MPLCONFIGDIR")


class Warm:
    """The client's side: starts the process at the first command and ends it with this one."""

    def __init__(self, cwd: Path, environment: dict[str, str]) -> None:
        self._cwd, self._environment = cwd, environment  # of its start; each command has its own
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def start(self) -> socket.socket:
        if self._process is not None and self._process.poll() is None and self._socket is not None:
            return self._socket
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-m", MARK.decode(), str(theirs.fileno())],
            cwd=self._cwd, env=self._environment, pass_fds=[theirs.fileno()], start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._socket = ours
        atexit.register(self.stop)
        return ours

    def stop(self) -> None:
        if self._socket is not None:
            self._socket.close()  # the server reads the end and goes
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self._process.kill()
            self._process.wait()

    def run(
        self, module: str, arguments: list[str], cwd: Path, environments: list[dict[str, str]], timeout: float
    ) -> list[subprocess.CompletedProcess[str]]:
        """As ``subprocess.run`` with captured text; a process in each environment, all at once.

        Raises:
            subprocess.TimeoutExpired: one of them took longer; all are killed.
        """
        connection = self.start()
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2 * len(environments))]
            asked = {"module": module, "arguments": arguments, "cwd": str(cwd), "environments": environments}
            content = json.dumps(asked).encode()
            handed = array.array("i", [file.fileno() for file in files])
            connection.sendmsg([content], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handed)])
            connection.settimeout(PATIENCE)  # at the first command it is still importing
            pids = json.loads(connection.recv(1000))
            connection.settimeout(timeout)
            try:
                codes = json.loads(connection.recv(1000))
            except TimeoutError as error:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
                connection.settimeout(PATIENCE)
                connection.recv(1000)
                raise subprocess.TimeoutExpired([module, *arguments], timeout) from error
            texts = []
            for file in files:
                file.seek(0)
                texts.append(file.read().decode())
        return [
            subprocess.CompletedProcess([module, *arguments], code, *texts[2 * i : 2 * i + 2])
            for i, code in enumerate(codes)
        ]


def serve(connection: socket.socket) -> None:
    """Forks a child for each environment, tells their ids and then their exit codes; ends with the client."""
    warnings.filterwarnings("ignore", message=".*found in sys.modules.*", category=RuntimeWarning)
    for name in HEAVY:
        importlib.import_module(name)
    importlib.import_module("hydra.core.plugins").Plugins.instance()  # looks for plugins once in a process
    while True:
        content, handed, _, _ = socket.recv_fds(connection, 1 << 20, 16)
        if not content:
            return
        asked, pids = json.loads(content), []
        for place, environment in enumerate(asked["environments"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                connection.close()
                child(asked | {"environment": environment}, *handed[2 * place : 2 * place + 2])
        for descriptor in handed:
            os.close(descriptor)
        connection.send(json.dumps(pids).encode())
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        connection.send(json.dumps(codes).encode())


def child(asked: dict, out: int, err: int) -> None:
    """The command itself, in a session of its own, to its exit code."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for place, descriptor in ((1, out), (2, err)):
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = [asked["module"], *asked["arguments"]]
    sys.path[0] = os.getcwd()
    code = 0
    try:
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(Exception):
        threading._shutdown()
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
