"""Results files: what they hold, what is refused, and how they compare."""

import math
import shutil

import orjson
import pandas as pd
import pytest
from test_synthesis import STUDY, notebook, tabled
from tiny import make_local_copy, make_tiny_tasks

from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import host
from edge_eval_lib.paths import project_root
from edge_eval_lib.results import columns, comparison, tables
from edge_eval_lib.results import exchange as results_file
from edge_eval_lib.study.sections import Harness


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The table of a finished study, with the provenance that real runs record, and its file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        table = tabled()
        return table, results_file.make(STUDY), STUDY.directory


@pytest.fixture
def variants(made):
    return made[0]


@pytest.fixture
def file(made):
    return made[1]


def saved(tmp_path, file, name="mine", **changes):
    """The file on disk, with fields replaced as a person might."""
    content = orjson.loads(orjson.dumps(file.model_dump())) | changes
    path = tmp_path / f"{name}.json"
    path.write_bytes(orjson.dumps(content))
    return path


def test_a_file_holds_the_tables_figures_and_reads_back_the_same(variants, file, tmp_path):
    path = results_file.write(file, tmp_path / "mine.json")
    again = results_file.read(path)
    assert again == file
    assert len(again.variants) == len(variants) == 12
    for row, record in zip(again.variants, variants.to_dict("records"), strict=True):
        assert row.name == columns.variant_name(record)
        assert row.figures["throughput_tok_s"] == record["throughput_tok_s"]
        for name in tables.METRICS:
            if pd.isna(record[name]):
                assert name not in row.figures
            elif math.isfinite(record[name]):
                assert row.figures[name] == record[name]


def test_a_file_says_where_it_was_made_and_names_no_machine_and_no_path(file):
    made = file.provenance
    assert made.processors == [host.cpu_name()]
    assert made.python
    assert made.packages["numpy"]
    assert made.energy_sources == ["cpu-model (estimated)"]
    assert made.first_run == made.last_run == "2026-01-02T03:04:05"
    assert file.settings["workload"]["headline_concurrency"] == 8
    text = orjson.dumps(file.model_dump()).decode()
    assert str(project_root()) not in text
    import socket

    assert f'"{socket.gethostname()}"' not in text


def test_neither_where_data_and_task_files_lie_here_is_told(made, tmp_path, monkeypatch):
    _, _, directory = made
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    shutil.copytree(directory, STUDY.directory)
    copy = make_local_copy(tmp_path / "home" / "copy")
    shutil.copy(copy / "validation.jsonl", copy / "test.jsonl")
    own = make_tiny_tasks(tmp_path / "home" / "own")
    elsewhere = STUDY.model_copy(
        update={
            "data": STUDY.data.model_copy(update={"source": str(copy)}),
            "harness": Harness(tasks=["tiny_choice"], task_directory=str(own)),
        }
    )
    settings = results_file.make(elsewhere).settings
    assert settings["data"]["source"] == "copy"
    assert settings["harness"]["task_directory"] == "own"


def test_pages_beside_the_runs_are_no_runs(made, tmp_path, monkeypatch):
    """`make advise` leaves an executed notebook there, which measured nothing."""
    _, file, directory = made
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    shutil.copytree(directory, STUDY.directory)
    notebook(STUDY.directory / "runs" / "planner" / "planner.ipynb", started="2030-01-01")
    assert results_file.make(STUDY).provenance == file.provenance


def test_how_sure_a_model_was_is_below_zero(file, tmp_path):
    row = file.variants[0]
    sure = row.model_copy(update={"figures": row.figures | {"mean_logprob": -0.1}})
    path = saved(tmp_path, file.model_copy(update={"variants": [sure]}))
    assert results_file.read(path).variants[0].figures["mean_logprob"] == -0.1


