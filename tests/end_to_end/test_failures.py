"""Whatever goes wrong: nothing finished is lost, nothing half-made is published, and the next
`make all` completes. A person is told in a sentence, never by a traceback."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
import tiny
import yaml
from grids import Grid, wait_for
from tiny import runs_started

from edge_eval_lib import scraps
from edge_eval_lib.runs import devices
from edge_eval_lib.study import NOTEBOOKS

INT8 = "tinyllama-0.1M_rag_lora_int8_r01"
FP16 = "tinyllama-0.1M_rag_lora_fp16_r01"
BASE = "tinyllama-0.1M_rag_none_fp16_r01"
ADAPTER = "tinyllama-0.1M_rag_lora"
EVERY_RUN = {
    "preflight/preflight",
    f"adapt/{ADAPTER}",
    f"compress/{ADAPTER}",
    f"serve/{FP16}",
    f"serve/{INT8}",
    f"serve/{BASE}",
    "score/score",
    "synthesis/synthesis",
}


def assert_told_without_traceback(output: str) -> None:
    assert "Traceback" not in output
    assert "Error in rule" not in output


def assert_nothing_half_made(grid: Grid) -> None:
    """Every published notebook is complete and has its own raw data beside it."""
    for run, content in grid.published().items():
        assert b"run_complete" in content
        stage, name = run.split("/")
        assert (grid.outputs / "runs" / stage / f"{name}.raw.parquet").read_text() == run
    published = {path.name.removesuffix(".raw.parquet") for path in grid.outputs.glob("runs/*/*")}
    assert {name.removesuffix(".ipynb") for name in published} == {
        run.split("/")[1] for run in grid.published()
    }


@pytest.mark.quick
def test_a_run_computes_with_every_core_that_this_process_may_use(grid: Grid):
    """Snakemake tells each of its jobs to compute with one thread."""
    cores = min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False))
    count = len(devices.devices())
    for run in EVERY_RUN - {"synthesis/synthesis"}:
        notebook = grid.outputs / "runs" / f"{run}.ipynb"
        assert scraps.read_scraps(notebook)["threads"] == str(max(1, cores // count)), run


@pytest.mark.quick
def test_a_finished_grid_has_every_run_and_does_nothing_again(grid: Grid):
    assert set(grid.published()) == EVERY_RUN
    assert_nothing_half_made(grid)
    again = grid.all()
    assert again.returncode == 0
    assert runs_started(again.stdout) == []


def assert_reason_told(
    grid: Grid, failed: subprocess.CompletedProcess[str], run: str, reason: str
) -> None:
    assert reason in failed.stderr
    record = json.loads((grid.outputs / "failed" / f"{run}.json").read_text())
    assert record["reason"].startswith(reason)
    assert reason in grid.call("status", str(grid.study)).stdout


def test_failed_runs_stop_no_other_and_are_retried_alone(grid: Grid):
    failing = {INT8: "The kernel was killed by SIGKILL.", BASE: "MemoryError"}
    grid.misbehave(**{f"serve__{INT8}": "kill", f"serve__{BASE}": "memory"})
    for name in failing:
        grid.forget("serve", name)
    grid.forget("score", "score")
    failed = grid.all()
    assert failed.returncode == 1
    assert_told_without_traceback(failed.stdout + failed.stderr)
    serving = {f"serve/{name}" for name in failing}
    assert set(grid.published()) == EVERY_RUN - serving
    assert_nothing_half_made(grid)
    # What there is was scored and reported all the same.
    *first, score, synthesis = runs_started(failed.stdout)
    assert (set(first), score, synthesis) == (serving, "score/score", "synthesis/synthesis")
    for name, reason in failing.items():
        assert_reason_told(grid, failed, f"serve/{name}", reason)

    grid.misbehave()
    mended = grid.all()
    assert mended.returncode == 0
    *first, score, synthesis = runs_started(mended.stdout)
    assert (set(first), score, synthesis) == (serving, "score/score", "synthesis/synthesis")
    assert set(grid.published()) == EVERY_RUN
    assert not list(grid.outputs.glob("failed/*/*"))


def test_a_loss_that_is_not_a_number_fails_the_real_adaptation(grid: Grid):
    del grid.environment["EDGE_EVAL_NOTEBOOKS"]  # the project's own notebooks
    diverging = {"learning_rate": 1e38, "epochs": 4}
    study = tiny.make_tiny_study(grid.directory, name="diverging", training=diverging)
    failed = grid.call("run", str(study), "adapt", ADAPTER)
    assert failed.returncode == 1
    assert "lower training.learning_rate" in failed.stderr.splitlines()[-1]
    outputs = grid.outputs.parent / "diverging"
    assert not list(outputs.glob("runs/*/*"))
    assert not list(outputs.glob("artefacts/adapters/*"))
    assert (outputs / "failed" / "adapt" / f"{ADAPTER}.ipynb").is_file()


def test_rerun_keeps_each_finished_run_until_a_new_one_takes_its_place(grid: Grid):
    before = grid.published()
    grid.misbehave(**{f"adapt__{ADAPTER}": "raise"})
    failed = grid.all("--rerun", "adapt")
    assert failed.returncode == 1
    assert_reason_told(
        grid, failed, f"adapt/{ADAPTER}", "ValueError: the first line and a second one"
    )
    to_report_it = "synthesis/synthesis"
    assert runs_started(failed.stdout) == [f"adapt/{ADAPTER}", to_report_it]
    kept = EVERY_RUN - {"synthesis/synthesis"}
    assert {run for run in EVERY_RUN if grid.published()[run] == before[run]} == kept
    assert_nothing_half_made(grid)

    grid.misbehave(**{f"adapt__{ADAPTER}": "other", f"compress__{ADAPTER}": "other"})
    assert grid.all().returncode == 0
    after = grid.published()
    assert {run for run in EVERY_RUN if after[run] == before[run]} == {
        "preflight/preflight",
        "serve/tinyllama-0.1M_rag_none_fp16_r01",  # the base needs no adapter
    }


def test_the_same_adapter_made_again_leaves_what_was_made_from_it(grid: Grid):
    before = grid.published()
    damaged = grid.outputs / "artefacts" / "adapters" / ADAPTER / "model.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    mended = grid.all()
    assert mended.returncode == 0, mended.stderr
    assert f"adapt  {ADAPTER} is damaged: artefacts/adapters/{ADAPTER}" in mended.stdout
    assert runs_started(mended.stdout) == [f"adapt/{ADAPTER}", "synthesis/synthesis"]
    assert damaged.read_bytes() == content
    after = grid.published()
    made = {f"adapt/{ADAPTER}", "synthesis/synthesis"}
    assert {run for run in EVERY_RUN if after[run] != before[run]} == made


@pytest.mark.quick
def test_what_needs_a_failed_run_waits_and_the_rest_goes_on(grid: Grid):
    grid.misbehave(**{f"compress__{ADAPTER}": "raise"})
    for run in EVERY_RUN:
        if run.startswith(("compress", "serve", "score", "synthesis")):
            grid.forget(*run.split("/"))
    failed = grid.all()
    assert failed.returncode == 1
    assert "1 run of small failed, 2 more need it:" in failed.stderr
    assert set(grid.published()) == {
        "preflight/preflight",
        f"adapt/{ADAPTER}",
        "serve/tinyllama-0.1M_rag_none_fp16_r01",
        "score/score",
        "synthesis/synthesis",
    }
    grid.misbehave()
    assert grid.all().returncode == 0
    assert set(grid.published()) == EVERY_RUN


def test_code_of_a_notebook_makes_its_runs_again_and_prose_does_not(grid: Grid):
    path = grid.directory / "notebooks" / NOTEBOOKS["serve"]
    notebook = nbformat.read(path, 4)
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell("Serve it."))
    notebook.cells[2].source += "\n# and that is all"
    nbformat.write(notebook, path)
    again = grid.all()
    assert (again.returncode, runs_started(again.stdout)) == (0, [])

    notebook.cells[2].source += "\nmore = True"
    nbformat.write(notebook, path)
    sentence = "3 serve runs are out of date: each was made by other code in 03_serve.ipynb"
    assert sentence in grid.call("plan", str(grid.study)).stdout
    kept = grid.all("--keep", "serve")
    assert (kept.returncode, runs_started(kept.stdout)) == (0, ["synthesis/synthesis"])
    assert sentence not in grid.call("plan", str(grid.study)).stdout

    notebook.cells[2].source += "\nmore = False"
    nbformat.write(notebook, path)
    made = grid.all()
    assert sentence in made.stdout
    serving = {run for run in EVERY_RUN if run.startswith("serve/")}
    assert set(runs_started(made.stdout)) == serving | {"score/score", "synthesis/synthesis"}
    assert runs_started(grid.all().stdout) == []


def test_corrupt_executed_notebooks_are_made_again(grid: Grid):
    damaged = {INT8: b"", FP16: b'{"cells": [', BASE: b'{"cells": []}'}
    for name, damage in damaged.items():
        notebook = grid.outputs / "runs" / "serve" / f"{name}.ipynb"
        made = notebook.stat().st_mtime
        notebook.write_bytes(damage)
        os.utime(notebook, (made, made))
    mended = grid.all()
    assert mended.returncode == 0
    assert mended.stdout.count("damaged") >= len(damaged)
    *first, score, synthesis = runs_started(mended.stdout)
    assert set(first) == {f"serve/{name}" for name in damaged}
    assert (score, synthesis) == ("score/score", "synthesis/synthesis")
    assert set(grid.published()) == EVERY_RUN


def test_whatever_is_damaged_is_made_again(grid: Grid):
    weights = grid.outputs / "artefacts" / "models" / f"{ADAPTER}_int8" / "model.safetensors"
    raw = grid.outputs / "runs" / "serve" / f"{INT8}.raw.parquet"
    report = grid.outputs / "report.html"
    whole = {path: path.read_bytes() for path in (weights, raw, report)}
    before = grid.published()
    weights.write_bytes(whole[weights][:40])
    raw.unlink()
    report.unlink()
    mended = grid.all()
    assert mended.returncode == 0, mended.stderr
    assert {path: path.read_bytes() for path in whole} == whole
    made = {f"compress/{ADAPTER}", f"serve/{INT8}", "score/score", "synthesis/synthesis"}
    after = grid.published()
    assert {run for run in EVERY_RUN if after[run] != before[run]} == made
    assert runs_started(grid.all().stdout) == []


def kill_runner(grid: Grid, run: str) -> None:
    """SIGKILL to the process of a run, when its notebook executes."""
    wait_for((grid.outputs / "running" / run / "raw" / "raw.parquet").is_file)
    (process,) = [
        p
        for p in grid.processes()
        if "run" in p.cmdline()
        and run.split("/")[1] in p.cmdline()
        and "snakemake" not in " ".join(p.cmdline())
    ]
    process.kill()


def kill_scheduler(grid: Grid, run: str) -> None:
    wait_for((grid.outputs / "running" / run / "raw" / "raw.parquet").is_file)
    for process in grid.processes():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "snakemake" in process.cmdline():
                process.kill()


@pytest.mark.parametrize(
    ("kill", "reason"),
    [
        (kill_runner, "Its process was killed before it could say why."),
        (kill_scheduler, "It was stopped: the process that scheduled it was killed."),
    ],
)
def test_a_killed_process_is_named_with_its_run(grid: Grid, kill, reason: str):
    grid.misbehave(**{f"serve__{INT8}": "sleep"})
    grid.forget("serve", INT8)
    process = grid.start(grid.command("all", str(grid.study)))
    kill(grid, f"serve/{INT8}")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    assert f"  serve  {INT8}: {reason}" in output
    assert "Elapsed" not in output
    assert_told_without_traceback(output)
    assert set(grid.published()) == EVERY_RUN - {f"serve/{INT8}"}
    assert reason in grid.call("status", str(grid.study)).stdout
    assert not list((grid.outputs / "running").glob("*/*"))


@pytest.mark.parametrize("kill", [kill_runner, kill_scheduler])
def test_a_second_pass_that_completes_everything_is_a_success(grid: Grid, kill):
    grid.misbehave(synthesis__synthesis="sleep")
    (grid.outputs / "report.html").unlink()
    process = grid.start(grid.command("all", str(grid.study)))
    wait_for((grid.outputs / "running" / "synthesis" / "synthesis" / "raw" / "raw.parquet").is_file)
    grid.misbehave()
    kill(grid, "synthesis/synthesis")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert set(grid.published()) == EVERY_RUN
    assert not list(grid.outputs.glob("failed/*/*.json"))


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    """A file system of that size at `directory`, its content copied there."""
    content = directory.with_name(f"{directory.name}-content")
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    shutil.copytree(directory, content, copy_function=shutil.copyfile)
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    try:
        shutil.copytree(content, directory, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.mark.parametrize("run", [f"serve/{INT8}", "synthesis/synthesis"])
def test_a_full_disk_is_reported_with_run_and_place(grid: Grid, run: str):
    stage, name = run.split("/")
    grid.forget(stage, name)
    grid.misbehave(**{f"{stage}__{name}": "fill"})
    with small_disk(grid.outputs, "24m"):
        failed = grid.all()
        assert failed.returncode == 1
        assert f"  {stage}  {name}: There is no space left on the disk of" in failed.stderr
        assert str(grid.outputs) in failed.stderr
        assert_told_without_traceback(failed.stdout + failed.stderr)
        assert not list(grid.outputs.glob("*/*/.*.json.*"))
        grid.misbehave()
        for path in grid.outputs.rglob("fill.bin"):
            path.unlink()
        mended = grid.all()
        assert mended.returncode == 0, mended.stdout + mended.stderr
        assert set(grid.published()) == EVERY_RUN


def test_a_disk_that_is_full_already_is_reported_with_run_and_place(grid: Grid):
    grid.forget("serve", INT8)
    with small_disk(grid.outputs, "24m"):
        with contextlib.suppress(OSError), (grid.outputs / "ballast").open("wb", 0) as file:
            while True:
                file.write(b"0" * 4096)
        failed = grid.all()
        assert failed.returncode == 1
        assert "no space left" in failed.stderr.lower()
        assert str(grid.outputs) in failed.stderr
        assert_told_without_traceback(failed.stdout + failed.stderr)
        (grid.outputs / "ballast").unlink()
        mended = grid.all()
        assert mended.returncode == 0, mended.stdout + mended.stderr
        assert set(grid.published()) == EVERY_RUN


def test_a_home_directory_that_cannot_be_written_is_no_obstacle(grid: Grid):
    grid.forget("serve", INT8)
    for name in [name for name in grid.environment if name.startswith(("XDG_CACHE", "XDG_CONFIG"))]:
        del grid.environment[name]
    grid.environment["HOME"] = "/proc/nonexistent"
    done = grid.all()
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(grid.published()) == EVERY_RUN


def add_the_paper(grid: Grid) -> Path:
    """Give the grid a paper's notebook; where its executed one will lie."""
    notebook = grid.directory / "notebooks" / NOTEBOOKS["score"]
    shutil.copy(notebook, grid.directory / "notebooks" / NOTEBOOKS["paper"])
    return grid.outputs.parent / "paper" / "runs" / "paper" / "paper.ipynb"


