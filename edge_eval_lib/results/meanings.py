"""What every column of a study's tables means: the only place for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_eval_lib import tasks
from edge_eval_lib.metrics import METRICS
from edge_eval_lib.results.readable import Prose, heading

# What a name may end with, and what that means; in the order in which endings are looked for.
ENDINGS = {
    "_estimate_lo": "lower end of an estimate's range, every energy at the same watts a core",
    "_estimate_hi": "upper end of it",
    "_lo_j": "lower end of an estimated energy's range",
    "_hi_j": "upper end of it",
    "_lo": "lower bound of the 95 % interval, over runs or prompts",
    "_hi": "upper bound of it",
    "_least": "least over the price scenarios",
    "_most": "most over them",
    "_median": "the median instead of the paper's rule",
    "_pooled": "mean over all loads of a configuration, whatever the task",
    "_difference_no_model": "less what the best rule without a model scores, on the same prompts",
    "_difference": "less the unadapted base's, on the same prompts",
    "_share": "mean over the answers",
    "_with_caching": "with what prompts have in common computed once",
    "_ratio": "QLoRA over LoRA; of prefix caching, with over without",
}
PREFIXES = {"lora_": "of the LoRA adapter", "qlora_": "of the QLoRA adapter"}

COUNTS = {"repetitions", "concurrency", "gpus", "requests", "failed_requests", "calls_per_request",
          "input_tokens_per_request", "output_tokens_per_request", "natural_tokens_per_request",
          "rows_passed_over", "loads", "scored_prompts", "prompts", "answer_tokens",
          "int4_variants", "few_shot"}  # fmt: skip
SHARES = {"limit_reached", "still_cut", "prefix_cache_hit_rate", "batch_agreement",
          "top1_agreement"}  # fmt: skip

_KEYS = {
    "family": "model family",
    "size": "model size, as its card says it",
    "model": "family and size",
    "task": "what is asked",
    "method": "how it was adapted: lora, qlora; none is the base as it is",
    "precision": "of the weights that were served, or the chain of compressions",
    "repetitions": "cold serving runs that the row is the mean of",
    "concurrency": "requests in flight",
    "rate_per_s": "requests a second that came, on average (Poisson)",
    "engine": "what served",
    "executed_dtype": "what the linear layers computed in, measured",
    "gpus": "GPUs in use; empty for an endpoint, where it is not known",
    "prices": "set of params/prices.yaml",
    "energy_source": "where joules come from; cpu-model is an estimate",
    "window": "whole, or the steady state of continuous batching",
    "validity": "ok, or the checks that are not",
    "merge_base": "what the adapter was merged into",
    "host": "processor or GPU; no name of a machine",
    "instruction_set": "the processor's, as far as it decides which kernels run",
    "settings_hash": "identifies the settings of the row's runs",
    "notes": "why a figure is missing, and what limits one",
}
_MEASURED = {
    "adapt_energy_j": "loading the base and training the adapter",
    "adapt_s": "loading the base and training the adapter",
    "adapt_peak_memory_gb": "peak memory of loading the base and training the adapter",
    "adapt_power_w": "mean power of adapting",
    "adapt_train_energy_j": "training alone, without loading the base",
    "adapt_train_s": "training alone, without loading the base",
    "adapt_train_peak_memory_gb": "peak memory of training alone, without loading the base",
    "compress_energy_j": "merging the adapter and quantising",
    "compress_s": "merging the adapter and quantising",
    "load_energy_j": "a cold load: from a bare interpreter to the first token",
    "load_s": "a cold load: from a bare interpreter to the first token",
    "load_model_energy_j": "a cold load without importing the libraries",
    "load_interpreter_s": "of the load: starting the interpreter",
    "load_import_energy_j": "of the load: importing the libraries",
    "load_import_s": "of the load: importing the libraries",
    "load_read_s": "of the load: reading the weights",
    "load_place_s": "of the load: placing them",
    "load_first_token_s": "of the load: what the first token took beyond a warm one",
    "loads": "cold loads that the row is the mean of",
    "idle_bare_power_w": "the machine idle, nothing loaded",
    "idle_loaded_power_w": "the machine idle, weights resident",
    "keep_warm_s": "idle time beyond which unloading takes less energy than staying loaded",
    "energy_per_request_j": "gross energy of the serving window over its requests",
    "energy_per_request_net_j": "net energy of a request: bare idle power taken off",
    "energy_per_token_j": "gross energy over output tokens",
    "throughput_tok_s": "output tokens a second",
    "ttft_ms": "time to first token: first token less submission, mean",
    "ttft_p95_ms": "time to first token, 95th percentile, of 20 requests or more",
    "tpot_ms": "time per output token: (last - first token) / (tokens - 1), mean",
    "tpot_p95_ms": "time per output token, 95th percentile, of 20 requests or more",
    "latency_s": "of a conversation: first submission to last token",
    "memory_gb": "peak that serving needed: weights, activations, KV cache really used",
    "reserved_gb": "what the engine took in advance",
    "memory_nominal_gb": "the model card's size",
    "power_w": "mean power of the window",
    "requests": "requests that were answered",
    "failed_requests": "requests without an answer; in no latency",
    "input_tokens_per_request": "tokens of the prompt",
    "output_tokens_per_request": "tokens generated, a fixed number",
    "natural_tokens_per_request": "tokens up to the answer's own end",
    "calls_per_request": "calls of a conversation",
    "batch_agreement": "share of answers that are token for token those given alone",
    "prefix_cache_hit_rate": "share of prompt tokens found in the cache",
    "rows_passed_over": "training rows left out because they are too long",
}
_SCORES = {
    "score": "of the answers, 0 to 1: token F1 (rag), ROUGE-L (summarization), similarity "
    "(dialogue)",
    "scored_prompts": "prompts that the score is the mean of",
    "prompts": "prompts that were scored",
    "content": "score of the content alone: form earns nothing",
    "answer_tokens": "tokens of the answer that was scored",
    "gold_nll": "negative log-likelihood of the reference answer, a token",
    "mean_logprob": "how sure the model was: log-probability of its tokens, mean",
    "mean_margin": "its token's probability less the next best's, mean",
    "top1_agreement": "share of tokens that FP16 would have chosen as well",
    "limit_reached": "share of answers that did not end within output_tokens",
    "still_cut": "share of answers that did not end within uncut_tokens either",
}
_METRICS = {name: f"{metric.symbol} = {metric.formula}" for name, metric in METRICS.items()} | {
    "n_break_full": "N_break with labour, hardware, compressing and loading, against token prices",
    "rho_sys_nominal": "ρ_sys by the model card's size",
    "c_tax_model": "C_tax without importing the libraries",
    "score_per_watt": "score / mean power",
}
_OTHERS = {
    "int4_variants": "INT4 variants that the row was chosen among",
    "not_ordered": "what noise of one run does not let tell apart",
    "energy_j": "loading the base and training",
    "s": "loading the base and training, in seconds",
    "peak_memory_gb": "peak memory",
    "train_energy_j": "training alone",
    "train_s": "training alone",
    "train_peak_memory_gb": "peak memory of training alone",
    "with_merge_energy_j": "the adaptation, and merging (QLoRA: and quantising)",
    "energy": "of a ratio: loading the base and training",
    "seconds": "of a ratio: loading the base and training",
    "power": "of a ratio: mean power of it",
    "memory": "of a ratio: peak memory",
    "with_merge_energy": "of a ratio: the adaptation, and merging (QLoRA: and quantising)",
    "train_energy": "of a ratio: training alone",
    "train_seconds": "of a ratio: training alone",
    "run": "name of the run",
    "stage": "stage of the run",
    "check": "what was looked at: measurement.md#validity-checks",
    "verdict": "ok, warning, invalid or not applicable",
    "detail": "why",
    "harness_task": "lm-evaluation-harness's task",
    "group": "group that it was asked for as part of",
    "metric": "the library's metric",
    "filter": "the library's word for how an answer was read out of a text",
    "higher_is_better": "whether a higher value is better",
    "value": "of the metric",
    "stderr": "the library's standard error",
    "few_shot": "examples before each prompt",
    "task_version": "version of the library's task",
    "lm_eval": "version of the library",
}


@dataclass(frozen=True)
class Explanation:
    """What a newcomer must know of a metric; docs/metrics.md has the same words, and more."""

    meaning: str
    good: str
    lies: str


EXPLANATIONS = {
    "n_break": Explanation(
        "After how many requests adapting has paid, against asking an API.",
        "Few, and far fewer than you will ask; below 1 it has paid before the first request is "
        "over; “never” where the API costs no more than serving here.",
        "It counts electricity alone: with labour and the machine it is larger by orders of "
        "magnitude, and hardly depends on the model.",
    ),
    "ipw": Explanation(
        "How much score a joule buys; in spite of its name, intelligence per watt, it is per "
        "joule.",
        "More, among variants of one task: scores of different tasks are different scales.",
        "More requests in flight and shorter answers raise it without a better model, and a model "
        "that says nothing at almost no energy may beat a good one.",
    ),
    "rho_sys": Explanation(
        "How many tokens a second each gigabyte of memory yields.",
        "More, where memory is what you lack.",
        "It counts tokens and not right answers, so that a small model always wins; divided by a "
        "model card's size instead of the measured peak it is several times larger.",
    ),
    "q_ret_pct": Explanation(
        "Which share of LoRA-FP16's score a variant keeps, on the same model, task and prompts.",
        "100; where its interval holds 100, these prompts show no loss.",
        "With few prompts its interval is wide, and 100 % of a bad score is a bad score.",
    ),
    "c_tax": Explanation(
        "How many requests take as much energy as one cold start.",
        "Few, where the model is started on demand; it does not matter of one that stays loaded.",
        "A variant that wastes energy on every request has a low tax; and below a billion weights "
        "most of it is the import of libraries, which no choice of model changes.",
    ),
}


def explained(name: str, *below: object) -> Prose:
    """Show in a notebook what a metric is, how it lies, and below that its figures."""
    metric, words = METRICS[name], EXPLANATIONS[name]
    better = {"min": "lower", "max": "higher"}[metric.better]
    parts = [
        words.meaning,
        f"    {metric.symbol} = {metric.formula}   [{metric.unit}]",
        f"**Good** ({better} is better): {words.good[0].lower()}{words.good[1:]}",
        f"**How it lies.** {words.lies}",
        *map(str, below),
    ]
    return Prose("\n\n".join(filter(None, parts)))


def groups() -> dict[str, dict[str, str]]:
    """Return what each column means, in groups for people; each task's own figures among them."""
    of_tasks = [tasks.find(task).figures for task in tasks.names()]
    figures = {name: words for named in reversed(of_tasks) for name, words in named.items()}
    scores = _SCORES | {name: words for name, words in figures.items() if name not in _KEYS}
    return {
        "What a row is of": _KEYS,
        "Measured": _MEASURED,
        "Of the answers": scores,
        "Metrics": _METRICS,
        "In single tables": _OTHERS,
    }


def stem(column: str) -> str:
    """Return the column that a bound, a median or a difference is of; itself if of none."""
    known = {name for group in groups().values() for name in group}
    while column not in known:
        ending = next((e for e in ENDINGS if column.endswith(e)), None)
        prefix = next((p for p in PREFIXES if column.startswith(p)), None)
        if ending is not None:
            unit = "_j" if ending in ("_lo_j", "_hi_j") else ""
            column = column.removesuffix(ending) + unit
        elif prefix is not None:
            column = column.removeprefix(prefix)
        else:
            break
    return column


def meaning(column: str) -> str | None:
    """Return what a column means, its endings aside; None of a column that is not known."""
    name = stem(column)
    return next((group[name] for group in groups().values() if name in group), None)


def unit(column: str) -> str:
    """Return a column's unit, as over it in tables for people; empty of words and names."""
    name = stem(column)
    if name in COUNTS:
        return "count"
    scored = (name in tasks.find(task).figures for task in tasks.names())
    if name in SHARES or (name not in _KEYS and any(scored)):  # a score is called precision, too
        return "0–1"
    found = re.search(r" \[(.+)\]$", heading(name))
    return found[1] if found else ""
