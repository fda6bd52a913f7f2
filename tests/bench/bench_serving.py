"""The serving loop against a bare `generate` on the same batches, in one run, alternating.

    python tests/bench/bench_serving.py [STUDY]

Prints tokens per second of both and their ratio: what timing every token costs (target >= 0.98).
"""

import statistics
import sys
import time

from edge_eval_lib import models
from edge_eval_lib.engines import open_engine
from edge_eval_lib.engines.base import Requests
from edge_eval_lib.study import load_study
from edge_eval_lib.tasks import load_task

ROUNDS = 8


def main(study_name: str) -> None:
    import torch

    study = load_study(study_name)
    workload = study.workload
    directory = models.model_directory(study.models[0])
    engine = open_engine("transformers", directory, study.training.compute_dtype)
    engine.load()
    examples = load_task(study.tasks[0], study.data.source).evaluation
    prompts = [engine.encode(example.messages) for example in examples]
    prompts = prompts[: workload.headline_concurrency]

    def bare() -> None:
        inputs = engine.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        with torch.inference_mode():
            engine.model.generate(
                **inputs.to(engine.model.device),
                generation_config=engine.decoding(Requests([], workload.output_tokens, 1)),
            )

    def ours() -> None:
        engine.serve(prompts, workload.output_tokens, len(prompts))

    seconds = {bare: [], ours: []}
    for measured in [bare, ours]:
        measured()  # warm
    for round_number in range(ROUNDS):
        for measured in [bare, ours][:: 1 if round_number % 2 else -1]:
            start = time.perf_counter()
            measured()
            seconds[measured].append(time.perf_counter() - start)
    tokens = len(prompts) * workload.output_tokens
    rate = {name: tokens / statistics.median(taken) for name, taken in seconds.items()}
    print(
        f"serving loop, {len(prompts)} requests x {workload.output_tokens} tokens, {ROUNDS} rounds"
    )
    print(f"  bare generate     {rate[bare]:8.1f} tok/s")
    print(f"  serving loop      {rate[ours]:8.1f} tok/s")
    print(f"  ratio             {rate[ours] / rate[bare]:8.3f}   (target >= 0.98)")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "embedded")
