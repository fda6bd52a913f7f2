"""What make all shows while it runs, and make status from another terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finished import ADAPTER, executed

from edge_eval_lib.artefacts.place import place, read_failure, write_failure
from edge_eval_lib.runs import measured, progress, slurm, under_way
from edge_eval_lib.runs.process import supervised
from edge_eval_lib.runs.progress import TOLD, Progress, about
from edge_eval_lib.runs.status import status
from edge_eval_lib.study import Study
from edge_eval_lib.units import duration, energy

ADAPT = ("adapt", ADAPTER)
SERVED = {
    "executed_workload": {"headline_concurrency": 8},
    "serving": [
        {"concurrency": 1, "throughput_tok_s": 9.0, "energy_per_request_j": 9.0},
        {"concurrency": 8, "throughput_tok_s": 35.73, "energy_per_request_j": 3.592,
         "energy_source": "cpu-model"},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (3600, "60 min"), (7200, "2.0 h"),
     (86400 * 4, "4 days")],
)  # fmt: skip
def test_seconds_are_said_in_the_unit_that_fits(seconds: float, said: str):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("joules", "said"),
    [(0.0312, "0.031 J"), (3.59, "3.6 J"), (214.7, "215 J"), (3600, "1 Wh"), (131, "131 J"),
     (3.6e6, "1 kWh"), (7.2e9, "2,000 kWh")],
)  # fmt: skip
def test_joules_are_said_in_the_unit_that_fits(joules: float, said: str):
    assert energy(joules) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "less than 20 s"), (19, "less than 20 s"), (44, "about 40 s"), (130, "about 2 min"),
     (9000, "about 2.5 h")],
)  # fmt: skip
def test_no_zero_seconds_are_left(seconds: float, said: str):
    assert about(seconds) == said


def test_what_a_run_measured_is_a_phrase():
    trained = {"adapt_s": 27.3, "adapt_energy_j": 214.6, "adapt_energy_source": "cpu-model"}
    assert measured.phrase("adapt", trained) == "215 J (estimated), 27 s of training"
    metered = trained | {"adapt_energy_source": "nvml-counter"}
    assert measured.phrase("adapt", metered) == "215 J, 27 s of training"
    unknown = {"adapt_s": 27.3, "adapt_energy_j": None}
    assert measured.phrase("adapt", unknown) == "27 s of training"
    made = {"artefacts": [{"precision": "fp16", "disk_mb": 272.6}, {"precision": "int4"}]}
    assert measured.phrase("compress", made) == "fp16 0.273 GB"
    served = "35.7 tok/s, 3.6 J (estimated) per request at 8 at a time"
    assert measured.phrase("serve", SERVED) == served
    assert measured.phrase("serve", {}) == measured.phrase("score", trained) == ""


# --- what make all shows ------------------------------------------------------------------------


@pytest.fixture
def undone_study(finished_study: Study) -> Study:
    """All done but its adaptation, whose notebook is not there yet."""
    at = place(finished_study, *ADAPT)
    at.settings.unlink()
    at.notebook.unlink()
    return finished_study


def end(study: Study, **recorded: object) -> None:
    scraps = {"adapt_s": 20.0, "adapt_energy_j": 152.0, "run_complete": True} | recorded
    place(study, *ADAPT).notebook.write_bytes(executed(*scraps.items()))


def test_plain_lines_say_which_run_what_is_left_and_what_it_measured(
    undone_study: Study, capsys: pytest.CaptureFixture[str]
):
    with Progress(undone_study, keys=[ADAPT, ("synthesis", "synthesis")]) as shown:
        shown.hear(f"{TOLD}{json.dumps(['begin', *ADAPT])}")
        shown.hear("adapt  x waits: somebody has the machine")
        end(undone_study)
        shown.hear(f"{TOLD}{json.dumps(['end', *ADAPT])}")
        shown.begin(("synthesis", "synthesis"))
    begun, waits, done, report = capsys.readouterr().out.splitlines()
    assert begun.startswith(f"run 1 of 1  adapt  {ADAPTER}  (about ")
    assert begun.endswith(" left)")
    assert waits == "adapt  x waits: somebody has the machine"
    assert done == f"  done  adapt  {ADAPTER}  in 11 s: 152 J, 20 s of training"
    assert report.startswith("report  synthesis  (")


def test_a_long_run_shows_life(
    undone_study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "SILENT_S", 0.2)
    monkeypatch.setattr(progress, "SILENT_SHARE", 0.0)
    at = place(undone_study, *ADAPT)
    at.running.mkdir(parents=True)
    under_way.begin(at)
    under_way.note(at, 1, 2)
    with Progress(undone_study, keys=[ADAPT]) as shown:
        shown.begin(ADAPT)
        time.sleep(0.9)
    begun, *still = capsys.readouterr().out.splitlines()
    assert begun.startswith("run 1 of 1")
    assert 2 <= len(still) <= 4
    assert all(line.startswith(f"  still  adapt  {ADAPTER}  ") for line in still)
    assert ", cell 2 of 2  (" in still[0]


def test_a_failure_is_said_and_what_needed_it_is_waited_for_no_longer(
    undone_study: Study, capsys: pytest.CaptureFixture[str]
):
    keys = [(run.stage, run.name) for run in undone_study.runs()]
    with Progress(undone_study, keys=keys) as shown:
        shown.begin(("preflight", "preflight"))
        shown.end(("preflight", "preflight"))
        shown.begin(ADAPT)
        write_failure(place(undone_study, *ADAPT), "It did not converge.")
        shown.fail(ADAPT)
        left = set(shown.remaining.runs)
        shown.begin(("score", "score"))
    lines = capsys.readouterr().out.splitlines()
    assert f"FAILED  adapt  {ADAPTER}: It did not converge." in lines
    depending = {(run.stage, run.name) for run in undone_study.runs() if ADAPT in run.needs}
    assert depending
    assert left.isdisjoint({ADAPT, *depending})
    assert ("score", "score") in left


def test_a_terminal_has_a_bar_and_no_escape_codes_reach_a_file(
    undone_study: Study, monkeypatch: pytest.MonkeyPatch
):
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with Progress(undone_study, keys=[ADAPT]) as shown:
            shown.begin(ADAPT)
            end(undone_study)
            shown.end(ADAPT)
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "\x1b[" in text
    assert "run 1 of 1" in text
    assert "━" in text
    done = next(line for line in text.splitlines() if "152 J" in line)
    assert done.rstrip().endswith(f"run 1 of 1  adapt  {ADAPTER}  in 11 s: 152 J, 20 s of training")


def test_a_dumb_terminal_has_plain_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", type("Terminal", (), {"isatty": lambda _: True})())
    monkeypatch.setenv("TERM", "dumb")
    assert not progress.in_terminal()
    monkeypatch.setenv("TERM", "xterm")
    assert progress.in_terminal()


def test_a_supervised_command_is_heard_line_by_line():
    heard: list[str] = []
    command = [sys.executable, "-c", "print('one'); print('two')"]
    assert supervised(command, subprocess.DEVNULL, dict(os.environ), heard.append) == 0
    assert heard == ["one", "two"]


def test_a_hearer_that_fails_holds_nothing_up(capfd: pytest.CaptureFixture[str]):
    def fail(_: str) -> None:
        raise RuntimeError("no more")

    much = "print(('x' * 1000 + chr(10)) * 500)"  # more than a pipe holds
    environment = dict(os.environ)
    assert supervised([sys.executable, "-c", much], subprocess.DEVNULL, environment, fail) == 0
    assert capfd.readouterr().err == "Nothing more is shown: RuntimeError: no more\n"


# --- what make status says ----------------------------------------------------------------------


def test_status_of_what_is_done(finished_study: Study):
    total = len(finished_study.runs())
    assert status(finished_study).splitlines()[0] == (
        f"{finished_study.name}: {total} of {total} runs are done."
    )


def test_status_of_what_runs_and_of_what_was_killed(undone_study: Study):
    at = place(undone_study, *ADAPT)
    at.running.mkdir(parents=True)
    under_way.begin(at)
    (undone_study.directory / ".lock").write_text(str(os.getpid()))
    under_way.note(at, 1, 2)
    first, *_, told, left = status(undone_study).splitlines()
    assert f"make is at work on it (process {os.getpid()}) since " in first
    assert told.startswith(f"running  adapt  {ADAPTER}  since ")
    assert told.endswith(" s, cell 2 of 2)")
    assert left.endswith("of work are left.")
    ended = subprocess.Popen(["true"])
    ended.wait()
    file = at.running / under_way.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"process": ended.pid}))
    (undone_study.directory / ".lock").write_text(str(ended.pid))
    first, *_, told, left = status(undone_study).splitlines()
    assert "make is at work" not in first
    assert told.startswith(f"stopped  adapt  {ADAPTER}: its process ended without a word")
    assert f"`make all STUDY={undone_study.argument}` does it." in left


def test_a_later_process_of_the_same_number_is_not_the_run(undone_study: Study):
    assert under_way.lives(os.getpid(), time.time())
    assert not under_way.lives(os.getpid(), time.time() - 1e6)  # it wrote before this one began


def test_status_of_a_run_on_another_machine(undone_study: Study):
    at = place(undone_study, *ADAPT)
    at.running.mkdir(parents=True)
    under_way.begin(at)
    file = at.running / under_way.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"host": "node7"}))
    assert " on node7" in next(
        line for line in status(undone_study).splitlines() if ADAPTER in line
    )


def test_status_of_what_failed_and_where(undone_study: Study):
    at = place(undone_study, *ADAPT)
    write_failure(at, "It did not converge.")
    assert read_failure(at)
    at.failed_notebook.write_text("{}")
    told = next(line for line in status(undone_study).splitlines() if ADAPTER in line)
    assert told.startswith(f"failed   adapt  {ADAPTER} at ")
    assert told.endswith(f": It did not converge. ({at.failed_notebook})")


def test_status_of_what_waits(undone_study: Study):
    *_, waiting, left = status(undone_study).splitlines()
    assert waiting == "waiting  1 adapt"
    assert left.startswith(("Less than 20 s of work are left. ", "About "))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("JobState=PENDING Reason=Resources NodeList=(null)", "pending (Resources)"),
        ("JobState=RUNNING Reason=None NodeList=node7", "running on node7"),
        ("JobState=TIMEOUT Reason=TimeLimit NodeList=node7", "which has ended (timeout)"),
    ],
)
def test_status_of_a_job_of_a_cluster(
    undone_study: Study, monkeypatch: pytest.MonkeyPatch, state: str, said: str
):
    monkeypatch.setattr(slurm, "_ask", lambda *_: f"JobId=17 {state}")
    job = undone_study.directory / "slurm" / "adapt" / f"{ADAPTER}.job"
    job.parent.mkdir(parents=True)
    job.write_text("17")
    told = next(line for line in status(undone_study).splitlines() if ADAPTER in line)
    assert told == f"queued   adapt  {ADAPTER}: SLURM's job 17, {said}"


def test_where_slurm_does_not_answer_a_job_is_named(undone_study: Study, tmp_path: Path):
    assert slurm.standing(tmp_path, *ADAPT) is None
    job = tmp_path / "slurm" / "adapt" / f"{ADAPTER}.job"
    job.parent.mkdir(parents=True)
    job.write_text("17")
    said = slurm.standing(tmp_path, *ADAPT)
    assert said is not None
    assert said.startswith("SLURM's job 17")
