"""No library is first imported inside a measured window: windows of the stage notebooks.

A stage's code cells are executed in one process, with the loaded modules noted at both ends of
every window. Libraries that import their parts late would put them into whatever comes first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import make_tiny_study

from edge_eval_lib.paths import project_root

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "sklearn")
LIBRARIES += ("datasets", "scipy", "safetensors", "huggingface_hub", "sympy", "networkx", "PIL")
OWN = ("imports", "load imports")  # the windows that libraries are imported in

WATCH = """
import gc, json, os, sys
from contextlib import contextmanager
from edge_eval_lib.runs import runner
from edge_eval_lib.energy import Monitor
runner.require = lambda *needed: None  # the stages follow one another here
loaded, late = {}, {}
window = Monitor.window

@contextmanager
def noting(self, name):
    loaded[name] = set(sys.modules)
    with window(self, name) as measured:
        yield measured
    new = set(sys.modules) - loaded[name]
    for around in loaded:  # a window around this one is not charged for it
        loaded[around] |= new
    late[name] = sorted(new)

Monitor.window = noting
notebook, parameters = json.loads(sys.argv[1])
namespace = {"__name__": "__main__"}
for cell in json.load(open(notebook))["cells"]:
    if cell["cell_type"] == "code":
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []):
            namespace |= parameters
        elif "plt." not in source:
            exec(compile(source, cell["id"], "exec"), namespace)
assert gc.isenabled() and gc.get_freeze_count()
assert "TORCHDYNAMO_DISABLE" not in os.environ
print("LATE " + json.dumps(late))
"""


def late_imports(notebook: str, directory: Path, **parameters) -> dict[str, list[str]]:
    """The modules that each window of a stage imported first, libraries' own windows included."""
    path = str(project_root() / "notebooks" / notebook)
    arguments = json.dumps([path, {"model": "tinyllama-0.1M", "task": "rag", **parameters}])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WATCH, arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "EDGE_EVAL_OUTPUTS": str(directory / "outputs"),
            "EDGE_EVAL_RUN_DIRECTORY": str(directory / "raw"),
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("LATE ")]
    return json.loads(line.removeprefix("LATE "))


def of_libraries(late: dict[str, list[str]]) -> dict[str, list[str]]:
    found = {
        window: [name for name in modules if name.split(".")[0] in LIBRARIES]
        for window, modules in late.items()
        if window not in OWN
    }
    return {window: modules for window, modules in found.items() if modules}


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_no_library_is_imported_inside_a_measured_window(tmp_path: Path, method: str):
    study = str(make_tiny_study(tmp_path))
    adapt = late_imports("01_adapt.ipynb", tmp_path, study=study, method=method)
    assert {"imports", "base load", "adapt"} <= set(adapt)
    assert of_libraries(adapt) == {}
    compress = late_imports("02_compress.ipynb", tmp_path, study=study, method=method)
    assert {"imports", "fp16", "int4"} <= set(compress)
    assert of_libraries(compress) == {}
    for late in (adapt, compress):
        assert {"torch", "transformers", "peft", "bitsandbytes"} <= set(late["imports"])
        assert "torch._inductor.compile_fx" not in late["imports"]  # nothing is compiled here
    for precision in {"lora": ("fp16", "int8"), "qlora": ("int4",)}[method]:
        serve = late_imports(
            "03_serve.ipynb",
            tmp_path,
            study=study,
            method=method,
            precision=precision,
            repetition=1,
        )
        assert {"load", "load imports", "warm first token", "serve at 4"} <= set(serve)
        assert of_libraries(serve) == {}
        assert {"torch", "transformers"} <= set(serve["load imports"])
        assert ("bitsandbytes" in serve["load imports"]) == (precision != "fp16")
