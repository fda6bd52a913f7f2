"""The commands: `python -m edge_eval_lib --help`. The Makefile is a short front to them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
except ImportError:  # another Python than the project's
    sys.exit(
        f"{sys.executable} has not what edge_eval_lib needs; say "
        ".venv/bin/python -m edge_eval_lib (make setup makes .venv)."
    )

from edge_eval_lib import redaction
from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import outputs_root, project_root

if TYPE_CHECKING:
    from edge_eval_lib.study import Study

# Every command imports what it needs when it runs: planning must not wait for papermill.
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Is this language model worth running on your own hardware? Measured, stage by stage.",
)
StudyName = Annotated[str, typer.Argument(help="a name in params/, or the path of a YAML file")]


def _repetitions(text: str) -> int | None:
    """The number that a person gave; UserError, rather than typer's usage, for anything else."""
    from edge_eval_lib.study import MOST_REPETITIONS

    if text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MOST_REPETITIONS:
        return int(text)
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    raise UserError(
        f"repetitions is {shown!r}, but it must be a whole number from 1 to {MOST_REPETITIONS}."
    )


Repetitions = Annotated[
    int | None,
    typer.Option(
        parser=_repetitions,
        metavar="NUMBER",
        help="serving repetitions, instead of the study's own",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="another model: a name of models.yaml, a directory, a repository of the hub"),
]


def _opened(study: str, repetitions: int | None = None, model: str | None = None) -> Study:
    """Return the study, or it on another model, with the repetitions that its outputs have."""
    from edge_eval_lib.runs.claims import open_study
    from edge_eval_lib.study import study_on

    return open_study(str(study_on(study, model)) if model else study, repetitions)


@app.command("all")
def all_(
    study: StudyName = "embedded",
    repetitions: Repetitions = None,
    rerun: Annotated[str | None, typer.Option(help="make a stage's runs again, or all")] = None,
    keep: Annotated[
        str | None, typer.Option(help="keep a stage's runs although its notebook's code changed")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="a directory in profiles/")] = None,
    model: Model = None,
) -> None:
    """Make what is missing or outdated, then tables and report."""
    from edge_eval_lib.runs import scheduler

    scheduler.make_all(_opened(study, repetitions, model), repetitions, rerun, profile, keep)


@app.command()
def plan(
    study: StudyName = "embedded", repetitions: Repetitions = None, model: Model = None
) -> None:
    """Print the grid, what the rest takes, and what is lacking."""
    from edge_eval_lib.runs import plan

    print(plan.describe(_opened(study, repetitions, model)))


@app.command()
def status(
    study: StudyName = "embedded", repetitions: Repetitions = None, model: Model = None
) -> None:
    """Print what is done, running, failed or waiting, and why."""
    from edge_eval_lib.runs.status import status

    print(status(_opened(study, repetitions, model)))


@app.command()
def report(
    study: StudyName = "embedded", repetitions: Repetitions = None, model: Model = None
) -> None:
    """Write tables, figures and report of the runs there are."""
    from edge_eval_lib.runs import scheduler

    scheduler.make_report(_opened(study, repetitions, model))


@app.command()
def paper() -> None:
    """Write the report on the published study's figures."""
    from edge_eval_lib.runs import scheduler

    scheduler.make_paper()


