"""Two results side by side: their ratios, and what keeps them from being compared."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pytest
from test_results_file import saved
from test_synthesis import STUDY, make_study, variants_of

from edge_eval_lib.artefacts.place import write_atomically
from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import host
from edge_eval_lib.results import comparison, exchange, observations, tables
from edge_eval_lib.results.comparison import Side, open_side, side_by_side
from edge_eval_lib.uncertainty import Summary, mean_interval, ratio_interval, ratio_of_means


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> exchange.ResultsFile:
    """A finished study's results file; the directory of its outputs is `made_at`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        make_study(STUDY.directory, provenance=host.provenance("x"))
        table = variants_of(observations.load_results(STUDY))
        tables.write_table(table, STUDY.directory / "tables" / "variants.csv")
        write_atomically(STUDY.directory / "study.json", {"path": str(STUDY.path)})
        return exchange.make(STUDY), STUDY.directory


@pytest.fixture
def file(made) -> exchange.ResultsFile:
    return made[0]


@pytest.fixture
def outputs(made) -> Path:
    return made[1]


def changed(file, figures=None, intervals=None, **fields) -> list[exchange.ResultRow]:
    return [
        row.model_copy(
            update={
                "figures": row.figures | (figures(row) if figures else {}),
                "intervals": row.intervals if intervals is None else intervals,
                **fields,
            }
        )
        for row in file.variants
    ]


def twice(row) -> dict[str, float]:
    return {"throughput_tok_s": 2 * row.figures["throughput_tok_s"]}


def test_b_is_divided_by_a_for_what_both_have(file):
    a = Side("a", file.variants, file.settings)
    b = Side("b", changed(file, twice)[:4], file.settings)
    table = side_by_side(a, b)
    speed = table[table["figure"] == "throughput_tok_s"]
    assert len(speed) == 4
    assert speed["ratio"].to_numpy() == pytest.approx(2.0)
    assert (speed["b"] / speed["a"]).to_numpy() == pytest.approx(2.0)
    assert table["not_comparable"].isna().all()
    assert set(table["figure"]) <= comparison.COMPARED.keys()


def test_everything_lists_what_one_alone_has_without_a_ratio(file):
    b = Side("b", file.variants[:4], file.settings)
    table = side_by_side(Side("a", file.variants, file.settings), b, everything=True)
    speed = table[table["figure"] == "throughput_tok_s"]
    assert len(speed) == len(file.variants)
    assert speed["ratio"].notna().sum() == 4
    assert speed.loc[speed["ratio"].isna(), "b"].isna().all()


@pytest.mark.parametrize(
    ("fields", "touched"),
    [
        ({"engine": "vllm"}, {"throughput_tok_s", "energy_per_request_j", "load_s", "memory_gb"}),
        ({"concurrency": 4}, {"throughput_tok_s", "energy_per_request_j", "memory_gb"}),
        ({"energy_source": "rapl"}, {"energy_per_request_j"}),
        ({"executed_dtype": "float16"}, set(comparison.COMPARED)),
    ],
)
def test_what_rows_do_not_share_is_said_of_the_figures_that_it_touches(file, fields, touched):
    b = Side("b", changed(file, **fields), file.settings)
    table = side_by_side(Side("a", file.variants, file.settings), b)
    (name, value), *_ = fields.items()
    marked = table[table["not_comparable"].notna()]
    assert set(marked["figure"]) == touched & set(table["figure"])
    assert marked["not_comparable"].str.contains(name.replace("_", " ")).all()
    assert marked["not_comparable"].str.contains(f"{value} \\(B\\)").all()


@pytest.mark.parametrize(
    ("section", "field", "value", "touched"),
    [
        ("workload", "output_tokens", 64, {"throughput_tok_s", "energy_per_request_j"}),
        ("training", "learning_rate", 1.0, {"score"}),
        ("data", "evaluation_examples", 7, set(comparison.COMPARED)),
    ],
)
def test_prompts_and_task_settings_that_differ_are_said(file, section, field, value, touched):
    settings = file.settings | {section: file.settings[section] | {field: value}}
    table = side_by_side(
        Side("a", file.variants, file.settings), Side("b", file.variants, settings)
    )
    marked = table[table["not_comparable"].notna()]
    assert touched & set(table["figure"]) <= set(marked["figure"])
    assert marked["not_comparable"].str.contains(f"{section}.{field}", regex=False).all()


def test_settings_that_are_not_known_are_said(file):
    table = side_by_side(Side("a", file.variants, file.settings), Side("b", file.variants))
    assert table["not_comparable"].str.startswith("prompts and task settings known (A), not").all()


