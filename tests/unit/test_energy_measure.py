"""The %%measure magic in a real IPython shell."""

from __future__ import annotations

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from edge_eval_lib.energy import Check, Measurement, Window


@pytest.fixture
def shell():
    made = InteractiveShell()
    made.run_line_magic("load_ext", "edge_eval_lib.energy.magics")
    yield made
    made.history_manager.end_session()


def run(shell, cell):
    with capture_output() as shown:
        result = shell.run_cell(cell)
    return result, "\n".join([shown.stdout, *map(str, shown.outputs)])


def test_a_cell_is_measured_and_its_names_stay(shell):
    result, shown = run(shell, "%%measure sum\ntotal = sum(range(200_000))\ntotal")
    assert result.success
    assert shell.user_ns["total"] == 19_999_900_000
    window = shell.user_ns["measured"]
    assert isinstance(window, Window)
    assert window.seconds > 0
    assert window.energy_source is not None or window.energy_reason
    assert "19999900000" in shown
    assert "sum" in shown
    assert f"{window.seconds:.3g} s" in shown
    assert window.energy_text in shown
    assert "seconds" in window._repr_html_()


def test_the_window_goes_where_it_is_asked_to(shell):
    run(shell, "%%measure -o mine\n1 + 1")
    assert shell.user_ns["mine"].name == "cell"
    assert "measured" not in shell.user_ns


def test_magics_within_the_cell_work(shell):
    result, _ = run(shell, "%%measure\n%time square = 3 ** 2")
    assert result.success
    assert shell.user_ns["square"] == 9


def test_a_cell_that_fails_is_measured_and_fails(shell):
    result, shown = run(shell, "%%measure broken\nbefore = 1\nraise KeyError('lost')")
    assert isinstance(result.error_in_exec, KeyError)
    assert shell.user_ns["before"] == 1
    assert shell.user_ns["measured"].seconds > 0
    assert "broken" in shown


def test_a_cell_that_is_no_python_fails_as_such(shell):
    result, _ = run(shell, "%%measure\nthis is no python")
    assert isinstance(result.error_in_exec, SyntaxError)


def test_a_short_cell_is_repeated(shell):
    run(shell, "count = 0")
    result, _ = run(shell, "%%measure -r\ncount += 1")
    assert result.success
    assert shell.user_ns["count"] >= 1
    assert shell.user_ns["measured"].seconds > 0


def test_the_table_tells_what_is_wrong():
    window = Measurement("work", seconds=2.0, energy_reason="the counter stood still", runs=4)
    window.checks = [Check("throttling", "invalid", "hardware slowdown"), Check("meter", "ok")]
    table = window.as_table()["work"]
    assert table["energy"] == "energy unknown (the counter stood still)"
    assert table["invalid: throttling"] == "hardware slowdown"
    assert table["runs"] == "4: one took 0.5 s"
    assert not any("meter" in row for row in table.index)
    shown = window._repr_html_()
    assert "energy unknown (the counter stood still)" in shown
    assert "hardware slowdown" in shown


def test_what_a_notebook_shows_is_escaped():
    window = Measurement("<b>", seconds=1.0, energy_reason="a < b")
    assert "<b>" not in window._repr_html_()
    assert "a &lt; b" in window._repr_html_()
