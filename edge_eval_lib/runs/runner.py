"""One run: its device, its kernel, its verification, its publication.

A run executes below `running/` of the study's outputs. Only when its notebook ran to the end and
recorded so, its files move to `runs/`: the notebook last, so that a notebook in `runs/` is always
a finished run. Everything else ends in `failed/`, with the reason.

    python -m edge_eval_lib run STUDY STAGE NAME
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil

from edge_eval_lib import redaction, scraps
from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import Key, Place, place, read_failure, write_failure
from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import outputs_root, project_root
from edge_eval_lib.study import NOTEBOOKS, Run, Study, find_beside

# What every kernel is told: nothing leaves this machine unasked, and hashing is repeatable.
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "JUPYTER_PLATFORM_DIRS": "1",
}
# Snakemake sets all of them to 1, whatever a run has to itself.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
UNMEASURED = ("synthesis", "paper")  # stages that need no device to themselves
REPORTED = (*UNMEASURED, "ablation")  # whose notebook is the report, rendered as HTML
LONGEST_REASON = 400
ORPHANED_WITHIN_S = 1.0
PR_SET_PDEATHSIG = 1


class RunFailed(UserError):
    """A run's notebook did not reach its end; the message is the reason, in one sentence."""


def find_run(study: Study, stage: str, name: str) -> Run:
    """The grid's run of that name, or the synthesis or paper run; UserError if there is none."""
    if stage == "synthesis":
        prices = find_beside(study.path, "prices.yaml").read_text(encoding="utf-8")
        needs = tuple((run.stage, run.name) for run in study.runs())
        content = {"study": study.model_dump(), "prices": prices}
        content |= {"failures": _failures(study, needs)}
    elif stage == "paper":
        beside = outputs_root() / "embedded" / "tables" / "adaptation.csv"  # shown in the report
        files = [*sorted((project_root() / "params" / "published").glob("*")), beside]
        content, needs = {"figures": _content_hash(files)}, ()
    else:
        return study.run(stage, name)
    # Tables are cheap: any edit of the library makes them again, and never a measured run.
    library = project_root() / "edge_eval_lib"
    code = [*library.rglob("*.py"), *(library / "templates").glob("*"), notebook_source(stage)]
    settings = {"stage": stage, **content, "code": _content_hash(code)}
    return Run(stage, stage, {}, settings, needs)


def _failures(study: Study, keys: Iterable[Key]) -> dict[str, str]:
    """Why runs failed that are not done, as the report tells it."""
    found = {}
    for key in keys:
        at = place(study, *key)
        failure = None if at.settings.is_file() or at.stage == "score" else read_failure(at)
        if failure:
            found["/".join(key)] = failure["reason"]
    return found


def _content_hash(files: Iterable[Path]) -> str:
    """Identifies the content of those of the files that are there, in whatever order."""
    found = sorted(completion.sha256(file) for file in files if file.is_file())
    return hashlib.sha256("".join(found).encode()).hexdigest()[:16]


def study_argument(study: Study) -> str:
    """What names the study to a notebook: its name if it lies in params/, else its path."""
    if study.path.parent == project_root() / "params":
        return study.path.stem
    return str(study.path)


def run_one(study: Study, stage: str, name: str) -> Path:
    """Execute one run and publish it; the published notebook.

    Waits for a device of its own. Raises RunFailed with the reason, which then also stands in
    `failed/`, if the notebook does not reach its end. Call it from a process's main thread: an
    interrupt ends the process, and the kernel with it, at once.
    """
    run = find_run(study, stage, name)
    at = place(study, stage, name)
    source = notebook_source(stage)
    if not source.is_file():
        raise UserError(f"There is no notebook {source}.")
    before = completion.read(at)
    with _its_own(study, run, at) as device_environment:
        made_meanwhile = completion.read(at)
        if made_meanwhile not in (None, before) and not completion.survey(study, [run]):
            return at.notebook  # somebody else made it while this process waited
        started = time.monotonic()
        reason = None
        try:
            reason = _try_run(study, run, at, source, device_environment)
            if reason is None:
                _publish(at, run, study)
        except OSError as error:
            reason = _sentence("OSError", str(error))
        if reason is not None:
            _keep_failure(at, run, _explained(reason, at), time.monotonic() - started)
            raise RunFailed(f"{stage} {name}: {_explained(reason, at)}")
    return at.notebook


