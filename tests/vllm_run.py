"""Serves prompts with the vLLM engine in a process of its own, as a serving run does.

    python tests/vllm_run.py REQUEST.json ANSWER.json

REQUEST.json: model (directory), adapter (directory or null), prefix_caching, prompts (token ids),
output_tokens, concurrencies, arrivals_s (or null), likelihoods (number of examples).
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from edge_eval_lib.engines.vllm import VllmEngine
from edge_eval_lib.tasks import load_task


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    engine = VllmEngine(
        Path(request["model"]),
        "float32",
        prefix_caching=request["prefix_caching"],
        adapter=Path(request["adapter"]) if request["adapter"] else None,
    )
    engine.import_libraries()
    engine.load()
    engine.share_prefixes = request["prefix_caching"]
    prompts, tokens = request["prompts"], request["output_tokens"]
    answer = {"served": {}, "hit_rate": {}}
    for concurrency in request["concurrencies"]:
        served = engine.serve(prompts, tokens, concurrency)
        answer["served"][concurrency] = [asdict(generation) for generation in served]
        answer["hit_rate"][concurrency] = engine.prefix_cache_hit_rate
    if request["arrivals_s"]:
        served = engine.serve_arrivals(prompts, tokens, request["arrivals_s"])
        answer["arrivals"] = [asdict(generation) for generation in served]
    examples = load_task("rag", train_examples=1, evaluation_examples=8, seed=1).evaluation[
        : request["likelihoods"]
    ]
    answer["likelihoods"] = [asdict(one) for one in engine.likelihoods(examples, batch_size=4)]
    answer["kv_cache"] = asdict(engine.kv_cache())
    answer["executed_dtype"] = engine.executed_dtype()
    Path(sys.argv[2]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