def test_estimated_joules_of_two_hosts_are_marked(file):
    b = Side("b", changed(file, host="another CPU"), file.settings)
    table = side_by_side(Side("a", file.variants, file.settings), b)
    marked = table[table["not_comparable"].notna()]
    assert set(marked["figure"]) == {"energy_per_request_j"}
    assert marked["not_comparable"].str.contains("estimated").all()


def test_a_ratio_over_runs_has_the_interval_of_the_runs_themselves(file):
    generator = np.random.default_rng(0)
    one, other = generator.normal(10, 1, 5), generator.normal(20, 1, 4)
    sides = []
    for runs in (one, other):
        mean, lo, hi = mean_interval(runs)
        rows = changed(
            file,
            lambda _, mean=mean: {"throughput_tok_s": mean},
            {"throughput_tok_s": [lo, hi]},
            repetitions=len(runs),
        )
        sides.append(Side("x", rows, file.settings))
    table = side_by_side(*sides)
    row = table[table["figure"] == "throughput_tok_s"].iloc[0]
    assert row["observed"] == "runs"
    expected = ratio_interval(other, one)
    assert row[["ratio", "ratio_lo", "ratio_hi"]].tolist() == pytest.approx(expected)


def test_a_summary_gives_the_ratio_of_its_sample():
    a, b = [1.0, 2.0, 3.5, 4.0], [9.0, 8.0, 10.0]
    summaries = [Summary.of_interval(*mean_interval(x), len(x)) for x in (a, b)]
    assert ratio_of_means(*summaries) == pytest.approx(ratio_interval(a, b))
    alone = Summary(3.0, math.nan, 1)
    assert ratio_of_means(alone, summaries[1])[0] == pytest.approx(3.0 / 9.0)
    assert all(math.isnan(bound) for bound in ratio_of_means(alone, summaries[1])[1:])
    with pytest.raises(ValueError, match="denominator has a mean of 0"):
        ratio_of_means(alone, Summary(0.0, 1.0, 5))


def test_scores_of_the_same_prompts_are_paired_and_of_others_not(file):
    variant = {name: getattr(file.variants[0], name) for name in comparison.VARIANT}
    prompts = [f"p{n}" for n in range(30)]
    generator = np.random.default_rng(1)
    first = generator.uniform(0.2, 0.8, 30)
    kept = pd.DataFrame({"prompt_id": prompts, "score": first, "reference": "x"}).assign(**variant)
    rows = [file.variants[0]]
    better = kept.assign(score=kept["score"] * 1.1)
    a = Side("a", rows, file.settings, kept)
    table = side_by_side(a, Side("b", rows, file.settings, better))
    score = table.set_index("figure").loc["score"]
    assert score["observed"] == "prompts, paired"
    assert score[["ratio", "ratio_lo", "ratio_hi"]].tolist() == pytest.approx([1.1] * 3)
    others = side_by_side(a, Side("b", rows, file.settings, better.assign(reference="y")))
    score = others.set_index("figure").loc["score"]
    assert score["observed"] == "prompts"
    assert score["ratio_lo"] < 1.0 < score["ratio_hi"]


def test_another_model_each_is_matched_by_the_rest(file):
    b = Side("b", changed(file, family="other", size="1B"), file.settings)
    one_model = [row for row in file.variants if row.family == file.variants[0].family]
    a = Side("a", [r for r in one_model if r.size == one_model[0].size], file.settings)
    b = Side("b", [r.model_copy(update={"family": "other", "size": "1B"}) for r in a.rows])
    table = side_by_side(a, b)
    assert len(table[table["figure"] == "throughput_tok_s"]) == len(a.rows)
    assert table["not_comparable"].str.contains(r"model \S+ \(A\), other-1B \(B\)").all()


# --- two real executions of the embedded study, four variants of each -----------------------------

ONE, TWO = (str(Path(__file__).with_name(f"embedded_{name}.json")) for name in ("one", "two"))


def test_two_real_executions_differ_in_speed_and_not_in_answers(tmp_path: Path):
    text = comparison.compare(ONE, TWO, tmp_path)
    assert "Not like with like" not in text
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert len(table) == 4 * len(comparison.COMPARED)
    of = table.groupby("figure")
    assert (of["ratio"].max() - of["ratio"].min())["throughput_tok_s"] > 0.1
    scores = table[table["figure"] == "score"]
    assert scores["ratio"].to_numpy() == pytest.approx(1.0)  # seeded: the same answers
    assert (scores["observed"] == "prompts").all()  # a results file holds no prompt's score
    assert scores["ratio_lo"].between(0.3, 0.99).all()
    once = table[table["figure"] == "energy_per_request_j"]
    assert once["ratio_lo"].isna().all()  # of one run each there is no interval
    assert once["observed"].isna().all()


