"""Models: where their weights come from, whether they are whole, and how a stage loads them.

    directory = models.model_directory(study.models[0])
    model, tokenizer = models.load_model(directory, "float32"), models.load_tokenizer(directory)

torch and transformers are imported by the functions that need them.
"""

from edge_eval_lib.models.load import (
    default_device,
    difference,
    dtype_of_error,
    executed_dtype,
    free_device_bytes,
    keep_compute_dtype,
    load_model,
    published_directory,
    quieten,
    require_logits,
    require_whole,
    weights_unpacked,
)
from edge_eval_lib.models.problems import hub_problem, weight_problems
from edge_eval_lib.models.random_weights import write_random_model
from edge_eval_lib.models.sources import model_directory, package_file
from edge_eval_lib.models.tokens import answer_ids, count_tokens, load_tokenizer, prompt_ids

__all__ = [
    "answer_ids",
    "count_tokens",
    "default_device",
    "difference",
    "dtype_of_error",
    "executed_dtype",
    "free_device_bytes",
    "hub_problem",
    "keep_compute_dtype",
    "load_model",
    "load_tokenizer",
    "model_directory",
    "package_file",
    "prompt_ids",
    "published_directory",
    "quieten",
    "require_logits",
    "require_whole",
    "weight_problems",
    "weights_unpacked",
    "write_random_model",
]
