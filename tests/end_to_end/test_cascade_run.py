"""Hybrid serving on a tiny model: four arms and their page; a cloud that is an endpoint."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
import yaml
from endpoint import Replies, listening
from hand import complaints, executed
from tiny import make_all, make_tiny_study, runs_started

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1800)]
TASKS = ("onepassage", "oncloud", "sampled", "hybrid")
BELOW = 0.0  # every answer is less sure than certain: all of them are escalated


class Cloud(Replies):
    """Answers nine words to each request, but refuses every third."""

    def do_GET(self):
        self.reply({"object": "list", "data": [{"id": "tinyllama-0.1M", "object": "model"}]})

    def do_POST(self):
        self.server.asked.append(self.asked())
        if len(self.server.asked) % 3 == 0:
            self.reply({"error": {"message": "busy"}}, status=503)
        else:
            self.stream([" word"] * self.server.asked[-1]["max_tokens"])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A study of the four arms that was run to its end: its file and its outputs."""
    directory = tmp_path_factory.mktemp("cascade")
    path = make_tiny_study(
        directory,
        name="cascade",
        tasks=TASKS,
        configurations=(("lora", "int4"),),
        roles={"cloud": {"method": "lora", "precision": "fp16"}},
        task_settings={"hybrid": {"below": BELOW}},
        unadapted_base=False,
        notebook="12_hybrid",
        correct_from=dict.fromkeys(TASKS, 0.8),
        data={"evaluation_examples": 12},
    )
    done = make_all(path, directory / "outputs")
    assert done.returncode == 0, done.stdout + done.stderr
    return path, directory / "outputs"


def table(outputs, name):
    return pd.read_csv(outputs / "cascade" / "tables" / f"{name}.csv")


def test_four_arms_are_served_and_their_page_says_why_there_is_nothing_to_route(
    served, monkeypatch
):
    """A model of random weights answers nothing: no side is better, and every curve is empty."""
    path, outputs = served
    arms = table(outputs, "arms")
    assert set(arms["task"]) == set(TASKS)
    assert (arms["energy_per_request_j"] > 0).all()
    assert len(list((outputs / "cascade" / "artefacts" / "adapters").iterdir())) == 1
    verdicts = table(outputs, "routing_verdicts")
    assert verdicts["verdict"].str.contains("not better").all()
    assert table(outputs, "routing_areas")["area"].isna().all()
    assert table(outputs, "routing_curves").empty
    known = set(table(outputs, "calibration")["signal"])
    assert known >= {"mean log-probability", "mean margin", "agreement of samples"}
    confirmed = table(outputs, "confirmation").set_index("cascade")
    assert confirmed["escalated"].tolist() == [1, 1]
    assert (confirmed[["energy_j", "usd", "list_usd", "latency_s"]] > 0).all(axis=None)
    page = (outputs / "cascade" / "experiment.html").read_text(encoding="utf-8")
    assert "What follows" in page
    assert "The cloud is not better" in page
    notebook = executed("12_hybrid.ipynb", outputs, monkeypatch, study=str(path))
    assert complaints(notebook) == ""


def test_a_cloud_that_refuses_requests_costs_those_alone(served, tmp_path):
    """The arms that no cloud answers are those of the finished study."""
    local, finished = served
    outputs = shutil.copytree(finished, tmp_path / "outputs")
    (outputs / "cascade" / "study.json").unlink()  # it names the other's file
    study = yaml.safe_load(local.read_text())
    study["roles"] = {"cloud": {"method": "none", "precision": "fp16", "engine": "openai"}}
    study["models"][0]["location"] = str(local.parent / "llama")
    path = tmp_path / "cascade.yaml"
    path.write_text(yaml.safe_dump(study))
    with listening(Cloud, asked=[]) as server:
        done = make_all(
            path,
            outputs,
            OPENAI_BASE_URL=f"http://127.0.0.1:{server.server_port}/v1",
            OPENAI_API_KEY="secret",
            NO_PROXY="127.0.0.1",
        )
    assert done.returncode == 0, done.stdout + done.stderr
    again = [
        run for run in runs_started(done.stdout) if run.startswith(("adapt", "compress", "serve"))
    ]
    assert sorted(again) == [
        f"serve/tinyllama-0.1M_{task}_lora_int4_r01" for task in ("hybrid", "oncloud")
    ]
    page = (outputs / "cascade" / "experiment.html").read_text(encoding="utf-8")
    assert "HTTP 503" in page
    assert "secret" not in page
    verdicts = table(outputs, "routing_verdicts").set_index("currency")["verdict"]
    assert "is not known" in verdicts["energy_j"]
    arms = table(outputs, "arms").set_index("task")
    assert arms.loc["hybrid", "prompts"] == 12  # the local answers stand
