"""Is this model worth running on my own hardware? Five sentences and a verdict, from the tables.

    answer.shown(answer.sentences(table, spread, reference, prices))

Each sentence has its figure and its doubt: an interval, the range of an estimate, or by how much
variants that are alike differ. A figure that is not there is said to be missing, with the reason.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from edge_eval_lib.economics.prices import Prices
from edge_eval_lib.results.columns import DOUBTFUL, verdict
from edge_eval_lib.results.described import large, span, variant
from edge_eval_lib.results.headline import Z95
from edge_eval_lib.results.readable import Prose, in_words, listed

_BASE = ("lora", "fp16")
_NEVER = "the API costs no more than serving here"
FEW_PROMPTS = 200  # fewer leave intervals of Q_ret that are wider than most differences
REQUESTS_A_DAY = 1000  # to say a number of requests as a time
_NAMED_AT_MOST = 3  # variants or tasks in a sentence; of more, how many


def shown(texts: dict[str, str]) -> Prose:
    """Show the sentences in a notebook, an item each, the verdict last."""
    items = {topic: text for topic, text in texts.items() if topic != "Verdict"}
    listing = str(listed(f"{topic}. {text}" for topic, text in items.items()))
    for topic in items:
        listing = listing.replace(f"- {topic}.", f"- **{topic}.**", 1)
    first, semicolon, rest = texts["Verdict"].partition(";")
    verdict = f"**Verdict: {first}{semicolon}**{rest}"
    return Prose(f"{listing}\n\n{verdict}".replace(" %", "\N{NO-BREAK SPACE}%"))


def sentences(
    variants: pd.DataFrame,
    spread: pd.DataFrame | None = None,
    reference: pd.DataFrame | None = None,
    prices: Prices | None = None,
) -> dict[str, str]:
    """Answer the question of a study by its tables.

    Args:
        variants: A row a variant (`tables.variants_table`); columns may be missing.
        spread: One run's scatter (`uncertainty.single_run_spread`), where it is known.
        reference: The unadapted base and no model beside them (`tables.reference_table`).
        prices: What the full accounting counted, to be named.

    Returns:
        A sentence each by `Quality`, `Energy`, `Break-even`, `Memory`, `Cold start`, `Verdict`.
    """
    variants = variants.reset_index(drop=True)
    sound = _sound(variants)
    digits = 2 if _column(variants, "repetitions").max() == 1 else 3
    return {
        "Quality": _quality(variants),
        "Energy": _energy(sound, spread, digits),
        "Break-even": _break_even(sound, prices),
        "Memory": _memory(sound, spread, digits),
        "Cold start": _cold_start(sound, digits),
        "Verdict": _verdict(variants, sound, reference),
    }


def _sound(variants: pd.DataFrame) -> pd.DataFrame:
    """Rows that no validity check doubts; where there is none, those that are not invalid."""
    verdicts = _column(variants, "validity", None).map(verdict)
    for left_out in (DOUBTFUL, ("invalid",)):
        if (rows := variants[~verdicts.isin(left_out)]).size:
            return rows
    return variants


def _column(table: pd.DataFrame, name: str, missing: object = np.nan) -> pd.Series:
    return (
        table[name]
        if name in table
        else pd.Series(missing, table.index, dtype=object if missing is None else float)
    )


def _known(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table[_column(table, name).notna()]


def _why_not(table: pd.DataFrame, *names: str) -> str:
    """Why none of the columns is known: what the first note of one says, or that none does."""
    for note in _column(table, "notes", None).dropna():
        for part in str(note).split("; "):
            column, colon, reason = part.partition(": ")
            if colon and column in names:
                return in_words(reason.rstrip("."))
    return "no reason is recorded" if set(names) & set(table) else "it is not in these tables"


def _missing(what: str, table: pd.DataFrame, *names: str) -> str:
    reason = _why_not(table, *names)
    return f"{what} is not known ({reason})."


def _several(names: list[str]) -> str:
    """`a, b and c`; of more than a few, the first of them and how many others."""
    if len(names) > _NAMED_AT_MOST:
        names = [*names[: _NAMED_AT_MOST - 1], f"{len(names) - _NAMED_AT_MOST + 1} others"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


# --- quality ----------------------------------------------------------------------------------


def _quality(table: pd.DataFrame) -> str:
    scored = _known(table, "score")
    if scored.empty:
        return _missing("How good the answers are", table, "score")
    prompts = _prompts(scored)
    if (scored["score"] == 0).all():
        return f"Every variant scores 0{prompts}: there is no quality to keep."
    scores = f"scores lie at {span(scored['score'])} of 1"
    compressed = _known(scored, "q_ret_pct")
    compressed = compressed[~_is_base(compressed)]
    if compressed.empty:
        alone = "no variant stands beside LoRA FP16"
        reason = alone if _is_base(scored).all() else _why_not(scored, "q_ret_pct")
        return f"What compressing loses is not known ({reason}); {scores}{prompts}."
    models = (compressed["family"] + "-" + compressed["size"]).unique()
    low, high = compressed["q_ret_pct"].min(), compressed["q_ret_pct"].max()
    kept = f"{low:.0f} to {high:.0f}" if f"{low:.0f}" != f"{high:.0f}" else f"{low:.0f}"
    return (
        f"Compressed, {models[0] if len(models) == 1 else 'a model'} keeps {kept} % of LoRA FP16's "
        f"score (Q_ret){_shown_losses(compressed)}; {scores}{prompts}."
    )


def _is_base(table: pd.DataFrame) -> pd.Series:
    return (table["method"] == _BASE[0]) & (table["precision"] == _BASE[1])


def _prompts(table: pd.DataFrame) -> str:
    prompts = _column(table, "scored_prompts").dropna()
    return f" ({span(prompts)} prompts a variant)" if len(prompts) else ""


def _shown_losses(compressed: pd.DataFrame) -> str:
    """For which variants the interval of Q_ret leaves 100 out, and how wide it is."""
    low, high = (_column(compressed, f"q_ret_pct_{end}") for end in ("lo", "hi"))
    bounded = np.isfinite(low) & np.isfinite(high)
    if not bounded.any():
        return ", without intervals: small differences may be chance"
    lost = compressed[bounded & (high < 100)].sort_values("q_ret_pct")
    names = [
        f"{variant(row, compressed)} ({row['q_ret_pct']:.0f} % [{row['q_ret_pct_lo']:.0f}, "
        f"{row['q_ret_pct_hi']:.0f}])"
        for _, row in lost.iterrows()
    ]
    wide = f"; 95 % intervals are {span((high - low)[bounded])} points wide, and"
    if not names:
        return f"{wide} none of the {len(compressed)} is shown to lose"
    return f"{wide} {len(names)} of {len(compressed)} are shown to lose: {_several(names)}"


def _not_better(reference: pd.DataFrame | None) -> list[str]:
    """On which tasks LoRA FP16 is not shown to beat rules without a model."""
    low = "score_difference_no_model_lo"
    if reference is None or low not in reference:
        return []
    rows = reference[_is_base(reference)].dropna(subset=[low])
    return list(dict.fromkeys(rows.loc[rows[low] <= 0, "task"]))


# --- energy, memory, cold start -----------------------------------------------------------------


def _energy(table: pd.DataFrame, spread: pd.DataFrame | None, digits: int) -> str:
    energy = "energy_per_request_j"
    known = _known(table, energy)
    if known.empty:
        return _missing("The energy of a request", table, energy)
    text = f"A request takes {span(known[energy], digits)} J{_in_flight(known)}"
    ipw = _known(known, "ipw")
    if ipw.empty:
        text += f"; quality per joule is not known ({_why_not(table, 'score', 'ipw')})"
    elif (ipw["ipw"] == 0).all():
        text += ", and a joule buys no quality, since every score is 0"
    else:
        best = ipw.loc[ipw.groupby("task", sort=False)["ipw"].idxmax()]
        names = [
            f"{variant(row, table)} ({large(row['ipw'], digits)})" for _, row in best.iterrows()
        ]
        text += f", and a joule buys most score (IPW, 1/J) from {_several(names)}"
    return f"{text}{_estimated(known)}{_noise(spread, energy, known)}."


def _in_flight(table: pd.DataFrame) -> str:
    counts = _column(table, "concurrency").dropna().unique()
    return f" with {counts[0]:.0f} in flight" if len(counts) == 1 else ""


def _estimated(table: pd.DataFrame) -> str:
    ends = [_column(table, f"energy_per_request_{end}_j") for end in ("lo", "hi")]
    low, high = (end / table["energy_per_request_j"] for end in ends)
    if low.isna().all() or high.isna().all():
        return ""
    return (
        f"; energy is estimated: every joule may be {low.min():.2g} to {high.max():.2g} times that"
    )


def _noise(spread: pd.DataFrame | None, column: str, table: pd.DataFrame) -> str:
    """How far alike variants differ, where each was observed once; else that of the intervals."""
    if _column(table, "repetitions").max() > 1:
        low, high = (_column(table, f"{column}_{end}") for end in ("lo", "hi"))
        widest = ((high - low) / 2 / table[column]).max()
        return "" if pd.isna(widest) else f"; 95 % intervals over runs reach ±{100 * widest:.0f} %"
    sd = np.nan if spread is None else spread["relative_sd"].get(column, np.nan)
    if pd.isna(sd):
        return "; each was run once and none has a twin, so that small differences may be chance"
    factor = np.exp(Z95 * np.sqrt(2) * sd)
    return f"; by chance alone two alike variants differ up to {factor:.2g} times"


def _memory(table: pd.DataFrame, spread: pd.DataFrame | None, digits: int) -> str:
    known = _known(table, "memory_gb")
    if known.empty:
        return _missing("The memory that serving needs", table, "memory_gb")
    text = f"Serving needs {span(known['memory_gb'], digits)} GB at its peak"
    density = _known(known, "rho_sys")
    if density.empty:
        text += f"; its speed is not known ({_why_not(table, 'throughput_tok_s', 'rho_sys')})"
    else:
        text += f" and yields {span(density['rho_sys'], digits)} tokens a second a GB (ρ_sys)"
    memory, speed = (_int4_over_fp16(table, c) for c in ("memory_gb", "throughput_tok_s"))
    if not (pd.isna(memory) or pd.isna(speed)):
        text += (
            f"; LoRA INT4 takes {large(memory)} times LoRA FP16's memory at {large(speed)} times "
            "its speed (median)"
        )
    return f"{text}{_noise(spread, 'rho_sys', known) if len(density) else ''}."


def _int4_over_fp16(table: pd.DataFrame, column: str) -> float:
    keys = ["family", "size", "task"]
    if column not in table:
        return np.nan
    lora = table[table["method"] == "lora"]
    sides = [lora[lora["precision"] == p].set_index(keys)[column] for p in ("int4", "fp16")]
    return float((sides[0] / sides[1]).median())


def _cold_start(table: pd.DataFrame, digits: int) -> str:
    known = _known(table, "c_tax")
    seconds = _column(table, "load_s").dropna()
    lasts = f" takes {span(seconds, digits)} s and" if len(seconds) else ""
    if known.empty:
        energy = f"{_missing('its energy', table, 'load_energy_j', 'energy_per_request_j')}"
        return f"A cold start{lasts.removesuffix(' and')}; {energy}" if lasts else (
            _missing("What a cold start costs", table, "load_energy_j", "energy_per_request_j")
        )  # fmt: skip
    text = f"A cold start{lasts} costs as much energy as {span(known['c_tax'], digits)} requests"
    own = _known(known, "c_tax_model")
    if len(own):
        share = (1 - own["c_tax_model"] / own["c_tax"]) * 100
        text += f", {span(share)} % of it importing libraries, whatever the model"
    warm = _known(table, "keep_warm_s")
    if warm.empty:
        reason = _why_not(table, "keep_warm_s")
        return f"{text}; from which pause on unloading saves is not known ({reason})."
    return f"{text}; unloading saves energy after a pause of {span(warm['keep_warm_s'])} s."


# --- break-even and verdict -------------------------------------------------------------------


def _break_even(table: pd.DataFrame, prices: Prices | None) -> str:
    paper, full = _known(table, "n_break"), _known(table, "n_break_full")
    if paper.empty and full.empty:
        return _missing("When it pays back", table, "n_break", "adapt_energy_j",
                        "energy_per_request_j")  # fmt: skip
    texts = []
    if len(paper):
        texts.append(f"Counting electricity alone (as the paper does), {_paid(paper, 'n_break')}")
    if len(full):
        counted = "everything"
        if prices is not None and prices.setup_hours:
            counted += (
                f" ({prices.setup_usd:,.0f} USD of labour before all, the machine, compressing, "
                "loading)"
            )
        texts.append(f"counting {counted}, {_paid(full, 'n_break_full')}{_scenarios(full)}")
    else:
        why = _why_not(table, "n_break_full", "compress_energy_j", "load_energy_j")
        texts.append(f"counting everything it is not known ({why})")
    why = ": of the same runs, so that what is counted decides, and not the model"
    both = len(texts) == 2 and len(paper) and len(full) and _apart(paper, full)
    text = "; ".join(texts) + (why if both else "")
    return f"{text[0].upper()}{text[1:]}."


def _paid(table: pd.DataFrame, column: str) -> str:
    values = table[column].astype(float)
    never, finite = int(np.isinf(values).sum()), values[np.isfinite(values)]
    if finite.empty:
        return f"adapting never pays ({_NEVER})"
    ends = [_column(table, f"{column}_estimate_{end}").replace(np.inf, np.nan) for end in
            ("lo", "hi")]  # fmt: skip
    ranged = f" ({span([ends[0].min(), ends[1].max()])} by the estimate's range)"
    text = f"adapting has paid after {span(finite)} requests"
    text += ", before the first is over" if (finite < 1).all() else ""
    if not (ends[0].isna().all() or span([ends[0].min(), ends[1].max()]) == span(finite)):
        text += ranged
    return text + (f", for {never} of {len(values)} variants never ({_NEVER})" if never else "")


def _scenarios(table: pd.DataFrame) -> str:
    ends = [_column(table, "n_break_full_least").min(), _column(table, "n_break_full_most").max()]
    if np.isnan(ends).any() or ends[0] == ends[1]:
        return ""
    return f", by other prices anywhere from {large(ends[0])} requests to {large(ends[1])}"


def _apart(paper: pd.DataFrame, full: pd.DataFrame) -> bool:
    a, b = paper["n_break"].replace(np.inf, np.nan), full["n_break_full"]
    return bool(a.max() * 100 < b.min())


def _verdict(variants: pd.DataFrame, sound: pd.DataFrame, reference: pd.DataFrame | None) -> str:
    if len(variants) and (_column(variants, "validity", None).map(verdict) == "invalid").all():
        return "not to be said, since every variant is invalid by the validity checks."
    scores = _column(variants, "score").dropna()
    if len(scores) and (scores == 0).all():
        return "no, since no answer of any variant scores above 0."
    parts = [_money(sound)]
    if scores.empty:
        parts.append("how good its answers are was not measured")
    elif tasks := _not_better(reference):
        parts.append(f"on {_several(tasks)} it is not shown to beat a rule without a model")
    prompts = _column(variants, "scored_prompts").dropna()
    if len(prompts) and prompts.max() < FEW_PROMPTS:
        parts.append(f"{span(prompts)} prompts show the method, they rank no models")
    if doubtful := len(variants) - len(sound):
        parts.append(f"speed and energy of doubtful variants are left out: {doubtful}")
    return "; ".join(parts) + "."


def _money(table: pd.DataFrame) -> str:
    """Whether it saves money, by everything counted where that is known."""
    column = "n_break_full" if len(_known(table, "n_break_full")) else "n_break"
    values = _column(table, column).dropna().astype(float)
    if values.empty:
        return "whether it saves money is not known"
    finite = values[np.isfinite(values)]
    if finite.empty:
        return f"not to save money ({_NEVER}); for privacy, latency or independence it may be"
    counted = "everything counted" if column == "n_break_full" else "electricity alone counted"
    least = float(finite.min())
    if least < 1:
        return f"yes, as far as money goes: it pays from the first request on, {counted}"
    days = least / REQUESTS_A_DAY
    pace = f"{large(days / 365)} years" if days >= 365 else f"{large(np.ceil(days))} days"
    of = f"{variant(table.loc[finite.idxmin()], table)}, " if len(values) > 1 else ""
    return (
        f"to save money, only from about {large(least)} requests on ({of}{counted}: {pace} at "
        f"{REQUESTS_A_DAY:,} a day), for fewer an API is cheaper"
    )