def test_the_published_study_shares_no_variant_with_the_embedded_one(tmp_path: Path):
    with pytest.raises(UserError, match="embedded_one and published share no variant") as refused:
        comparison.compare(ONE, "published", tmp_path)
    assert "smollm2-135M on rag, dialogue" in str(refused.value)
    assert "\n" not in str(refused.value)
    text = comparison.compare(ONE, "published", tmp_path, everything=True)
    assert "load estimated" in text.split("B: ")[1].split("\n")[0]
    assert len(pd.read_csv(tmp_path / "comparison.csv").query("figure == 'throughput_tok_s'")) == 76
    assert not (tmp_path / "comparison.png").exists()  # there is no ratio to draw


# --- the command --------------------------------------------------------------------------------


def test_two_finished_studies_stand_side_by_side_in_a_table_and_a_picture(
    file, outputs, tmp_path: Path
):
    two = tmp_path / "two"
    shutil.copytree(outputs, two)
    table = pd.read_csv(two / "tables" / "variants.csv")
    tables.write_table(
        table.assign(throughput_tok_s=2 * table["throughput_tok_s"]).iloc[:5],
        two / "tables" / "variants.csv",
    )
    text = comparison.compare(str(outputs), str(two), tmp_path / "comparison")
    written = pd.read_csv(tmp_path / "comparison" / "comparison.csv")
    speed = written[written["figure"] == "throughput_tok_s"]
    assert len(speed) == 5
    assert speed["ratio"].to_numpy() == pytest.approx(2.0)
    assert "throughput (tok/s): B / A 2.0 as the median of 5, 2.0 to 2.0" in text
    assert not re.search(r"  –(\s|$)", text)  # what one alone has is left out
    picture = (tmp_path / "comparison" / "comparison.svg").read_text()
    assert "B, two, against A" in picture
    described = b"B divided by A: throughput 2.0 as the median of 5, 2.0 to 2.0; energy per request"
    assert described in (tmp_path / "comparison" / "comparison.png").read_bytes()


def test_what_is_not_alike_is_said_on_the_picture_too(file, tmp_path: Path):
    mine = exchange.write(file, tmp_path / "mine.json")
    theirs = saved(
        tmp_path, file.model_copy(update={"variants": changed(file, engine="vllm")}), "b"
    )
    text = comparison.compare(str(mine), str(theirs), tmp_path / "comparison")
    sentence = "engine transformers (A), vllm (B): throughput, energy per request, cold start"
    assert f"  - {sentence}" in text
    assert "2.0*" in text or "1.0*" in text
    assert sentence[:40] in (tmp_path / "comparison" / "comparison.svg").read_text()


def test_a_study_and_the_published_one_that_share_nothing_are_refused_and_listed_if_asked(
    outputs, tmp_path: Path
):
    rows = open_side(str(outputs)).rows
    other = [r.model_copy(update={"family": "smollm2", "size": "135M"}) for r in rows]
    alone = Side("embedded", other)
    with pytest.raises(UserError, match=r"share no variant: embedded has smollm2-135M on .*ALL=1"):
        side_by_side(alone, open_side("published"))
    table = side_by_side(alone, open_side("published"), everything=True)
    assert table["ratio"].isna().all()
    assert len(table[table["figure"] == "throughput_tok_s"]) == 72 + len(rows)
    assert "score" not in set(table.loc[table["a"].isna(), "figure"])  # by another method


def test_outputs_of_another_machine_are_compared_though_its_study_file_is_not_here(
    outputs, tmp_path: Path
):
    theirs = tmp_path / "theirs"
    shutil.copytree(outputs, theirs)
    write_atomically(theirs / "study.json", {"path": "/nowhere/params/embedded.yaml"})
    table = side_by_side(open_side(str(outputs)), open_side(str(theirs)))
    assert table["ratio"].dropna().to_numpy() == pytest.approx(1.0)
    assert table["not_comparable"].str.contains("not known").all()


def test_what_cannot_be_compared_is_refused_in_a_sentence(file, tmp_path: Path):
    mine = exchange.write(file, tmp_path / "mine.json")
    with pytest.raises(UserError, match="Say which two: make compare A="):
        comparison.compare(str(mine), "", tmp_path)
    with pytest.raises(UserError, match="A and B are the same"):
        comparison.compare(str(mine), str(mine), tmp_path)
    with pytest.raises(UserError, match=r"gone\.json cannot be read"):
        comparison.compare(str(mine), str(tmp_path / "gone.json"), tmp_path)
    with pytest.raises(UserError, match="There is no study 'nowhere'"):
        comparison.compare(str(mine), "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "study.json").write_bytes(orjson.dumps({"path": str(STUDY.path)}))
    with pytest.raises(UserError, match=r"There is no .*variants\.csv; run `make report`"):
        comparison.compare(str(mine), str(tmp_path / "empty"), tmp_path)
    assert not list(tmp_path.glob("comparison.*"))
