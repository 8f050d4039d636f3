"""Runs `python -m MODULE` and `dvc` in forks of one process that has the libraries loaded.

Loading TensorFlow or DVC takes longer than most of the stages that tests start. Here it happens
once. `start` makes a folder with the programs `python` and `dvc` (fork_client.py), which
`Project.run` puts first on the PATH. They ask this server to run the module in a child process
with their working directory, environment, arguments and standard streams, and end with its code.

The child imports the project's modules from its own working directory. A variable that libraries
read while they are loaded has an effect only in a new process. So where the environment differs in
more than HARMLESS, the program runs a new Python, as it does for everything except `-m MODULE`.
The file `real` in the folder then names the module and the variables that differ.
Children have the server as their parent: tests that kill processes or count them do not use it.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from pathlib import Path

FOLDER = "FORK_SERVER"  # the variable that names the folder with the programs and the socket
HARMLESS = ("PATH", "PYTHONPATH", "PWD", "OLDPWD", "SHLVL", "_", "COLUMNS", "LINES", FOLDER)
HARMLESS_PREFIXES = ("PYTEST_", "DVC_")
PRELOADED = (
    "dulwich.porcelain",
    "dvc.api",
    "dvc.cachemgr",
    "dvc.cli.parser",
    "dvc.repo.experiments.show",
    "dvc.repo.index",
    "dvc.repo.reproduce",
    "dvc.repo.status",
    "h5py",
    "jinja2",
    "keras",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "networkx",
    "pandas.io.formats.csvs",
    "PIL.Image",
    "pydantic.main",
    "requests",
    "ruamel.yaml",
    "scmrepo.git",
    "sklearn.datasets",
    "sklearn.metrics",
    "sklearn.model_selection",
    "tqdm",
)


def start() -> subprocess.Popen | None:
    """Start a server, and name its folder in the environment. It ends when this process does.

    Returns None where it cannot run: pidfd_open needs Linux.
    """
    if sys.platform != "linux":
        return None
    folder = Path(tempfile.mkdtemp(prefix="forks-"))
    client = shlex.join(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("fork_client.py"))]
    )
    for name in ("python", "dvc"):
        script = folder / name
        real = shlex.quote(str(Path(sys.executable).with_name(name)))
        script.write_text(f'#!/bin/sh\nexec {client} {shlex.quote(str(folder))} {real} "$@"\n')
        script.chmod(0o755)
    (folder / "real").touch()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    os.environ[FOLDER] = str(folder)
    with listener:
        return subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno())],
            stdin=subprocess.PIPE,  # the server ends when this is closed
            # Pipes: Python decides when it starts whether a stream can seek, and forks keep that.
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )


def stop(server: subprocess.Popen) -> None:
    """End a server and the children that are left, and remove its folder."""
    server.communicate()
    shutil.rmtree(os.environ.pop(FOLDER))


def find(program: str) -> str:
    """Return the path of `python` or `dvc` that asks the server, or of the real one without it."""
    return str(Path(os.environ.get(FOLDER, Path(sys.executable).parent)) / program)


def load() -> None:
    """Load the libraries, with the variables that the stages set, and forget the project."""
    importlib.import_module("stages.model.runtime").load_tensorflow()
    for name in PRELOADED:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] == "stages"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()


def find_differences(asked: dict[str, str], known: dict[str, str]) -> list[str]:
    """Return the variables because of which a fork could behave unlike a new process.

    `asked` are the variables of the new process, `known` those from before the libraries were
    loaded. Some libraries set more.
    """
    return sorted(
        name
        for name in asked.keys() | known.keys()
        if asked.get(name) not in (known.get(name), os.environ.get(name))
        and name not in HARMLESS
        and not name.startswith(HARMLESS_PREFIXES)
    )


def run_child(request: dict, streams: list[int]) -> None:
    """Run the module that is asked for, and end the process as Python would."""
    code = 1
    try:
        os.setpgid(0, 0)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        module, *sys.argv[1:] = request["arguments"]
        paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        sys.path[:1] = [request["folder"], *paths]
        if module != "dvc":
            environment = importlib.import_module("stages.core.environment")
            environment.TENSORFLOW_LOADED_BEFORE_PINS = False  # load() has set the pins before
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(ValueError):  # the module has closed it
                stream.flush()
        os._exit(code)


def kill(pid: int) -> None:
    """Kill a child and what it has started."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.killpg(pid, signal.SIGKILL)


def serve(listener: socket.socket) -> None:
    """Run a child for each request, and answer with its exit code, until standard input closes."""
    known = dict(os.environ)
    loaded = False
    waiting: dict[int, socket.socket] = {}  # the program that waits for each child
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                for pid in waiting:
                    kill(pid)
                return
            if key.fileobj is listener:
                program, _ = listener.accept()
                content, streams, *_ = socket.recv_fds(program, 2**18, 3)
                if not loaded:
                    load()
                    loaded = True
                request = json.loads(content)
                if different := find_differences(request["environment"], known):
                    with Path(listener.getsockname()).with_name("real").open("a") as log:
                        print(*request["arguments"][:1], *different, file=log)
                    program.send(b"real")
                    program.close()
                elif pid := os.fork():
                    waiting[pid] = program
                    selector.register(program, selectors.EVENT_READ, pid)
                    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                else:
                    run_child(request, streams)
                for stream in streams:
                    os.close(stream)
            elif key.fileobj is waiting.get(key.data):  # the program was killed
                kill(key.data)
            elif key.data in waiting:  # the child has ended
                _, status = os.waitpid(key.data, 0)
                selector.unregister(key.fileobj)
                os.close(key.fd)
                with waiting.pop(key.data) as program, suppress(BrokenPipeError):
                    selector.unregister(program)
                    program.send(str(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    serve(socket.socket(fileno=int(sys.argv[1])))
