"""What a local and a cloud arm of a study made of the same prompts, and what each took.

    pair = hybrid.pair(results, prices, "onepassage", "oncloud")
    pair.prompts["mean_logprob"], pair.cost("energy_j", signal, before=False)

An arm is named by its task: the study serves that at one configuration only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib.artefacts.completion import read_raw
from edge_eval_lib.economics.prices import Prices, api_usd_per_request
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle.serve import closed_loop_name
from edge_eval_lib.results.arms import correct_answers
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.results.observations import Results
from edge_eval_lib.results.routing import Cost
from edge_eval_lib.results.serving import answered_in_s, per_request
from edge_eval_lib.tasks import load_task
from edge_eval_lib.tasks.base import token_overlap

# What a request takes, by currency, in words.
CURRENCIES = {
    "energy_j": "energy [J]",
    "usd": "machine price [USD]",
    "list_usd": "list price [USD]",
    "latency_s": "time [s]",
}
Used = Mapping[str, np.ndarray | float]  # by currency, a prompt


@dataclass(frozen=True)
class Pair:
    """Both sides of the same prompts.

    Attributes:
        local: The arm that answers here, (family, size, task, method, precision).
        cloud: The one that is escalated to.
        prompts: A row a prompt that both were asked: `local_correct`, `cloud_correct` (0 where it
            gave no answer), `cloud_failure`, what the local arm's run recorded of its confidence,
            and for each currency `local_` and `cloud_` what the answer took; NaN where unknown.
        missing: Why a currency is not known, in a sentence.
    """

    local: tuple[str, ...]
    cloud: tuple[str, ...]
    prompts: pd.DataFrame
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def currencies(self) -> list[str]:
        """Those that both sides are known in."""
        return [name for name in CURRENCIES if name not in self.missing]

    def cost(self, currency: str, signal: Used | None = None, before: bool = False) -> Cost:
        """Return what every prompt takes in a currency, routed by a signal that takes `signal`."""
        own = np.broadcast_to((signal or {}).get(currency, 0.0), len(self.prompts))
        local, cloud = (self.prompts[f"{s}_{currency}"].to_numpy() for s in ("local", "cloud"))
        return Cost(local, cloud, np.array(own, dtype=float), before=before)


def pair(results: Results, prices: Prices, local: str, cloud: str) -> Pair:
    """Pair the answers of two arms, prompt by prompt, with what each took.

    Energy and the machine's price are the window's, shared equally by its requests: a batch is
    generated together. The cloud at list prices is paid for its tokens, at the API's prices of the
    study. Time is each request's own.

    Args:
        results: A study whose tasks have a `correct_from`.
        prices: What the machine, its electricity and an API cost.
        local: The task of the local arm.
        cloud: The task of the arm that is escalated to.

    Raises:
        UserError: An arm was not served, or at several configurations.
    """
    arms = {"local": arm(results, local), "cloud": arm(results, cloud)}
    correct = correct_answers(results.answers, results.study.correct_from)
    answers = {side: _answers(results, key) for side, key in arms.items()}
    both = answers["local"].index.intersection(answers["cloud"].index)
    table = pd.DataFrame(index=both)
    table["local_correct"] = correct[arms["local"]].reindex(both)
    failure = answers["cloud"].loc[both, "score_reason"]
    table["cloud_failure"] = failure.where(failure.ne("") & failure.notna(), None)
    # What a cloud does not answer is not correct; an answer that nobody scored is left out.
    unanswered = answers["cloud"].loc[both, "answer_tokens"].isna()
    table["cloud_correct"] = correct[arms["cloud"]].reindex(both).mask(unanswered, 0.0)
    for column in ("mean_logprob", "mean_margin"):
        table[column] = answers["local"].get(column, pd.Series(dtype=float)).reindex(both)
    for side, key in arms.items():
        used = requests_used(results, prices, key)
        # At list prices this machine is still this machine, and only the cloud is paid by tokens.
        used["list_usd"] = used["usd" if side == "local" else "listed_usd"]
        # A call that failed took its part of the window, and is not paid by tokens.
        failed = {"energy_j": used["energy_j"].mean(), "usd": used["usd"].mean(), "list_usd": 0.0}
        for currency in CURRENCIES:
            taken = used[currency].reindex(both)
            table[f"{side}_{currency}"] = taken.fillna(failed.get(currency, np.nan))
    table = table.dropna(subset=["local_correct", "cloud_correct"])
    missing = {}
    for currency, words in CURRENCIES.items():
        for side in arms:
            if unknown := int(table[f"{side}_{currency}"].isna().sum()):
                of = f"of {unknown} of {len(table)} questions"
                missing[currency] = f"What the {side} takes in {words} is not known {of}."
    return Pair(arms["local"], arms["cloud"], table, missing)


def arm(results: Results, task: str) -> tuple[str, ...]:
    """Return the one variant that was served on a task; UserError if there is not just one."""
    served = results.headline[results.headline["task"] == task]
    found = list(served[VARIANT].drop_duplicates().itertuples(index=False, name=None))
    if len(found) != 1:
        names = ", ".join("_".join(each) for each in found) or "none"
        raise UserError(
            f"The study {results.study.name} serves the task {task} at {len(found)} configurations "
            f"({names}); an arm is one of them."
        )
    return found[0]


def requests_used(results: Results, prices: Prices, key: Sequence[str]) -> pd.DataFrame:
    """What each request of an arm took: a row a prompt, averaged over repetitions.

    `energy_j` and `usd` of this machine, `listed_usd` for the tokens that the role `cloud`
    answered (of an arm without roles, for all) at the API's list price, `latency_s`, and how many
    `calls` it made, `cloud_calls` of them to that role. Of an endpoint the energy is NaN, and it
    is paid by its price; this machine too, where it answered a call of the request.
    """
    runs = _of(results.runs[results.runs["stage"] == "serve"], key)
    measured = _of(results.headline, key).set_index("run")
    parts = []
    for run in runs.to_dict("records"):
        row = measured.loc[run["run"]]
        energy_j = float(pd.to_numeric(row["energy_per_request_j"]))
        seconds = float(row["output_tokens_per_request"]) / float(row["throughput_tok_s"])
        requests = headline_requests(results, run)
        calls = requests["role"] if "role" in requests else pd.Series("cloud", requests.index)
        by_cloud = requests[calls.eq("cloud")]
        listed = api_usd_per_request(
            by_cloud["input_tokens"],
            by_cloud["natural_tokens"],
            prices.api_input_usd_per_mtok,
            prices.api_output_usd_per_mtok,
        )
        whole = per_request(requests).set_index("prompt_id")
        table = pd.DataFrame(index=whole.index).assign(energy_j=energy_j)
        table["usd"] = prices.machine_usd(energy_j, seconds)
        paid = listed.groupby(by_cloud["prompt_id"])
        table["listed_usd"] = paid.sum().reindex(whole.index, fill_value=0.0)
        told = "latency_s" in whole
        table["latency_s"] = whole["latency_s"] if told else answered_in_s(whole)
        table["calls"] = whole.get("calls", 1)
        table["cloud_calls"] = paid.size().reindex(whole.index, fill_value=0)
        if elsewhere(run):
            here = calls.ne("cloud").groupby(requests["prompt_id"]).any().reindex(whole.index)
            paid_here = table["usd"].where(here, 0.0)
            table = table.assign(energy_j=np.nan, usd=table["listed_usd"] + paid_here)
        parts.append(table)
    return pd.concat(parts).groupby(level=0, sort=False).mean()


def used_beside(results: Results, prices: Prices, pair: Pair, task: str) -> Used:
    """Return what another arm's answers to the pair's questions take beside both sides."""
    used = requests_used(results, prices, arm(results, task))
    used = used.assign(list_usd=used["usd"]).reindex(pair.prompts.index)
    return {currency: used[currency].to_numpy() for currency in pair.currencies}


def elsewhere(run: Mapping[str, Any]) -> bool:
    """Whether an endpoint answered some of a run's calls: what those drew is unknown here."""
    roles = run.get("roles")
    called = roles if isinstance(roles, list) else []
    return run["engine"] == "openai" or any(role["remote"] for role in called)


