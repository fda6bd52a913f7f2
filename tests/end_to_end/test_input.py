"""What comes from outside (an endpoint's answers, a file's name) stays text to the whole chain."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pytest
import tiny
from endpoint import Replies, listening
from grids import Grid, write_notebooks

KEY = 'sk-ech0"back\\me/+=12345678'
NAME = "tinyllama-0.1M"


class Echo(Replies):
    """Tells everybody what the request's Authorization header was, in many forms."""

    def forms(self) -> list[str]:
        sent = self.headers["Authorization"]
        code = base64.b64encode(sent.encode()).decode()
        return [sent, quote(sent), code, repr({"Authorization": sent})]

    def do_GET(self):
        models = [{"id": name, "object": "model"} for name in self.server.models]
        self.reply({"object": "list", "data": models + [{"id": i} for i in self.forms()]})

    def do_POST(self):
        if self.server.refuses or "prompt_logprobs" in self.asked():
            self.reply({"error": {"message": " ".join(self.forms())}}, status=401)
        else:
            self.stream(f" {text}" for text in self.forms())  # as many as tokens were asked for


@pytest.fixture
def endpoint() -> Iterator[ThreadingHTTPServer]:
    with listening(Echo, models=[NAME], refuses=False) as server:
        yield server


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of an endpoint whose preflight is done; its file, with its outputs beside it."""
    directory = tmp_path_factory.mktemp("begun")
    study = tiny.make_tiny_study(
        directory,
        configurations=(("none", "fp16"),),
        workload={"engine": "openai", "concurrency": [1, 2], "headline_concurrency": 2},
    )
    told = {"OPENAI_API_KEY": KEY, "EDGE_EVAL_OUTPUTS": directory / "outputs"}
    done = call("run", study, "preflight", "preflight", **told)
    assert done.returncode == 0, done.stderr
    return study


def call(*arguments: object, **variables: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_eval_lib", *map(str, arguments)],
        env=os.environ | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=600,
    )


def measure(
    study: Path, directory: Path, server: ThreadingHTTPServer
) -> subprocess.CompletedProcess[str]:
    """`make all` of a study that was begun, with outputs of its own in a directory."""
    shutil.copytree(study.parent / "outputs", directory / "outputs")
    return call(
        "all",
        study,
        OPENAI_BASE_URL=f"http://127.0.0.1:{server.server_port}/v1",
        OPENAI_API_KEY=KEY,
        NO_PROXY="127.0.0.1",
        EDGE_EVAL_OUTPUTS=directory / "outputs",
        XDG_RUNTIME_DIR=directory,
    )


def assert_nowhere(key: str, directory: Path, *screens: str) -> None:
    """No file below `directory`, and no output, has the key or what it is in another form."""
    code = base64.b64encode(f"Bearer {key}".encode()).decode()[12:-4]
    forms = {key, json.dumps(key)[1:-1], repr(key)[1:-1], quote(key), code, key[4:-4]}
    told = {str(file): file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    told |= {f"screen {number}": screen.encode() for number, screen in enumerate(screens)}
    assert len(told) > len(screens)
    for where, content in told.items():
        for form in forms:
            assert form.encode() not in content, f"{where} has {form}"
    for file in directory.rglob("*.parquet"):  # whose pages are compressed
        assert key[4:-4] not in pd.read_parquet(file).to_json(), file


def test_a_key_that_an_endpoint_refuses_and_repeats_is_written_nowhere(endpoint, begun, tmp_path):
    endpoint.refuses = True
    done = measure(begun, tmp_path, endpoint)
    assert done.returncode != 0
    assert "HTTP 401" in done.stderr + done.stdout
    assert list(tmp_path.glob("outputs/tiny/failed/serve/*.json"))
    assert_nowhere(KEY, tmp_path / "outputs", done.stdout, done.stderr)


def test_a_key_that_an_endpoint_answers_with_is_written_nowhere(endpoint, begun, tmp_path):
    done = measure(begun, tmp_path, endpoint)
    assert done.returncode == 0, done.stdout + done.stderr
    answers = pd.read_parquet(next(tmp_path.glob("outputs/tiny/runs/serve/*.answers.parquet")))
    assert answers["answer"].str.contains("[redacted]", regex=False).all()
    assert_nowhere(KEY, tmp_path / "outputs", done.stdout, done.stderr)


def test_a_key_among_an_endpoint_s_models_is_not_shown(endpoint, begun, tmp_path):
    endpoint.models = ["another"]
    done = measure(begun, tmp_path, endpoint)
    assert done.returncode != 0
    assert f"offers no model '{NAME}' but another" in done.stderr + done.stdout
    (tmp_path / "outputs" / "something").mkdir(parents=True, exist_ok=True)
    (tmp_path / "outputs" / "something" / "file").write_text("")
    assert_nowhere(KEY, tmp_path / "outputs", done.stdout, done.stderr)


def test_a_study_s_path_is_never_a_command(tmp_path):
    grid = Grid(tmp_path)
    write_notebooks(tmp_path / "notebooks")
    grid.write_study(configurations=(("lora", "fp16"),), unadapted_base=False)
    grid.misbehave()
    odd = (
        tmp_path / "it's {x} {wildcards.name}" / '$(touch pwned); `touch pwned` "a" \\n %41 -q.yaml'
    )
    odd.parent.mkdir()
    grid.study.rename(odd)
    done = grid.call("all", str(odd))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 5 runs are done" in done.stdout
    assert not list(Path.cwd().rglob("pwned")) + list(tmp_path.rglob("pwned"))
    again = grid.call("all", "--", str(odd))
    assert "run 1" not in again.stdout
    refused = grid.call("all", f"{odd.parent}/two\nlines.yaml")
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
