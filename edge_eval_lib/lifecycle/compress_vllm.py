"""Compression for vLLM: INT8 (W8A8) and INT4 (W4A16) as compressed-tensors, by llm-compressor.

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
from edge_eval_lib.lifecycle import adapt, compress
from edge_eval_lib.lifecycle.compress import INT4_LARGEST_SHARE, Artefact, tensor_bytes
from edge_eval_lib.lifecycle.data import task_examples
from edge_eval_lib.models import load as models
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import Study

PYTHON_VARIABLE = "EDGE_EVAL_LLM_COMPRESSOR"
JOB = Path(__file__).with_name("llm_compressor_job.py")
# Weights and, for W8A8, activations (quantised anew for each token) in bits.
SCHEMES = {"int8": "W8A8", "int4": "W4A16"}
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def compressor_python() -> Path:
    """The Python of llm-compressor's environment; UserError if there is none."""
    told = os.environ.get(PYTHON_VARIABLE)
    python = Path(told) if told else project_root() / ".venv-llm-compressor" / "bin" / "python"
    if not python.is_file():
        raise UserError(
            "INT8 and INT4 for vLLM are made by llm-compressor, whose environment is missing; run "
            f"make llm-compressor, or name its Python in {PYTHON_VARIABLE}."
        )
    return python


def quantize(
    fp16_directory: Path,
    precision: str,
    target: Path,
    calibration: Sequence[Sequence[int]] | None = None,
) -> Artefact:
    """Write the FP16 weights at `precision` (`int8` or `int4`) to `target`, checked.

    Every linear layer but the output head is quantised: by rounding to nearest, or, with
    `calibration` (token ids of texts as the model will see them), by GPTQ. INT4 has a scale for
    each group of weights, of the largest of 128, 64 and 32 that divides every layer's inputs.
    Raises UserError if llm-compressor is missing or fails, RuntimeError if a layer was left
    unquantised or the file is larger than it may be.
    """
    if precision not in SCHEMES:
        raise ValueError(f"precision is {precision!r}; it is 'int8' or 'int4'")
    python = compressor_python()
    with models.published_directory(target) as directory:
        linear_layers = _run_job(
            python,
            {
                "model": str(fp16_directory.resolve()),
                "target": str(directory.resolve()),
                "scheme": SCHEMES[precision],
                "calibration": None if calibration is None else [list(ids) for ids in calibration],
            },
        )
        models.load_tokenizer(fp16_directory).save_pretrained(directory)
        share = _checked_share(directory, fp16_directory, linear_layers)
        if precision == "int4" and share > INT4_LARGEST_SHARE:
            raise RuntimeError(
                f"{target.name}: the 4-bit layers take {share:.2f} of their FP16 bytes, more than "
                f"{INT4_LARGEST_SHARE}"
            )
    layers = {SCHEMES[precision]: len(linear_layers)}
    return Artefact(precision, target, adapt.directory_bytes(target), layers, share)


def quantize_for_engine(
    study: Study, task: str, fp16_directory: Path, precision: str, target: Path
) -> Artefact:
    """Quantise as the study's engine needs it: by llm-compressor for vLLM, calibrated on the first
    `calibration_examples` that the adapter was trained on, else by bitsandbytes."""
    if study.workload.engine != "vllm":
        return compress.quantize(fp16_directory, precision, study.training.compute_dtype, target)
    calibration = None
    if study.calibration_examples:
        tokenizer = models.load_tokenizer(fp16_directory)
        trained = task_examples(study, task, tokenizer)[0]
        chosen = trained[: study.calibration_examples]
        encoded = adapt.encode(tokenizer, chosen, study.training.max_tokens)
        calibration = [row["input_ids"] for row in encoded]
    return quantize(fp16_directory, precision, target, calibration)


def _run_job(python: Path, job: dict[str, Any]) -> list[str]:
    """Run the job in llm-compressor's environment; the names of the layers it was to quantise."""
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
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise UserError(
                f"llm-compressor failed to make {job['scheme']} weights: "
                f"{said[-1].strip() if said else f'exit code {done.returncode}'}"
            )
        return json.loads((Path(scratch) / "layers.json").read_text(encoding="utf-8"))


def _checked_share(directory: Path, fp16_directory: Path, linear_layers: list[str]) -> float:
    """Bytes of the quantised layers, scales included, over the same layers' bytes in FP16."""
    quantized, fp16 = tensor_bytes(directory), tensor_bytes(fp16_directory)
    left = [name for name in linear_layers if f"{name}.weight_scale" not in quantized]
    if left or not linear_layers:
        raise RuntimeError(f"left unquantised: {', '.join(left) or 'every layer'}")
    layers = set(linear_layers)
    taken = sum(size for name, size in quantized.items() if name.rsplit(".", 1)[0] in layers)
    return taken / sum(fp16[f"{layer}.weight"] for layer in layers)