def test_an_unreached_break_even_survives_json(file, tmp_path):
    row = file.variants[0]
    never = row.model_copy(update={"figures": row.figures | {"n_break": "inf"}})
    changed = file.model_copy(update={"variants": [never, *file.variants[1:]]})
    again = results_file.read(results_file.write(changed, tmp_path / "results" / "f.json"))
    assert float(again.variants[0].figures["n_break"]) == math.inf


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"figures": {"throughput_tok_s": -1.0}}, r"throughput_tok_s -1\.0, which is impossible"),
        ({"figures": {"throughput_tok": 1.0}}, "'throughput_tok'; did you mean 'throughput_tok_s'"),
        ({"figures": {"throughput_tok_s": 1e999}}, "cannot be read as JSON|throughput_tok_s"),
        ({"figures": {"x" * 9000: 1.0}}, "unknown figure 'xxx"),
        ({"host": "a\x1b[2J"}, "no control characters"),
        ({"repetitions": [[1]]}, r"variants\.0\.repetitions' is a list of 1"),
        ({"figures": {"load_s": 1.0}}, "lacks throughput_tok_s"),
        ({"figures": {"throughput_tok_s": 1.0, "score": 7.5}}, "a score above 1"),
        ({"energy_source": None}, "energy and no energy_source"),
        ({"intervals": {"throughput_tok_s": [9.0, 1.0]}}, r"an interval \[9\.0, 1\.0\]"),
        ({"intervals": {"load_s": [1.0]}}, r"variants\.0\.intervals\.load_s"),
        ({"precision": "fp8"}, r"variants\.0\.precision' is 'fp8'"),
        ({"repetitions": 0}, r"variants\.0\.repetitions' is 0"),
        ({"figures": {"throughput_tok_s": "fast"}}, "throughput_tok_s"),
    ],
)
def test_what_cannot_be_is_refused_by_name(file, tmp_path, change, complaint):
    rows = [row.model_dump() for row in file.variants]
    rows[0] |= change
    with pytest.raises(UserError, match=complaint) as refused:
        results_file.read(saved(tmp_path, file, variants=rows))
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)
    assert "ResultRow" not in str(refused.value)


def test_files_of_another_kind_are_refused(file, tmp_path):
    for version, told in ((2, "2"), (True, "True"), (1.0, r"1\.0"), (None, "empty"), ({}, "{}")):
        with pytest.raises(UserError, match=f"has schema_version {told}; this version of the kit"):
            results_file.read(saved(tmp_path, file, schema_version=version))
    with pytest.raises(UserError, match="unknown field 'varients'; did you mean 'variants'"):
        results_file.read(saved(tmp_path, file, varients=[]))
    rows = [row.model_dump() for row in file.variants]
    with pytest.raises(UserError, match="appears twice"):
        results_file.read(saved(tmp_path, file, variants=[*rows, rows[0]]))
    (tmp_path / "no.json").write_text("[1, 2")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        results_file.read(tmp_path / "no.json")
    with pytest.raises(UserError, match=r"gone\.json cannot be read"):
        results_file.read(tmp_path / "gone.json")


def test_files_of_earlier_versions_are_still_read(file, tmp_path):
    later = {"executed_dtype", "instruction_set", "validity", "prices"}
    rows = [{k: v for k, v in r.model_dump().items() if k not in later} for r in file.variants]
    again = results_file.read(saved(tmp_path, file, variants=rows))
    assert again.variants[0].executed_dtype is None
    assert again.variants[0].figures == file.variants[0].figures


def test_the_published_study_can_be_compared_but_not_its_other_scores():
    rows = comparison.open_side("published").rows
    assert len(rows) == 72
    assert not any("score" in row.figures for row in rows)


def test_every_file_that_was_sent_is_valid(file, tmp_path):
    sent = sorted((project_root() / "results").glob("*.json"))
    for path in [results_file.write(file, tmp_path / "mine.json"), *sent]:
        assert results_file.read(path).variants


def test_published_rows_name_their_price_set():
    assert {row.prices for row in comparison.open_side("published").rows} == {"paper"}


def test_a_new_column_of_the_table_is_in_the_file_and_reads_back(made, tmp_path, monkeypatch):
    variants, _, directory = made
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    shutil.copytree(directory, STUDY.directory)
    table = variants.assign(mine_per_joule=1.5, mine_per_joule_lo=1.0, mine_per_joule_hi=2.0)
    tables.write_table(table, STUDY.directory / "tables" / "variants.csv")
    path = results_file.write(results_file.make(STUDY), tmp_path / "mine.json")
    row = results_file.read(path).variants[0]
    assert row.figures["mine_per_joule"] == 1.5
    assert row.intervals["mine_per_joule"] == [1.0, 2.0]


def test_without_tables_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    with pytest.raises(UserError, match=r"no .*variants\.csv; run `make all STUDY=embedded` first"):
        results_file.make(STUDY)
