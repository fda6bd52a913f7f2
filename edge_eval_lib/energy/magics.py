"""`%%measure`: any notebook cell in a window of its own.

    %load_ext edge_eval_lib.energy.magics

    %%measure matmul
    a @ a

shows seconds, joules with their source and peak memory, and leaves the window in `measured`.
"""

from __future__ import annotations

import ast
from typing import Any

import pandas as pd
from IPython.core.magic import Magics, cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display

from edge_eval_lib.energy import Monitor, Window


@magics_class
class MeasureMagics(Magics):
    """Opens the energy sources at the first use and keeps them open."""

    _monitor: Monitor | None = None

    @magic_arguments()
    @argument("name", nargs="?", default="cell", help="what the window is called")
    @argument("-o", "--output", default="measured", help="the variable that gets the window")
    @argument(
        "-r",
        "--repeat",
        action="store_true",
        help="run the cell as often as the energy source needs to resolve it",
    )
    @cell_magic
    def measure(self, line: str, cell: str) -> None:
        """Measures a cell: seconds, joules with their source, peak memory."""
        wanted = parse_argstring(self.measure, line)
        if self._monitor is None:
            self._monitor = Monitor()
        run = self._compiled(cell)
        window, runs = self._monitor.window(wanted.name), 1
        try:
            if wanted.repeat:
                window, runs = self._monitor.repeat_until_resolved(wanted.name, run)
            else:
                with window:
                    run()
        finally:  # a cell that fails has still taken time and energy
            self.shell.user_ns[wanted.output] = window
            if window.seconds is not None:
                display(as_table(window, runs))

    def _compiled(self, cell: str) -> Any:
        """The cell as a function: runs in the notebook's namespace, shows its last expression."""
        shell = self.shell
        source = shell.transform_cell(cell)
        file_name = shell.compile.cache(source)
        parts = []
        for position, node in enumerate(nodes := ast.parse(source, file_name).body):
            if position == len(nodes) - 1 and isinstance(node, ast.Expr):
                parts.append(compile(ast.Interactive([node]), file_name, "single"))
            else:
                parts.append(compile(ast.Module([node], []), file_name, "exec"))

        def run() -> None:
            for part in parts:
                exec(part, shell.user_ns)

        return run


def as_table(window: Window, runs: int = 1) -> pd.DataFrame:
    """The window for a person: one row a figure; what is not known says why."""
    rows = {"seconds": f"{window.seconds:.4g}", "energy": window.energy_text}
    if runs > 1:
        rows["runs"] = f"{runs}: one took {window.seconds / runs:.4g} s"
        if window.energy_j is not None:
            rows["runs"] += f", {window.energy_j / runs:.4g} J"
    if window.cpu_s is not None:
        rows["CPU seconds"] = f"{window.cpu_s:.4g}"
    rows["memory"] = window.memory_text
    for check in window.checks:
        if check.verdict in ("warning", "invalid"):
            rows[f"{check.verdict}: {check.name}"] = check.detail
    return pd.DataFrame({window.name: rows})


def load_ipython_extension(shell: Any) -> None:
    """What `%load_ext edge_eval_lib.energy.magics` calls."""
    shell.register_magics(MeasureMagics)
