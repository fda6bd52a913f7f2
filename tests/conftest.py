"""Makes tests/tiny.py importable as `tiny` from every test, and keeps tests and studies apart."""

import os
import shutil
from pathlib import Path

import hypothesis
import pytest

from edge_eval_lib import scraps
from edge_eval_lib.study import Study

scraps.skip_uri_grammar()  # before a test imports nbformat
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin take cores from other tests

# Machines are shared: how long an example takes is not what a test is about.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process a core, and one more for slow tests, which wait for servers and schedulers."""
    cores = os.cpu_count() or 1
    return cores + 1 if config.option.markexpr == "slow" else cores


# The files that take longest first, so that no process is left alone with one at the end.
LONGEST = ("vllm", "notebooks", "failures", "experiments", "workshop_run", "by_hand", "slurm_jobs",
           "documented_run", "cascade_run", "harness_run", "chain", "imports", "synthesis", "input",
           "agents_run", "power_sweep_run", "families", "try_a_model", "whole_weights",
           "ablation_run", "broken_meter", "claims", "stages", "long_rows")  # fmt: skip


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out, of the slow tests alone, others' files without one: imports take seconds."""
    if config.option.markexpr != "slow" or collection_path.parent.name == "end_to_end":
        return None
    is_test = collection_path.name.startswith("test_")
    return True if is_test and "mark.slow" not in collection_path.read_text("utf-8") else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files for processes that take one after another."""
    order = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Leave end-to-end tests to `make test-all` unless they are marked quick."""
    if item.path.parent.name == "end_to_end" and not item.get_closest_marker("quick"):
        item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def _locks_of_the_tests_own(tmp_path_factory: pytest.TempPathFactory):
    """Device locks are one a user and machine: a study that runs here meanwhile would be waited
    for, and would wait. Whatever a test starts inherits this."""
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("locks"))
    yield
    if before is None:
        del os.environ["XDG_RUNTIME_DIR"]
    else:
        os.environ["XDG_RUNTIME_DIR"] = before


@pytest.fixture(scope="session")
def _finished_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from finished import everything, make, study_below, undone

    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        study = study_below(root, patch)
        for key in everything(study):
            make(study, key)
        assert undone(study) == {}
    return root


@pytest.fixture
def finished_study(_finished_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The tiny study with all of its runs done."""
    from finished import study_below

    study = study_below(tmp_path, monkeypatch)
    shutil.copytree(_finished_root / "outputs", tmp_path / "outputs")
    return study
