"""Studies with small notebooks of the tests' own, run by the real commands.

The notebooks go through the real scheduler, runner, papermill and kernels; only what they do is
small. What a run is to do wrong stands in a file: `{"serve/NAME": "kill"}`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import psutil
import yaml
from tiny import TINY_SHAPE, tiny_study

from edge_eval_lib.paths import project_root
from edge_eval_lib.study import NOTEBOOKS

MISDEEDS = """
import os, resource, signal, struct, time
from edge_eval_lib import scraps

def make_artefacts(run, misdeed):
    # Adapter and weights of a few bytes, the same every time unless they are to be others.
    stage, name = run.split("/")
    if stage not in ("adapt", "compress"):
        return
    from edge_eval_lib.study import load_study  # half of what a run takes here
    loaded = load_study(study)
    for path in loaded.run(stage, name).artefacts:
        content = (path + " other" * (misdeed == "other")).encode()
        header = json.dumps({"a": {"dtype": "U8", "shape": [len(content)],
                                   "data_offsets": [0, len(content)]}}).encode()
        target = loaded.directory / path
        target.mkdir(parents=True, exist_ok=True)
        data = struct.pack("<Q", len(header)) + header + content
        (target / "model.safetensors").write_bytes(data)

run = os.environ["EDGE_EVAL_RUN"]
misdeed = json.loads(Path(os.environ["MISDEEDS"]).read_text()).get(run)
scraps.record("stage", run.split("/")[0])
scraps.record("run", run.split("/")[1])
scraps.record("threads", os.environ.get("OMP_NUM_THREADS"))
scraps.record("settings_hash", os.environ["EDGE_EVAL_SETTINGS_HASH"])
(Path(os.environ["EDGE_EVAL_RUN_DIRECTORY"]) / "raw.parquet").write_text(run)
make_artefacts(run, misdeed)
if misdeed == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif misdeed == "memory":
    resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))
    bytearray(1 << 33)
elif misdeed == "raise":
    raise ValueError("the first line\\nand a second one")
elif misdeed == "sleep":
    time.sleep(120)
elif misdeed == "fill":
    with (Path(os.environ["EDGE_EVAL_RUN_DIRECTORY"]) / "fill.bin").open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
elif misdeed == "nap":
    time.sleep(3)
"""
TINY_LLAMA = TINY_SHAPE | {"model_type": "llama"}
CONFIGURATIONS = (("lora", "fp16"), ("lora", "int8"))


def write_notebooks(directory: Path) -> None:
    """A notebook for every stage but the paper, which needs no study."""
    directory.mkdir()
    cell = nbformat.v4.new_code_cell
    parameters = "study = model = task = method = precision = None\nrepetition = 1"
    for stage, file_name in NOTEBOOKS.items():
        if stage == "paper":
            continue
        complete = "scraps.complete()"
        if stage == "synthesis":
            complete = (
                "from edge_eval_lib.study import load_study\n"
                "(load_study(study).directory / 'report.html').write_text('report')\n"
                "scraps.complete()"
            )
        notebook = nbformat.v4.new_notebook(
            cells=[
                cell(parameters, metadata={"tags": ["parameters"]}),
                cell("import json\nfrom pathlib import Path" + MISDEEDS),
                cell(complete),
            ],
            metadata={
                "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
            },
        )
        nbformat.write(notebook, directory / file_name)


@dataclass
class Grid:
    """A study of six runs in a directory of its own, and the commands that work on it."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "EDGE_EVAL"))}
        self.environment = kept | {
            "EDGE_EVAL_NOTEBOOKS": str(self.directory / "notebooks"),
            "EDGE_EVAL_OUTPUTS": str(self.directory / "outputs"),
            "XDG_RUNTIME_DIR": str(self.directory),  # device locks of the test's own
            "MISDEEDS": str(self.directory / "misdeeds.json"),
        }

    @property
    def study(self) -> Path:
        return self.directory / "small.yaml"

    @property
    def outputs(self) -> Path:
        return self.directory / "outputs" / "small"

    def write_study(self, **changes: object) -> None:
        options = {"configurations": CONFIGURATIONS} | changes
        content = tiny_study(self.directory, "small", **options)
        # No notebook here loads it: of random weights no file needs to be there.
        content["models"][0] |= {"source": "random", "location": "llama", "config": TINY_LLAMA}
        self.study.write_text(yaml.safe_dump(content), encoding="utf-8")

    def misbehave(self, **misdeeds: str) -> None:
        """serve__NAME="kill" has that run kill its kernel, adapt__NAME="other" has it make another
        adapter; nothing given: all behave."""
        named = {run.replace("__", "/", 1): what for run, what in misdeeds.items()}
        Path(self.environment["MISDEEDS"]).write_text(json.dumps(named), encoding="utf-8")

    def forget(self, stage: str, name: str) -> None:
        """Remove a run's published files, as if it had never been made."""
        (self.outputs / "settings" / stage / f"{name}.json").unlink()
        for file in (self.outputs / "runs" / stage).glob(f"{name}.*"):
            file.unlink()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "edge_eval_lib", *arguments]

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of edge_eval_lib to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )

    def all(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.call("all", str(self.study), *options)

    def start(
        self, command: list[str], interrupts: signal.Handlers = signal.SIG_DFL
    ) -> subprocess.Popen[str]:
        """Start a command as a terminal does: in a process group of its own, that an interrupt
        reaches; or, with SIG_IGN, as a shell does in the background."""
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=project_root(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, interrupts),
        )

    def published(self) -> dict[str, bytes]:
        """Content of every published notebook by `stage/name`."""
        paths = sorted((self.outputs / "runs").glob("*/*.ipynb"))
        return {f"{path.parent.name}/{path.stem}": path.read_bytes() for path in paths}

    def processes(self) -> list[psutil.Process]:
        """Every process that works on this grid: they all have its outputs in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("EDGE_EVAL_OUTPUTS")
            except psutil.Error:
                continue
            if mine == self.environment["EDGE_EVAL_OUTPUTS"]:
                found.append(process)
        return found


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until `condition` holds; fails the test if it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
