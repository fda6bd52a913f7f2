"""A notebook in a kernel of its own: how it starts, what stops it, and why it died."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from edge_eval_lib import redaction, scraps
from edge_eval_lib.artefacts.place import Place, write_failure
from edge_eval_lib.paths import project_root
from edge_eval_lib.runs import under_way
from edge_eval_lib.runs.process import die_with_parent

if TYPE_CHECKING:
    from jupyter_client import KernelManager

LONGEST_REASON = 400
START_TIMEOUT_S = 120
JUPYTER_LISTENS_S, LISTEN_S = 0.2, 0.02
# Looking for garbage among what was imported takes a tenth of the time that a page takes.
SELDOM = "import gc; gc.set_threshold(100_000)"
# With what papermill would read notebooks from other machines: a quarter of its import.
UNUSED = ("pyarrow.fs", "chardet")
NOTING = "edge-eval"  # papermill's name for our engine
ORPHANED_WITHIN_S = 1.0


def execute(
    source: Path,
    notebook: Path,
    parameters: dict[str, Any],
    environment: dict[str, str],
    at: Place,
    measured: bool = True,
) -> str | None:
    """Execute a notebook in a kernel of its own.

    Args:
        source: The notebook.
        notebook: Where the executed one goes.
        parameters: What papermill injects.
        environment: The kernel's.
        at: The run's place, for its scratch files and the reason of a failure.
        measured: Whether it measures anything: if not, its garbage is collected seldom (`SELDOM`).

    Returns:
        None, or why it did not reach its end.
    """
    scraps.skip_uri_grammar()
    from jupyter_client import AsyncKernelManager
    from jupyter_client.channels import AsyncZMQSocketChannel
    from jupyter_core.utils import run_sync

    class StartChannel(AsyncZMQSocketChannel):
        """Listens shortly for what a starting kernel may still say: each run would wait 0.2 s."""

        async def get_msg(  # type: ignore[override]
            self, timeout: float | None = None
        ) -> dict[str, Any]:
            listen_s = LISTEN_S if timeout == JUPYTER_LISTENS_S else timeout
            return await super().get_msg(listen_s)

    kernels: list[subprocess.Popen[bytes]] = []
    parent = os.getppid()

    class RunKernelManager(AsyncKernelManager):
        """Starts this very Python, with the run's environment, and lets it not outlive us."""

        def _connection_dir_default(self) -> str:
            return environment["JUPYTER_RUNTIME_DIR"]

        def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
            command = super().format_kernel_cmd(extra_arguments)
            if self.kernel_name == "python3":  # a kernelspec in the home directory may shadow ours
                command[0] = sys.executable
            # Its connection is of this machine alone, and its warning of that is for servers.
            command += ["--HistoryManager.enabled=False", "--log-level=ERROR"]
            return command if measured else [*command, f"--IPKernelApp.exec_lines={SELDOM}"]

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            await super().start_kernel(
                env=environment, preexec_fn=lambda: die_with_parent(signal.SIGKILL), **options
            )
            kernels.append(self.provisioner.process)  # type: ignore[union-attr]

        def client(self, **options: Any) -> Any:
            made = super().client(**options)
            made.iopub_channel_class = StartChannel
            return made

    def stop(signal_number: int, _frame: Any) -> None:
        _kill(kernels)
        shutil.rmtree(at.running, ignore_errors=True)
        # The threads of a killed parent end one after another, and its child hears of the first.
        ends = time.monotonic() + ORPHANED_WITHIN_S
        terminated = signal_number == signal.SIGTERM
        while terminated and os.getppid() == parent and time.monotonic() < ends:
            time.sleep(0.02)
        if os.getppid() != parent:  # nobody asked for it: what started this process was killed
            with contextlib.suppress(OSError):
                write_failure(at, "It was stopped: the process that scheduled it was killed.")
        os._exit(128 + signal_number)

    kills_before = _out_of_memory_kills()
    with _signals(stop):
        try:
            manager = RunKernelManager(kernel_name=_kernel_name(source))
            # It starts while papermill, which takes as long, is imported.
            run_sync(manager.start_kernel)(cwd=project_root() / "notebooks")
            return _execute_in(manager, source, notebook, parameters, at)
        except Exception as error:  # whatever it is, it belongs to this run alone
            from nbclient.exceptions import DeadKernelError

            if isinstance(error, DeadKernelError):
                return _why_dead(kernels, kills_before)
            return sentence(type(error).__name__, str(error))
        finally:
            _kill([kernel for kernel in kernels if kernel.poll() is None])


def _execute_in(
    manager: KernelManager, source: Path, notebook: Path, parameters: dict[str, Any], at: Place
) -> str | None:
    """Execute a notebook in a kernel that starts, and stop that; None, or why a cell failed."""
    with _left_out(*UNUSED):
        from papermill import PapermillExecutionError, execute_notebook
        from papermill.clientwrap import PapermillNotebookClient
        from papermill.engines import Engine, papermill_engines
        from papermill.iorw import LocalHandler, papermill_io

    class RedactingHandler(LocalHandler):
        """Writes notebooks without the environment's secrets."""

        def write(self, buf: str, path: str) -> None:
            super().write(redaction.redact_json(buf), path)

    class NotingEngine(Engine):
        """Notes how far a notebook is, and writes it at its start and end.

        papermill writes it twice a cell, prose included: a page of pictures 150 times.
        """

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, *_: Any, **_options: Any) -> None:
            nb_man.save = lambda **_: None
            start, cells = nb_man.cell_start, len(nb_man.nb.cells)

            def noted(cell: Any, cell_index: int, **also: Any) -> None:
                under_way.note(at, cell_index, cells)
                start(cell, cell_index, **also)

            nb_man.cell_start = noted
            client = PapermillNotebookClient(
                nb_man, km=manager, startup_timeout=START_TIMEOUT_S, shutdown_kernel="immediate"
            )
            client.owns_km = True  # it stops the kernel, and what talks to it
            try:
                client.execute()
            finally:
                del nb_man.save

    papermill_io.register(str(at.running), RedactingHandler())
    papermill_engines.register(NOTING, NotingEngine)
    try:
        execute_notebook(
            source, notebook, engine_name=NOTING, parameters=parameters, progress_bar=False
        )
    except PapermillExecutionError as error:
        return sentence(error.ename, error.evalue)
    return None


@contextlib.contextmanager
def _left_out(*names: str) -> Iterator[None]:
    """Import without these modules, of which an importing library can do without."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def _kernel_name(source: Path) -> str:
    metadata = orjson.loads(source.read_bytes())["metadata"]
    return metadata.get("kernelspec", {}).get("name", "python3")


def _kill(kernels: list[subprocess.Popen[bytes]]) -> None:
    """Kill kernels and what they have started."""
    for kernel in kernels:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(kernel.pid, signal.SIGKILL)


@contextlib.contextmanager
def _signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def sentence(name: str, message: str) -> str:
    """Say an exception on one line, and without its name if it was written for people."""
    text = " ".join(redaction.redact(message).split())  # before it is cut
    if name not in ("UserError", "RunFailed"):
        text = f"{name}: {text}" if text else name
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."


def _why_dead(kernels: list[subprocess.Popen[bytes]], kills_before: int) -> str:
    code = kernels[-1].poll() if kernels else None
    if _out_of_memory_kills() > kills_before:
        return "The kernel was killed because the machine ran out of memory."
    if code is not None and code < 0:
        return f"The kernel was killed by {signal.Signals(-code).name}."
    return f"The kernel ended by itself (exit code {code})."


def _out_of_memory_kills() -> int:
    """Count the processes that the system has killed for lack of memory since it started."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