def headline_requests(results: Results, run: Mapping[str, Any]) -> pd.DataFrame:
    """Every call that a run answered at the headline concurrency."""
    requests = read_raw(run["notebook"], "requests")
    name = closed_loop_name(results.study.workload.headline_concurrency)
    return requests[requests["window"] == name]


def objections(results: Results, pair: Pair) -> np.ndarray:
    """Return 1 for every prompt on which the cloud's answer is not the local one, else 0.

    Two answers are one where their token F1 is what makes an answer correct. A prompt on which
    the cloud gave no answer raises no objection.
    """
    local, cloud = (
        _answers(results, key)["answer"].reindex(pair.prompts.index)
        for key in (pair.local, pair.cloud)
    )
    least = results.study.correct_from[pair.local[2]]
    alike = [
        pd.isna(theirs) or token_overlap(str(ours), str(theirs))["f1"] >= least - 1e-9
        for ours, theirs in zip(local, cloud, strict=True)
    ]
    return 1.0 - np.array(alike, dtype=float)


def agreement(results: Results, local: str, sampled: str) -> pd.Series:
    """Compute the share of sampled answers that are the local answer, by prompt, 0..1.

    Token by token up to the end of each: other words for the same fact count as disagreement.
    """
    answered = _tokens(results, local).groupby(level=0).first()
    drawn = _tokens(results, sampled)
    same = drawn.eq(answered.reindex(drawn.index))
    return same.groupby(level=0, sort=False).mean()


