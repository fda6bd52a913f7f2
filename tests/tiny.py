"""Tiny real models and studies, made on the spot for tests.

    python tests/tiny.py DIRECTORY      writes DIRECTORY/tiny.yaml and its model

Everything about them is real (architecture, tokenizer, chat template, safetensors) but the size:
two layers of width 64, so that a whole study runs in a minute or two.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ALL_CONFIGURATIONS = (("lora", "fp16"), ("lora", "int8"), ("lora", "int4"), ("qlora", "int4"))
SHORT = (("lora", "fp16"), ("lora", "int4"))  # of the study that is written from the command line
TINY_SHAPE = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
# What readers of variants.csv count on.
VARIANT_COLUMNS = {
    "family", "size", "task", "method", "precision", "repetitions", "concurrency", "gpus", "engine",
    "adapt_energy_j", "adapt_s", "compress_energy_j", "compress_s", "load_energy_j", "load_s",
    "energy_per_request_j", "energy_per_request_net_j", "energy_per_token_j", "throughput_tok_s",
    "ttft_ms", "tpot_ms", "memory_gb", "reserved_gb", "memory_nominal_gb",
    "natural_tokens_per_request", "score", "n_break", "n_break_full", "ipw", "rho_sys", "q_ret_pct",
    "q_ret_pct_lo", "q_ret_pct_hi", "c_tax", "energy_source", "merge_base", "notes",
}  # fmt: skip
# Task files for lm-evaluation-harness, and what they have in common.
TINY_TASKS = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "tiny_text": {
        "output_type": "loglikelihood",
        "doc_to_target": " {{choices[answer]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    },
}
TINY_TASK = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}},  # beside the task files
    "test_split": "test",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "metadata": {"version": 1.0},
}


def make_tiny_model(directory: Path, architecture: str = "llama", **shape: Any) -> Path:
    """A randomly initialised two-layer model of that architecture with a tokenizer of its own.

    `architecture` is transformers' word for it: llama, qwen2, mistral, gemma2, gemma3_text, phi3.
    `shape` replaces fields of its configuration.
    Returns `directory`, which then holds what a local model needs.
    """
    from edge_eval_lib.models import write_random_model

    return write_random_model(TINY_SHAPE | {"model_type": architecture} | shape, directory)


def tiny_study(
    directory: Path,
    name: str = "tiny",
    architecture: str = "llama",
    tasks: tuple[str, ...] = ("rag",),
    configurations: tuple[tuple[str, str], ...] = ALL_CONFIGURATIONS,
    **changes: Any,
) -> dict[str, Any]:
    """A study file's content for the tiny model in `directory`/`architecture`.

    `changes` replace top-level fields, or update them where both are mappings.
    """
    content: dict[str, Any] = {
        "name": name,
        "description": "A two-layer model made on the spot; its figures mean nothing.",
        "hardware": "this-machine",
        "models": [
            {
                "family": f"tiny{architecture}",
                "size": "0.1M",
                "source": "local",
                "location": architecture,
                "revision": "none",
                "licence": "Apache-2.0",
                "parameters": 140_000,
                "nominal_gb": {"fp16": 2.8e-4, "int8": 1.4e-4, "int4": 0.7e-4},
            }
        ],
        "tasks": list(tasks),
        "configurations": [{"method": m, "precision": p} for m, p in configurations],
        "data": {
            "source": "embedded",
            "train_examples": 8,
            "heldout_examples": 2,
            "evaluation_examples": 4,
        },
        "training": {
            "lora_rank": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.0,
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "learning_rate": 1e-3,
            "batch_size": 4,
            "epochs": 1,
            "max_tokens": 512,
            "compute_dtype": "float32",
            "gradient_checkpointing": False,
        },
        "workload": {
            "engine": "transformers",
            "output_tokens": 4,
            "uncut_tokens": 8,
            "concurrency": [1, 4],
            "headline_concurrency": 4,
            "latency_prompts": 2,
            "warmup_requests": 1,
            "idle_seconds": 0.5,
        },
        "repetitions": 1,
        "prices": "paper",
        "seed": 7,
    }
    for field, value in changes.items():
        if isinstance(value, dict) and isinstance(content.get(field), dict):
            value = content[field] | value
        content[field] = value
    return content


def make_tiny_study(directory: Path, architecture: str = "llama", **options: Any) -> Path:
    """`tiny_study` written to `directory`/NAME.yaml, with its model beside it; returns the file."""
    if not (directory / architecture / "config.json").is_file():
        make_tiny_model(directory / architecture, architecture)
    return write_tiny_study(directory, architecture=architecture, **options)


def write_tiny_study(directory: Path, name: str = "tiny", **options: Any) -> Path:
    """`tiny_study` written to `directory`/NAME.yaml; no model is made."""
    path = directory / f"{name}.yaml"
    content = tiny_study(directory, name, **options)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def make_all(path: Path, outputs: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`make all` of a study file into `outputs`, with further variables of the environment."""
    from edge_eval_lib.paths import project_root

    return subprocess.run(
        [sys.executable, "-m", "edge_eval_lib", "all", str(path)],
        env=os.environ | {"EDGE_EVAL_OUTPUTS": str(outputs), **variables},
        cwd=project_root(),
        capture_output=True,
        text=True,
        timeout=1500,
    )


