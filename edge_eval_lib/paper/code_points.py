"""What the released code would have produced beside what the figures show, point by point.

params/published/code_points.csv holds the words of each point; a function here has its check: what
fills the words, and whether the figures agree.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from edge_eval_lib.economics.published import (
    CARDS,
    MODEL,
    Published,
    folder,
    for_rows,
    requests_in_flight,
)
from edge_eval_lib.paper.analysis import Paper
from edge_eval_lib.paper.evidence import LARGE_PARAMETERS, by
from edge_eval_lib.paper.plausible import (
    T4_BANDWIDTH_BYTES_S,
    T4_FP16_FLOPS,
    T4_POWER_LIMIT_W,
    decode_bound_tok_s,
    weight_bytes,
)
from edge_eval_lib.paper.qlora import decomposition

# What the released scripts set (github.com/Abdullah4152/EDGE-EVAL, src/): samples served, the
# output limit by task, samples scored a pass, slots of the engine when none are named.
SERVED_SAMPLES = 40
OUTPUT_LIMIT = {"rag": 256, "summarization": 128, "dialogue": 256}
SCORED_SAMPLES = 200
ENGINE_SLOTS = 256
# Training examples by size and task: 5,000 but for these.
TRAIN_EXAMPLES = {("1B", "rag"): 15000, ("1.5B", "rag"): 15000, ("3B", "rag"): 10000} | {
    (size, "dialogue"): 10000 for size in ("1B", "1.5B", "3B", "7B", "8B")
}

Check = Callable[[Paper], tuple[bool, dict[str, object]]]  # agrees, and what fills the words


def code_against_figures(paper: Paper) -> pd.DataFrame:
    """Set what the released code would have produced beside the figures; a row a point.

    bears_on names the headline figures that mean something else where a point does not agree; it
    is empty for a detail, such as one window of many, and for what another point already says.
    """
    points = pd.read_csv(folder() / "code_points.csv")
    checked = [CHECKS[topic](paper) for topic in points["topic"]]
    for column in ("code_or_paper", "figures"):
        words = zip(points[column], checked, strict=True)
        points[column] = [text.format_map(values) for text, (_, values) in words]
    points.insert(3, "agrees", [bool(agrees) for agrees, _ in checked])
    return points


# --- the meter and the load -------------------------------------------------------------------


def _window_s(serving: pd.DataFrame) -> pd.Series:
    return serving["serve_energy_j"] / serving["power_mean_w"]


def _energy_window(paper: Paper):
    s = paper.figures.serving
    loaded = (_window_s(s) / (s["load_s"] + s["serve_s"]) - 1).abs().max()
    return loaded < 0.02, {"deviation": (_window_s(s) / s["serve_s"] - 1).abs().max()}


def _cards_in_the_meter(paper: Paper):
    s = paper.figures.serving
    above = s["power_mean_w"] > T4_POWER_LIMIT_W
    facts = {"limit_w": T4_POWER_LIMIT_W, "above": above.sum(), "rows": len(s)}
    return not above.any(), facts | {"peak_w": s["power_peak_w"].max()}


def _batch_size(paper: Paper):
    n = requests_in_flight(paper.figures.serving)
    return (n <= 1.5).all(), {"least": n.min(), "most": n.max(), "mean": n.mean()}


def _length_of_the_window(paper: Paper):
    s = paper.figures.serving
    tokens = s["output_tokens"] / s["requests"]
    requests = s["serve_s"] / ((s["ttft_mean_ms"] + s["tpot_mean_ms"] * (tokens - 1)) / 1e3)
    facts = {"slots": ENGINE_SLOTS, "least": requests.min(), "most": requests.max()}
    return (requests < 1.5).all(), facts


def _samples_served(paper: Paper):
    served = paper.figures.serving["requests"]
    facts = {"expected": SERVED_SAMPLES, "served": ", ".join(map(str, sorted(set(served))))}
    return (served == SERVED_SAMPLES).all(), facts


def _output_tokens(paper: Paper):
    s = paper.figures.serving
    tokens = s["output_tokens"] / s["requests"]
    above = tokens > s["task"].map(OUTPUT_LIMIT)
    lengths = tokens.groupby(s["task"])
    agrees = lengths.nunique().gt(1).all() and not above.any()
    return agrees, {
        "limits": ", ".join(f"{n} ({task})" for task, n in OUTPUT_LIMIT.items()),
        "lengths": ", ".join(f"{n:g} ({task})" for task, n in lengths.first().items()),
        "above": above.sum(),
    }


def _samples_scored(paper: Paper):
    sums = paper.figures.quality["score_median"] * SCORED_SAMPLES
    fits = (sums - sums.round()).abs() < 1e-3
    facts = {"expected": SCORED_SAMPLES, "fitting": fits.sum(), "medians": len(fits)}
    return fits.all(), facts


# --- QLoRA as served and compressed -----------------------------------------------------------


def _as_served(column: str) -> Check:
    """QLoRA-INT4 is nearer to LoRA-FP16 than to LoRA-INT4 (geometric means of their ratios)."""

    def check(paper: Paper):
        serving = paper.figures.serving
        at = [*MODEL, "task", "method", "precision"]
        values = np.log(serving.groupby(at)[column].mean()).unstack([3, 4])
        ratio = {
            precision: float(
                np.exp((values[("qlora", "int4")] - values[("lora", precision)]).mean())
            )
            for precision in ("fp16", "int4")
        }
        return abs(ratio["fp16"] - 1) < abs(ratio["int4"] - 1), ratio

    return check


def _quantisation_window(paper: Paper):
    c = paper.figures.compression.set_index([*MODEL, "task", "method"])
    merge, quantise = (c[c["operation"] == o]["compress_s"] for o in ("merge", "quantize"))
    shorter = quantise < merge.reindex(quantise.index).to_numpy()
    return not shorter.any(), {"shorter": shorter.sum(), "all": len(shorter)}


def _qlora_as_compressed(paper: Paper):
    steps = by(paper.figures.compression, method="qlora")["operation"]
    counts = {"merges": (steps == "merge").sum(), "quantisations": (steps == "quantize").sum()}
    return counts["quantisations"] == 0, counts


# --- energy, training, speed ------------------------------------------------------------------


def _energy_and_power(paper: Paper):
    windows = energy_over_power_and_time(paper.figures)
    unequal = windows[(windows["ratio"] - 1).abs() > 0.01]
    named = "".join(
        f": {row['name']}, power times seconds is {1 - 1 / row['ratio']:.0%} below energy"
        for _, row in unequal.iterrows()
    )
    return unequal.empty, {"unequal": len(unequal), "all": len(windows), "named": named}


def energy_over_power_and_time(figures: Published) -> pd.DataFrame:
    """Return energy over mean power x seconds of every published window, with its name."""
    parts = []
    for table, what, power in (
        (figures.adaptation, "adapt", "adapt_power_w"),
        (figures.compression, "compress", "compress_power_w"),
        (figures.serving, "serve", "power_mean_w"),
    ):
        ratio = table[f"{what}_energy_j"] / (table[power] * table[f"{what}_s"])
        parts.append(table.assign(ratio=ratio, window=what))
    every = pd.concat(parts, ignore_index=True)
    words = every[["window", *MODEL, "task", "method", "precision"]].to_numpy()
    names = [" ".join(str(word) for word in row if pd.notna(word)) for row in words]
    return pd.DataFrame({"name": names, "ratio": every["ratio"]})


def _large(paper: Paper, method: str) -> pd.DataFrame:
    runs = by(paper.figures.adaptation, method=method)
    return runs[for_rows(paper.models["parameters"], runs) >= LARGE_PARAMETERS]


def _lora_of_the_largest(paper: Paper):
    runs = _large(paper, "lora")
    cards = "/".join(map(str, sorted(set(runs["gpus"]))))
    watts = runs["adapt_power_w"].mean()
    return len(runs) == 0, {"runs": len(runs), "cards": cards, "watts": watts}


def _qlora_of_the_largest(paper: Paper):
    runs = _large(paper, "qlora")
    facts = {"one_card": (runs["gpus"] == 1).sum(), "runs": len(runs)}
    return (runs["gpus"] == 2).all(), facts | {"watts": runs["adapt_power_w"].mean()}


def _training_examples(paper: Paper):
    runs = paper.figures.adaptation
    keys = zip(runs["size"], runs["task"], strict=True)
    equal = runs["train_examples"] == [TRAIN_EXAMPLES.get(key, 5000) for key in keys]
    return equal.all(), {"equal": equal.sum(), "runs": len(runs)}


def _weights_from_one_card(paper: Paper):
    s = paper.figures.serving
    one_card_ms = 1e3 * weight_bytes(s, paper.models, "parameters") / T4_BANDWIDTH_BYTES_S
    large = for_rows(paper.models["parameters"], s) >= LARGE_PARAMETERS
    faster = s["tpot_mean_ms"] < one_card_ms
    slowest = one_card_ms[large & (s["precision"] == "fp16")].max()
    return not faster.any(), {"slowest_ms": slowest, "faster": faster.sum(), "rows": len(s)}


def _prompt_length(paper: Paper):
    s, inputs = paper.figures.serving, paper.prices.api_input_tokens_per_request
    operations = 2 * for_rows(paper.models["decode_parameters"], s) * inputs
    sooner = s["ttft_mean_ms"] < 1e3 * operations / (CARDS * T4_FP16_FLOPS)
    return not sooner.any(), {"inputs": inputs, "sooner": sooner.sum(), "rows": len(s)}


def _speed_against_bandwidth(paper: Paper):
    s, inputs = paper.figures.serving, paper.prices.api_input_tokens_per_request
    share = s["throughput_tok_s"] / decode_bound_tok_s(s, paper.models, inputs)
    facts = {"inputs": inputs, "above": (share > 1).sum(), "rows": len(s)}
    return (share <= 1).all(), facts | {"fastest": share[share <= 1].max()}


def _one_lora_run(paper: Paper):
    split = decomposition(paper)
    odd = split[split["looks_like_qlora"]]
    one_card = split[(split["lora_gpus"] == 1) & ~split["looks_like_qlora"]]["lora_watts_per_card"]
    named = "; ".join(
        f"{row['family']}-{row['size']} {row['task']} draws {row['lora_watts_per_card']:.0f} W"
        for _, row in odd.iterrows()
    )
    return odd.empty, {"odd": named, "least_w": one_card.min(), "most_w": one_card.max()}


CHECKS: dict[str, Check] = {
    "energy window": _energy_window,
    "cards in the meter": _cards_in_the_meter,
    "batch size": _batch_size,
    "length of the window": _length_of_the_window,
    "samples served": _samples_served,
    "output tokens": _output_tokens,
    "samples scored": _samples_scored,
    "QLoRA as served: speed": _as_served("throughput_tok_s"),
    "QLoRA as served: load": _as_served("load_s"),
    "quantisation window": _quantisation_window,
    "QLoRA as compressed": _qlora_as_compressed,
    "energy and power": _energy_and_power,
    "LoRA of the largest models": _lora_of_the_largest,
    "QLoRA of the largest models": _qlora_of_the_largest,
    "training examples": _training_examples,
    "weights from one card": _weights_from_one_card,
    "prompt length": _prompt_length,
    "speed against bandwidth": _speed_against_bandwidth,
    "one LoRA run unlike the others": _one_lora_run,
}