def _try_run(
    study: Study, run: Run, at: Place, source: Path, device_environment: dict[str, str]
) -> str | None:
    """Execute the run's notebook below `running/`; None, or why it did not reach its end."""
    shutil.rmtree(at.running, ignore_errors=True)  # left by a process that was killed
    raw = at.running / "raw"
    raw.mkdir(parents=True)
    parameters = {} if run.stage == "paper" else {"study": study_argument(study), **run.parameters}
    environment = {
        **os.environ,
        **ENVIRONMENT,
        **device_environment,
        "EDGE_EVAL_RUN": f"{run.stage}/{run.name}",
        "EDGE_EVAL_RUN_DIRECTORY": str(raw),
        "EDGE_EVAL_SETTINGS_HASH": run.settings_hash,
        # A home directory may be full or read-only.
        "IPYTHONDIR": str(at.running / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(at.running / "jupyter"),
    }
    if not _needs_hub(study, run.stage):
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    notebook = at.running / "notebook.ipynb"
    reason = _execute(source, notebook, parameters, environment, at)
    if reason is None and not scraps.is_complete(notebook):
        return "The notebook ended without recording run_complete in its last cell."
    if reason is None and run.stage in REPORTED:
        return _render(notebook, at)
    return reason


def _render(notebook: Path, at: Place) -> str | None:
    """Write the notebook as report.html; None, or why it could not be."""
    from edge_eval_lib.results import report

    try:
        report.render(notebook, at.directory / "report.html")
    except Exception as error:  # whatever a notebook shows: it must not be half a report
        return _sentence(type(error).__name__, f"report.html could not be rendered: {error}")
    return None


@contextlib.contextmanager
def _its_own(study: Study, run: Run, at: Place) -> Iterator[dict[str, str]]:
    """What the run must have to itself: its device; for the paper's report, which belongs to no
    study, the right to write it. Yields the environment that selects the device."""
    if run.stage not in UNMEASURED:
        with _device(study, run) as environment:
            yield environment
        return
    with contextlib.ExitStack() as stack:
        if run.stage == "paper":
            at.directory.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((at.directory / ".lock").open("a+", encoding="utf-8"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield thread_environment()


def require(study: Study, stage: str, name: str) -> Path:
    """The published notebook of a run that another one needs.

    By hand, in JupyterLab, a missing run (and what it needs) is executed first; within the grid
    the scheduler has done so, and a missing one is an error.
    """
    at = place(study, stage, name)
    if at.notebook.is_file():
        return at.notebook
    if os.environ.get("EDGE_EVAL_RUN"):
        raise UserError(f"The {stage} run {name} is not finished; it is needed here.")
    ensure(study, [find_run(study, stage, name)])
    return at.notebook


def ensure(study: Study, runs: list[Run]) -> None:
    """Execute those of `runs`, and of what they need, that are not finished, one after another."""
    for run in runs:
        if place(study, run.stage, run.name).notebook.is_file():
            continue
        ensure(study, [study.run(*needed) for needed in run.needs])
        print(f"{run.stage}  {run.name} is needed first ...", flush=True)
        command = [sys.executable, "-m", "edge_eval_lib", "run", str(study.path)]
        command += [run.stage, run.name, "--repetitions", str(study.repetitions)]
        held = release_device()  # which the run needs for itself
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        finally:
            if held is not None:
                hold_device(*held)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise UserError(lines[-1] if lines else f"{run.stage} {run.name} was stopped.")


def disturbance(at: Place) -> str | None:
    """What other work did to a finished run's windows, in a phrase; None if nothing doubtful."""
    try:
        found = scraps.read_scraps(at.notebook)
    except (OSError, ValueError):
        return None
    windows = {
        name.removesuffix("_checks"): found[name] for name in found if name.endswith("_checks")
    }
    windows |= {each["window"]: each["checks"] for each in found.get("serving_windows") or []}
    doubtful = [
        (check["verdict"] == "invalid", f"{check['detail']} in '{window}'")
        for window, told in windows.items()
        for check in told or []
        if check["name"] == "interference" and check["verdict"] in ("warning", "invalid")
    ]
    if not doubtful:
        return None
    _invalid, worst = max(doubtful, key=lambda one: one[0])
    more = len(doubtful) - 1
    others = {0: "", 1: ", and one more window"}.get(more, f", and {more} more windows")
    return worst + others


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process `signal_number` when its parent ends (Linux)."""
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_PDEATHSIG, signal_number)


_LIBC = ctypes.CDLL(None)  # before any fork: a forked child must not import


# --- the device -----------------------------------------------------------------------------


_by_hand: list[tuple[contextlib.ExitStack, tuple[Study, Run]]] = []


def hold_device(study: Study, run: Run) -> None:
    """Keep other runs off this machine's devices while a notebook is run by hand.

    Until `release_device`, or the end of this process. Says who has them while it waits.
    """
    if not _by_hand:
        stack = contextlib.ExitStack()
        stack.enter_context(_device(study, run, every=True))
        _by_hand.append((stack, (study, run)))


def release_device() -> tuple[Study, Run] | None:
    """Let others have what `hold_device` holds; for whom it was held, None for nobody."""
    if not _by_hand:
        return None
    stack, held_for = _by_hand.pop()
    stack.close()
    return held_for


@contextlib.contextmanager
def _device(study: Study, run: Run, every: bool = False) -> Iterator[dict[str, str]]:
    """Hold the GPUs that the run needs, or the machine if it has none; yields what selects them.

    The locks lie in one directory a user, whatever the checkout, and end with the process. `every`
    takes all GPUs: nobody has told a notebook that is run by hand which one is its own.
    """
    from edge_eval_lib.economics import fit as memory_fit

    selecting = devices()
    names = list(selecting)
    count = len(names) if every else 1
    if len(names) > 1 and not every:
        count = min(len(names), memory_fit.devices_needed(memory_fit.fits(study), run))
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_lock_file(name)) for name in names]
        held = _take(files, count)
        if held is None:
            what = "machine" if names == ["machine"] else "GPU"
            print(f"{run.stage}  {run.name} waits: {_owner(files[0])} has the {what}", flush=True)
            while held is None:
                time.sleep(0.5)
                held = _take(files, count)
        for file in (files[number] for number in held):
            file.seek(0)
            file.truncate()
            how = ", by hand" if every else ""
            file.write(f"{study.name} {run.stage} {run.name} (process {os.getpid()}{how})")
            file.flush()
        chosen = [selecting[names[number]] for number in held]
        # Each names the same variables; what differs is the GPU.
        selected = {key: ",".join(dict.fromkeys(one[key] for one in chosen)) for key in chosen[0]}
        yield selected | thread_environment(count, len(names))


def thread_environment(devices_held: int = 1, devices_here: int = 1) -> dict[str, str]:
    """As many threads as the run has cores: all that this process may use, shared by device."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    threads = max(1, cores * devices_held // devices_here)
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


def devices() -> dict[str, dict[str, str]]:
    """What a run can have to itself: each GPU that this process may use, else the machine.

    Each has its lock's name and the environment that selects it. In a SLURM job the GPUs are
    those that SLURM gave to it; UserError if it gave none on a machine that has some.
    """
    from edge_eval_lib.machine import nvml

    try:
        found = nvml.visible_devices()
    except nvml.Unavailable:
        return {"machine": {}}
    told = {"CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS"} & os.environ.keys()
    if "SLURM_JOB_ID" in os.environ and not told:
        raise UserError(
            f"This SLURM job has none of the {len(found)} GPUs of its node; submit it with "
            "--gpus=1, or, where SLURM does not manage GPUs, set CUDA_VISIBLE_DEVICES to those "
            "that it may use (empty: none)."
        )
    return {
        # not by index: SLURM may hide the GPUs of other jobs, and every job's is number 0
        f"gpu-{nvml.uuid(device)}": {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": str(device.index),
        }
        for device in found
    }


def lock_directory() -> Path:
    """The user's directory of device locks."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if not base or not Path(base).is_dir():  # a cluster's job may inherit it from another machine
        base = tempfile.gettempdir()
    directory = Path(base) / f"edge-eval-{os.getuid()}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise UserError(f"{directory} belongs to another user; set XDG_RUNTIME_DIR to your own.")
    return directory


def _lock_file(name: str) -> IO[str]:
    return (lock_directory() / f"{name}.lock").open("a+", encoding="utf-8")


def try_lock(file: IO[str]) -> bool:
    """Take the exclusive lock of an open file if nobody has it; it ends with the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take(files: list[IO[str]], count: int) -> list[int] | None:
    """Lock `count` of the files, all or none: two runs must not wait for each other's."""
    held: list[int] = []
    for number, file in enumerate(files):
        if len(held) < count and try_lock(file):
            held.append(number)
    if len(held) == count:
        return held
    for number in held:
        fcntl.flock(files[number], fcntl.LOCK_UN)
    return None


def _owner(file: IO[str]) -> str:
    file.seek(0)
    return file.read() or "another process"


# --- the kernel -----------------------------------------------------------------------------


def notebook_source(stage: str) -> Path:
    """The stage's notebook, in notebooks/ or the directory that EDGE_EVAL_NOTEBOOKS names."""
    folder = os.environ.get("EDGE_EVAL_NOTEBOOKS") or project_root() / "notebooks"
    return Path(folder) / NOTEBOOKS[stage]


def _needs_hub(study: Study, stage: str) -> bool:
    """Whether a run may ask the hub: only for what the study takes from there."""
    if stage == "harness":  # most of its tasks have their data there
        return True
    return study.data.source == "hub" or any(model.source == "hub" for model in study.models)


def _execute(
    source: Path,
    notebook: Path,
    parameters: dict[str, Any],
    environment: dict[str, str],
    at: Place,
) -> str | None:
    """Execute `source` to `notebook`; None, or why it did not reach its end."""
    scraps.skip_uri_grammar()
    from jupyter_client import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook
    from papermill.iorw import LocalHandler, papermill_io

    class RedactingHandler(LocalHandler):
        """Writes notebooks without the environment's secrets."""

        def write(self, buf: str, path: str) -> None:
            super().write(redaction.redact_json(buf), path)

    papermill_io.register(str(at.running), RedactingHandler())
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
            return [*command, "--HistoryManager.enabled=False"]

        async def start_kernel(self, **options: Any) -> None:
            await super().start_kernel(
                env=environment, preexec_fn=lambda: die_with_parent(signal.SIGKILL), **options
            )
            kernels.append(self.provisioner.process)

    def stop(signal_number: int, _frame: Any) -> None:
        for kernel in kernels:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(kernel.pid, signal.SIGKILL)
        shutil.rmtree(at.running, ignore_errors=True)
        # The threads of a killed parent end one after another, and its child is told of the first.
        ends = time.monotonic() + ORPHANED_WITHIN_S
        while signal_number == signal.SIGTERM and os.getppid() == parent:
            if time.monotonic() > ends:
                break
            time.sleep(0.02)
        if os.getppid() != parent:  # nobody asked for it: what started this process was killed
            with contextlib.suppress(OSError):
                write_failure(at, "It was stopped: the process that scheduled it was killed.")
        os._exit(128 + signal_number)

    kills_before = _out_of_memory_kills()
    with _signals(stop):
        try:
            execute_notebook(
                source,
                notebook,
                parameters=parameters,
                kernel_manager_class=RunKernelManager,
                cwd=project_root() / "notebooks",
                progress_bar=False,
                start_timeout=120,
                shutdown_kernel="immediate",
            )
        except PapermillExecutionError as error:
            return _sentence(error.ename, error.evalue)
        except DeadKernelError:
            return _why_dead(kernels, kills_before)
        except Exception as error:  # whatever it is, it belongs to this run alone
            return _sentence(type(error).__name__, str(error))
    return None


@contextlib.contextmanager
def _signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _sentence(name: str, message: str) -> str:
    """An exception on one line; a message that was written for people stands without its name."""
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
    """How many processes the system has killed for lack of memory since it started."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


# --- publication ----------------------------------------------------------------------------


def _publish(at: Place, run: Run, study: Study) -> None:
    """Move the run's files to `runs/`; a notebook there never stands beside another run's data."""
    at.notebook.parent.mkdir(parents=True, exist_ok=True)
    at.settings.parent.mkdir(parents=True, exist_ok=True)
    before = completion.last(at)
    at.settings.unlink(missing_ok=True)
    at.outdated.unlink(missing_ok=True)
    at.notebook.unlink(missing_ok=True)
    for old in at.notebook.parent.glob(f"{at.name}.*.parquet"):
        old.unlink()
    for file in (at.running / "raw").iterdir():
        file.rename(at.notebook.with_name(f"{at.name}.{file.name}"))
    (at.running / "notebook.ipynb").rename(at.notebook)
    shutil.rmtree(at.running, ignore_errors=True)
    completion.write(study, run, before)
    at.failure.unlink(missing_ok=True)
    at.failed_notebook.unlink(missing_ok=True)


def _keep_failure(at: Place, run: Run, reason: str, seconds: float) -> None:
    executed = at.running / "notebook.ipynb"
    try:
        at.failure.parent.mkdir(parents=True, exist_ok=True)
        if executed.is_file():
            executed.rename(at.failed_notebook)
        shutil.rmtree(at.running, ignore_errors=True)
        write_failure(at, reason, run.settings_hash, seconds)
    except OSError:  # the disk is full: the reason is worth more than the notebook
        shutil.rmtree(at.running, ignore_errors=True)
        with contextlib.suppress(OSError):
            at.failed_notebook.unlink(missing_ok=True)
            write_failure(at, reason, run.settings_hash, seconds)


def _explained(reason: str, at: Place) -> str:
    """A full disk is told with its place, whoever noticed it."""
    if os.strerror(errno.ENOSPC) in reason:
        return f"There is no space left on the disk of {at.directory}: {reason}"
    return reason
