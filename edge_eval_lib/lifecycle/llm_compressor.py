"""Quantises for vLLM with llm-compressor: INT8 (W8A8) and INT4 (W4A16) as compressed-tensors.

llm-compressor needs other versions of transformers and compressed-tensors than vLLM and this
project run with, so it works in an environment of its own (make llm-compressor) and is run as a
process there. The project's own part of that process is llm_compressor_job.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import project_root

PYTHON_VARIABLE = "EDGE_EVAL_LLM_COMPRESSOR"
JOB = Path(__file__).with_name("llm_compressor_job.py")
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def compressor_python() -> Path:
    """Return the Python of llm-compressor's environment; UserError if there is none."""
    named = os.environ.get(PYTHON_VARIABLE)
    python = Path(named) if named else project_root() / ".venv-llm-compressor" / "bin" / "python"
    if not python.is_file():
        raise UserError(
            "INT8 and INT4 for vLLM are made by llm-compressor, whose environment is missing; run "
            f"make llm-compressor, or name its Python in {PYTHON_VARIABLE}."
        )
    return python


def quantize(
    source: Path,
    directory: Path,
    configuration: dict[str, Any],
    calibration: Sequence[Sequence[int]] | None = None,
) -> list[str]:
    """Quantise the weights in `source` into `directory`.

    Every linear layer but the output head is quantised: by rounding to nearest, or, with
    `calibration` (token ids of texts), by GPTQ.

    Args:
        source: A directory with unquantised weights.
        directory: An empty directory.
        configuration: `scheme` (W8A8, W4A16, or any that llm-compressor knows by name) and, for
            W4A16, `group_sizes`: the first that divides every layer's inputs is taken.
        calibration: Token ids of texts as the model will see them.

    Returns:
        The names of the layers that were to be quantised.

    Raises:
        UserError: llm-compressor is missing or fails.
    """
    python = compressor_python()
    job = configuration | {
        "model": str(source.resolve()),
        "target": str(directory.resolve()),
        "calibration": None if calibration is None else [list(ids) for ids in calibration],
    }
    with tempfile.TemporaryDirectory() as scratch:  # llm-compressor may write logs where it runs
        file = Path(scratch) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        done = subprocess.run(
            [python, "-I", JOB, file],
            cwd=scratch,
            env={**os.environ, **QUIET},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise UserError(
                f"llm-compressor failed to make {job['scheme']} weights: "
                f"{lines[-1].strip() if lines else f'exit code {done.returncode}'}"
            )
        return json.loads((Path(scratch) / "layers.json").read_text(encoding="utf-8"))