@app.command()
def advise(
    study: Annotated[
        str, typer.Argument(help="a study that was run, or `published` for the T4 figures")
    ] = "embedded",
    requests_per_day: Annotated[str | None, typer.Option(help="VALUE or LEAST:VALUE:MOST")] = None,
    input_tokens: Annotated[str | None, typer.Option(help="of a request, likewise")] = None,
    output_tokens: Annotated[str | None, typer.Option(help="of an answer, likewise")] = None,
    input: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="another input of params/advice.yaml or a price"),
    ] = None,
    task: Annotated[str | None, typer.Option(help="whose variants; the study's first")] = None,
    ttft_ms: Annotated[float | None, typer.Option(help="longest wait for the first token")] = None,
    tpot_ms: Annotated[float | None, typer.Option(help="longest time per token")] = None,
    score: Annotated[float | None, typer.Option(help="least score, 0 to 1")] = None,
    budget_usd_per_month: Annotated[float | None, typer.Option(help="most money")] = None,
    machines: Annotated[float | None, typer.Option(help="most machines")] = None,
    at_hand: Annotated[bool, typer.Option("--at-hand", help="machines are there already")] = False,
    objective: Annotated[str, typer.Option(help="cost, energy, carbon or latency")] = "cost",
    arrivals: Annotated[
        str, typer.Option(help="how requests come: steady, random (Poisson) or bursty")
    ] = "random",
    deployment: Annotated[
        list[str] | None, typer.Option(help="on premises, cloud, serverless or API; several times")
    ] = None,
    region: Annotated[str | None, typer.Option(help="whose electricity, for the carbon")] = None,
    prices: Annotated[str | None, typer.Option(help="a set of params/prices.yaml")] = None,
    hardware: Annotated[
        str | None, typer.Option(help="other hardware, of params/hardware.yaml: predicted")
    ] = None,
    model: Model = None,
) -> None:
    """Choose what to serve, and where, for a load and needs."""
    from edge_eval_lib.runs import scheduler
    from edge_eval_lib.study import PUBLISHED

    inputs: dict[str, str | None] = dict(_pair(text) for text in input or [])
    inputs |= {
        "requests_per_day": requests_per_day,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
    }
    need = {
        "ttft_ms": ttft_ms,
        "tpot_ms": tpot_ms,
        "score": score,
        "budget_usd_per_month": budget_usd_per_month,
        "machines": machines,
        "at_hand": at_hand,
        "objective": objective,
        "arrivals": arrivals,
    }
    parameters = {
        "task": task,
        "inputs": {name: value for name, value in inputs.items() if value is not None},
        "need": {name: value for name, value in need.items() if value is not None},
        "deployments": deployment,
        "region": region,
        "prices": prices,
        "hardware": hardware,
    }
    scheduler.make_advice(None if study == PUBLISHED else _opened(study, model=model), parameters)


def _pair(text: str) -> tuple[str, str]:
    """Split NAME=VALUE; UserError for anything else."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"input is {text[:40]!r}, but it must be NAME=VALUE.")
    return name.replace("-", "_"), value


@app.command()
def run(
    study: StudyName,
    stage: str,
    name: str,
    repetitions: Repetitions = None,
    gpus: Annotated[int | None, typer.Option(help="how many GPUs it needs, where known")] = None,
) -> None:
    """Execute one run, although it may be done, and publish it."""
    from edge_eval_lib.runs import runner
    from edge_eval_lib.runs.process import die_with_parent
    from edge_eval_lib.study import load_study

    die_with_parent(signal.SIGTERM)  # Snakemake may be killed
    runner.run_one(load_study(study, repetitions), stage, name, gpus)


@app.command()
def pack(study: StudyName, target: Annotated[Path, typer.Argument(help="the zip file")]) -> None:
    """Put a study's outputs, not its weights, in a zip file."""
    from edge_eval_lib.runs import archive

    print(archive.pack(_opened(study), target))


@app.command()
def unpack(
    study: StudyName,
    source: Annotated[Path, typer.Argument(help="the zip file, or where it was unpacked")],
) -> None:
    """Take over outputs that `pack` put in a zip file."""
    from edge_eval_lib.runs import archive

    print(f"{archive.unpack(_opened(study), source)} finished runs are here again.")


@app.command()
def rebuild(
    study: StudyName,
    variant: str,
    target: Annotated[
        Path | None, typer.Option(help="where to, instead of the study's artefacts")
    ] = None,
) -> None:
    """Build a variant's weights again from its adapter."""
    from edge_eval_lib.runs.weights import rebuild_weights

    rebuild_weights(_opened(study), variant, target)


@app.command()
def results(
    study: StudyName, target: Annotated[Path, typer.Argument(help="the JSON file")]
) -> None:
    """Put a study's figures and settings in a results file."""
    from edge_eval_lib.results import exchange as results_file

    print(results_file.write(results_file.make(_opened(study)), target))