def _tokens(results: Results, task: str) -> pd.Series:
    """The answers' tokens up to their end, by prompt; a row a call."""
    key = arm(results, task)
    runs = _of(results.runs[results.runs["stage"] == "serve"], key)
    requests = headline_requests(results, runs.iloc[0].to_dict())
    natural = [
        tuple(tokens[:length])
        for tokens, length in zip(requests["token_ids"], requests["natural_tokens"], strict=True)
    ]
    return pd.Series(natural, index=requests["prompt_id"])


def _answers(results: Results, key: Sequence[str]) -> pd.DataFrame:
    """The scored answers of an arm's first run, by prompt."""
    answers = _of(results.answers, key)
    first = answers[answers["repetition"] == answers["repetition"].min()]
    return first.set_index("prompt_id")


def _of(table: pd.DataFrame, key: Sequence[str]) -> pd.DataFrame:
    return table[(table[VARIANT] == list(key)).all(axis=1)]


def questions(results: Results, pair: Pair) -> list[str]:
    """Return the question of every prompt of a pair: what a router may look at, without notes."""
    data = results.study.data
    loaded = load_task(
        pair.local[2], data.source, evaluation_examples=data.evaluation_examples
    ).evaluation
    asked = {e.id: e.details.get("question", e.messages[-1]["content"]) for e in loaded}
    return [asked[prompt] for prompt in pair.prompts.index]


def failures(results: Results, tasks: Sequence[str]) -> list[str]:
    """Say of each arm how many requests and calls were not answered, and why; of none, nothing."""
    name = closed_loop_name(results.study.workload.headline_concurrency)
    lines = []
    for task in tasks:
        runs = _of(results.runs[results.runs["stage"] == "serve"], arm(results, task))
        for run in runs.to_dict("records"):
            window = next(w for w in run["serving_windows"] if w["window"] == name)
            for what, words in (("failures", "requests"), ("failed_calls", "calls")):
                if reasons := window.get(what):
                    told = "; ".join(f"{count} x {why}" for why, count in reasons.items())
                    lines.append(f"{task}: {sum(reasons.values())} {words} failed ({told}).")
            if elsewhere(run):
                alone = "the joules that were measured are this machine's alone"
                lines.append(f"{task}: an endpoint answered; {alone}.")
    return lines