def test_two_at_a_time_make_the_paper_s_report_once(grid: Grid):
    paper = add_the_paper(grid)
    grid.misbehave(paper__paper="nap")
    both = [grid.start(grid.command("paper")) for _ in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    assert paper.is_file()
    assert not list((grid.outputs.parent / "paper").glob("failed/*/*"))
    assert grid.all().returncode == 0


def test_the_paper_s_report_is_made_beside_scores_when_everything_is_measured(grid: Grid):
    paper = add_the_paper(grid)
    grid.misbehave(paper__paper="nap", score__score="nap")
    grid.forget("serve", INT8)
    done = grid.all()
    assert done.returncode == 0, done.stdout + done.stderr
    runs = grid.outputs / "runs"
    (_, served), (began, ended), (paper_began, paper_ended) = (
        tuple(nbformat.read(file, 4).metadata.papermill[f"{end}_time"] for end in ("start", "end"))
        for file in (runs / "serve" / f"{INT8}.ipynb", runs / "score" / "score.ipynb", paper)
    )
    assert served < min(began, paper_began)
    assert max(began, paper_began) < min(ended, paper_ended)
    content = paper.read_bytes()
    again = grid.all()
    assert (again.returncode, paper.read_bytes()) == (0, content), again.stdout


def test_the_paper_s_report_needs_no_run_that_failed(grid: Grid):
    paper = add_the_paper(grid)
    grid.misbehave(**{f"serve__{INT8}": "raise"})
    grid.forget("serve", INT8)
    done = grid.all()
    assert done.returncode != 0
    assert "1 run of small failed" in done.stdout + done.stderr
    assert paper.is_file()


@pytest.mark.quick
def test_ctrl_c_stops_everything_with_one_line(grid: Grid):
    before = grid.published()
    grid.misbehave(**{f"serve__{INT8}": "sleep"})
    grid.forget("serve", INT8)
    # -o: what make would install for a changed pyproject.toml is not the subject here
    process = grid.start(["make", "-o", ".venv/.stamp", "all", f"STUDY={grid.study}"])
    running = grid.outputs / "running" / "serve" / INT8 / "raw" / "raw.parquet"
    wait_for(running.is_file)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode != 0
    assert_told_without_traceback(output)
    before_it = ("run ", "  done  ", "1 score run is out of date")
    said = [line for line in output.splitlines() if not line.startswith(before_it)]
    assert said == ["Stopped. Finished runs are kept; make all goes on from here."]
    wait_for(lambda: not grid.processes(), 5)
    assert grid.published() == {r: c for r, c in before.items() if r != f"serve/{INT8}"}
    assert_nothing_half_made(grid)

    grid.misbehave()
    assert grid.all().returncode == 0
    assert set(grid.published()) == EVERY_RUN


def test_an_interrupt_that_make_ignores_is_no_success(grid: Grid):
    grid.misbehave(**{f"serve__{INT8}": "sleep"})
    grid.forget("serve", INT8)
    command = ["make", "-o", ".venv/.stamp", "all", f"STUDY={grid.study}"]
    process = grid.start(command, interrupts=signal.SIG_IGN)
    wait_for((grid.outputs / "running" / "serve" / INT8 / "raw" / "raw.parquet").is_file)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "Stopped. Finished runs are kept; make all goes on from here." in output
    assert_told_without_traceback(output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_kernel_outlives_a_killed_command(grid: Grid, number: signal.Signals):
    grid.misbehave(**{f"serve__{INT8}": "sleep"})
    grid.forget("serve", INT8)
    process = grid.start(grid.command("all", str(grid.study)))
    running = grid.outputs / "running" / "serve" / INT8 / "raw" / "raw.parquet"
    wait_for(running.is_file)
    os.kill(process.pid, number)
    process.communicate(timeout=20)
    wait_for(lambda: not grid.processes(), 10)
    assert f"serve/{INT8}" not in grid.published()

    grid.misbehave()
    assert grid.all().returncode == 0
    assert set(grid.published()) == EVERY_RUN
    assert_nothing_half_made(grid)


@pytest.mark.quick
def test_a_second_make_says_that_the_first_is_at_work(grid: Grid):
    grid.misbehave(**{f"serve__{INT8}": "nap"})
    grid.forget("serve", INT8)
    first = grid.start(grid.command("all", str(grid.study)))
    wait_for((grid.outputs / "running" / "serve" / INT8 / "raw").is_dir)
    second = grid.all()
    assert second.returncode == 1
    assert second.stderr == (
        f"Another `make` is at work on small (process {first.pid}); wait for it or stop it.\n"
    )
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 0, output
    assert set(grid.published()) == EVERY_RUN


def test_runs_of_two_checkouts_take_turns_on_the_device(grid: Grid):
    locks = grid.directory / f"edge-eval-{os.getuid()}"
    with (locks / "machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("other serve run (process 1)")
        lock.flush()
        process = grid.start(grid.command("run", str(grid.study), "serve", INT8))
        said = process.stdout.readline()
        assert said == f"serve  {INT8} waits: other serve run (process 1) has the machine\n"
        assert not (grid.outputs / "running" / "serve" / INT8).exists()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_outputs_that_cannot_be_written_are_refused_in_a_sentence(grid: Grid):
    if os.geteuid() == 0:  # to whom no mode forbids anything: a file stands in the way
        blocked = grid.directory / "file"
        blocked.write_text("")
        grid.environment["EDGE_EVAL_OUTPUTS"] = str(blocked)
    else:
        grid.outputs.chmod(0o555)
    refused = grid.all()
    grid.outputs.chmod(0o755)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "cannot be written" in refused.stderr


def without(content: dict, field: str) -> dict:
    return {key: value for key, value in content.items() if key != field}


STUDY = tiny.tiny_study(None, "small")
BAD_STUDIES = {
    "unknown field": (STUDY | {"repetition": 3}, "did you mean 'repetitions'?"),
    "unknown nested field": (
        STUDY | {"training": STUDY["training"] | {"learning_rat": 1.0}},
        "did you mean 'learning_rate'?",
    ),
    "missing field": (without(STUDY, "seed"), "the field 'seed' is missing"),
    "wrong type": (STUDY | {"repetitions": "three"}, "the field 'repetitions' is 'three'"),
    "negative number": (STUDY | {"repetitions": -1}, "the field 'repetitions' is -1"),
    "unknown task": (STUDY | {"tasks": ["ragg"]}, "the field 'tasks.0' is 'ragg'"),
    "unknown model": (STUDY | {"models": ["smollm2-135"]}, "did you mean 'smollm2-135M'?"),
}


@pytest.mark.parametrize("command", ["plan", "all"])
@pytest.mark.parametrize("case", BAD_STUDIES)
def test_a_bad_study_file_is_refused_in_a_sentence(grid: Grid, command: str, case: str):
    content, expected = BAD_STUDIES[case]
    grid.study.write_text(yaml.safe_dump(content))
    refused = grid.call(command, str(grid.study))
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert expected in refused.stderr
    assert refused.stdout == ""


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [unclosed", "not valid YAML at line"),
        ("name: a\nname: b\n", "the field 'name' appears twice"),
        ("- just a list\n", "is not a study"),
        ("", "is not a study"),
        ("\x00\x01", "not valid YAML"),
    ],
)
def test_a_broken_study_file_is_refused_in_a_sentence(grid: Grid, text: str, expected: str):
    grid.study.write_text(text)
    refused = grid.call("plan", str(grid.study))
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert expected in refused.stderr


@pytest.mark.quick
def test_an_absent_study_file_is_refused_in_a_sentence(grid: Grid):
    refused = grid.call("all", str(grid.directory / "absent.yaml"))
    assert refused.returncode == 1
    assert re.fullmatch(r"There is no study file \S+absent\.yaml; .*\n", refused.stderr)


@pytest.mark.quick
def test_make_passes_the_exit_code_on(grid: Grid):
    done = subprocess.run(
        ["make", "-o", ".venv/.stamp", "plan", f"STUDY={grid.directory / 'absent.yaml'}"],
        cwd=tiny.Path(__file__).parents[2],
        env=grid.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