@app.command()
def export(
    study: StudyName = "embedded",
    to: Annotated[str, typer.Option(help="lm-eval, model-card or report")] = "model-card",
    region: Annotated[
        str | None, typer.Option(help="whose electricity, for a model card's carbon")
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="a directory, instead of export/ in the study's outputs")
    ] = None,
    model: Model = None,
) -> None:
    """Write a study's figures in the format of another tool."""
    from edge_eval_lib.results import exports

    print(*exports.export(_opened(study, model=model), to, region, target), sep="\n")


@app.command()
def compare(
    a: Annotated[
        str, typer.Argument(help="a study that was run, its outputs, a results file or `published`")
    ] = "",
    b: Annotated[str, typer.Argument(help="likewise: it is divided by A")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="list also what one of them alone has")
    ] = False,
    target: Annotated[
        Path | None, typer.Option(help="where table and figure go, outputs/comparison by default")
    ] = None,
) -> None:
    """Put two results side by side, by ratios with intervals."""
    from edge_eval_lib.results import comparison

    print(comparison.compare(a, b, target or outputs_root() / "comparison", everything))


@app.command("device-report")
def device_report(
    studies: Annotated[list[str], typer.Argument(help="studies that were run on this machine")],
) -> None:
    """Write what this machine's device measured to docs/."""
    from edge_eval_lib.results import device_report

    opened, root = [_opened(study) for study in studies], project_root()
    print(device_report.write(opened, root / "docs", root / "params" / "measured"))


@app.command()
def example(
    study: StudyName = "embedded",
    target: Annotated[
        Path | None, typer.Option(help="the page, docs/example-report.html by default")
    ] = None,
) -> None:
    """Write a study's report as one small page without script."""
    from edge_eval_lib.results.static import static_edition

    page = target or project_root() / "docs" / "example-report.html"
    print(static_edition(_opened(study).directory / "report.html", page))


@app.command()
def docs(
    target: Annotated[Path | None, typer.Option(help="where to, instead of docs/")] = None,
) -> None:
    """Write docs/study.md and docs/tables.md from the code."""
    from edge_eval_lib.results import reference

    print(*reference.write(target or project_root() / "docs"), sep="\n")


@app.command()
def workshop() -> None:
    """Run the workshop's notebooks, and copy them for students."""
    from edge_eval_lib.workshop import run

    run.run()


@app.command()
def clean(study: StudyName = "embedded", model: Model = None) -> None:
    """Delete what a study's runs made."""
    from edge_eval_lib.runs.claims import remove_outputs

    print(remove_outputs(_opened(study, model=model)))


class Interrupted(BaseException):
    """Ctrl-C, or the end of what started us; not an Exception, so that nothing swallows it."""


def _interrupt(_signal_number: int, _frame: Any) -> None:
    raise Interrupted


def _make() -> int | None:
    """The process id of the make that started this process, if one did (Linux)."""
    try:
        parent = os.getppid()
        with open(f"/proc/{parent}/comm", encoding="utf-8") as file:
            return parent if file.read().strip() in ("make", "gmake") else None
    except OSError:
        return None


def main() -> None:
    """Run a command; a person's mistake is answered in one sentence, without a traceback."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # in the background: by make, too
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    make = _make()
    if make is not None:  # end with it, even if it is killed
        from edge_eval_lib.runs.process import die_with_parent

        die_with_parent(signal.SIGTERM)
    for stream in (sys.stdout, sys.stderr):
        redaction.redact_stream(stream)
    try:
        sys.exit(app(standalone_mode=False))
    except UserError as error:
        sys.exit(str(error))
    except Interrupted:
        print("Stopped. Finished runs are kept; make all goes on from here.", file=sys.stderr)
        if make is None or ignored or os.getppid() != make:
            sys.exit(130)
        os.kill(make, signal.SIGINT)  # ends make without a line of its own about our exit code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"{where}{error.strerror or error}.")
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own, of a command that there is not
            raise
        if not sys.argv[1:]:
            sys.exit(error.format_message())  # the help
        print(f"{error.format_message()} (--help says more.)", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
