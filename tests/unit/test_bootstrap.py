"""Set-up: what a machine lacks is told in one sentence, on old Pythons too."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from edge_eval_lib import bootstrap
from edge_eval_lib.paths import project_root


def test_old_pythons_can_read_it():
    source = Path(bootstrap.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 4))
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.JoinedStr, ast.AnnAssign))]


def test_it_needs_nothing_that_is_installed():
    tree = ast.parse(Path(bootstrap.__file__).read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    standard = {"ensurepip", "os", "platform", "re", "shutil", "subprocess", "sys", "venv"}
    assert imported <= standard
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


def test_an_old_python_is_refused():
    with pytest.raises(bootstrap.SetupError, match=r"Python 3\.10\.2 is too old: 3\.11 or newer"):
        bootstrap.check_python((3, 10, 2))
    bootstrap.check_python((3, 11, 0))


def test_too_little_disk_or_memory_is_refused():
    with pytest.raises(bootstrap.SetupError, match=r"1\.0 GB free; the environment needs 4 GB"):
        bootstrap.check_disk(1e9)
    with pytest.raises(bootstrap.SetupError, match=r"2\.0 GB of memory; 6 GB are needed"):
        bootstrap.check_memory(2e9)
    bootstrap.check_disk(5e9)
    bootstrap.check_memory(8e9)


def test_what_pip_says_becomes_one_sentence():
    offline = (
        "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError'\n"
        "ERROR: Could not find a version that satisfies the requirement torch==2.13.0\n"
        "ERROR: No matching distribution found for torch==2.13.0"
    )
    assert "package index cannot be reached" in bootstrap.explain(offline)
    assert "disk is full" in bootstrap.explain("OSError: [Errno 28] No space left on device")
    missing = "ERROR: No matching distribution found for torch==99"
    assert bootstrap.explain(missing).endswith("No matching distribution found for torch==99")
    assert "\n" not in bootstrap.explain(offline)


def test_constraints_pin_exactly_and_say_nothing_of_one_machine():
    lines = (project_root() / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", pin) for pin in pins)
    for package in ("torch", *bootstrap.MODEL_PACKAGES):
        assert bootstrap.pinned(package) in pins