def runs_started(said: str) -> list[str]:
    """`stage/name` of the runs of a study that a `make all` started, in their order."""
    line = r"^(?:run \d+ of \d+|report(?!  paper))  (\S+)(?:  (\S+))?  \("
    return [f"{stage}/{name or stage}" for stage, name in re.findall(line, said, re.MULTILINE)]


def hashes(study: Any) -> dict[tuple[str, str], str]:
    """What identifies the settings of every run, by stage and name."""
    return {(run.stage, run.name): run.settings_hash for run in study.runs()}


def make_tiny_tasks(directory: Path, questions: int = 12) -> Path:
    """`TINY_TASKS` as task files for lm-evaluation-harness with so many questions beside them."""
    directory.mkdir()
    for name, task in TINY_TASKS.items():
        content = {"task": name} | TINY_TASK | task
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    rows = [
        {"question": f"What is {n} and {n}?", "choices": [str(2 * n), str(n)], "answer": n % 2}
        for n in range(1, questions + 1)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "questions.jsonl").write_text(lines, encoding="utf-8")
    return directory


def words(count: int, rng: random.Random) -> str:
    """Prose without sense, of words that the tiny tokenizer knows."""
    from edge_eval_lib.tasks.sources import shipped_rows

    known = sorted(
        {word for row in shipped_rows("rag_passages.jsonl") for word in row["text"].split()}
    )
    return " ".join(rng.choices(known, k=count))


def make_local_copy(directory: Path, rows: int = 60, long_every: int = 5) -> Path:
    """A local copy of SQuAD and UltraChat in their own columns, the splits side by side.

    Lengths are as in those sets: replies of some dozen words, but every `long_every`th of 700 to
    900; paragraphs of some dozen words, but every `long_every`th of 500 to 650.
    """
    directory.mkdir(parents=True, exist_ok=True)

    def length(n: int, long: tuple[int, int]) -> int:
        return rng.randint(*long) if n % long_every == long_every - 1 else rng.randint(12, 30)

    for dialogues, questions in (("train_sft", "train"), ("test_sft", "validation")):
        rng = random.Random(dialogues)
        lines = {dialogues: [], questions: []}
        for n in range(rows):
            told = [f"{dialogues} {n} {words(8, rng)}?", words(12, rng), words(6, rng)]
            told += [words(length(n, (700, 900)), rng), words(5, rng), words(900, rng)]
            messages = [
                {"content": content, "role": "user" if i % 2 == 0 else "assistant"}
                for i, content in enumerate(told)
            ]
            row = {"prompt": told[0], "prompt_id": f"{dialogues}-{n}", "messages": messages}
            lines[dialogues].append(row)
            context = f"{questions} {n} {words(length(n, (500, 650)), rng)}."
            answer = " ".join(context.split()[2:5])
            row = {"id": f"{questions}-{n}", "title": f"Page_{n}", "context": context}
            row |= {"question": f"What is told of {' '.join(context.split()[:6])}?"}
            row |= {"answers": {"text": [answer], "answer_start": [context.index(answer)]}}
            lines[questions].append(row)
        for split, content in lines.items():
            text = "".join(json.dumps(row) + "\n" for row in content)
            (directory / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return directory


def write_sources(directory: Path, monkeypatch: Any) -> Path:
    """Have every stage's notebook be one of a single empty cell, as tests write executed ones."""
    from edge_eval_lib.study import NOTEBOOKS

    cell = {"cell_type": "code", "id": "a", "source": "", "metadata": {}, "outputs": []}
    empty = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    directory.mkdir(exist_ok=True)
    for file_name in NOTEBOOKS.values():
        (directory / file_name).write_text(json.dumps(empty), encoding="utf-8")
    monkeypatch.setenv("EDGE_EVAL_NOTEBOOKS", str(directory))
    return directory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny study and its model.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--architecture", choices=["llama", "qwen2"], default="llama")
    arguments = parser.parse_args()
    study_name = "tiny" if arguments.architecture == "llama" else f"tiny-{arguments.architecture}"
    study = make_tiny_study(
        arguments.directory, arguments.architecture, name=study_name, configurations=SHORT
    )
    print(study)
