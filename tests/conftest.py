"""Makes tests/tiny.py importable as `tiny` from every test, and keeps tests and studies apart."""

import os

import hypothesis
import pytest

from edge_eval_lib import scraps

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
LONGEST = ("vllm", "workshop_run", "notebooks", "by_hand", "experiments", "cascade_run",
           "agents_run", "documented_run", "new_compression", "try_a_model", "failures",
           "power_sweep_run", "slurm_jobs", "chain", "harness_run", "input", "stages", "imports",
           "ablation_run", "long_rows")  # fmt: skip


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
