"""`%%measure`: any notebook cell in a window of its own.

    %load_ext edge_eval_lib.energy.magics

    %%measure matmul
    a @ a

shows seconds, joules with their source and peak memory, and leaves the window in `measured`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display

from edge_eval_lib.energy import Monitor


@magics_class
class MeasureMagics(Magics):
    """Opens the energy sources at the first use and keeps them open."""

    shell: InteractiveShell
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
        """Measure a cell: seconds, joules with their source, peak memory."""
        options = parse_argstring(self.measure, line)
        self._monitor = self._monitor or Monitor()
        run = self._compiled(cell)
        window = self._monitor.window(options.name)
        try:
            if options.repeat:
                window, _ = self._monitor.repeat_until_resolved(options.name, run)
            else:
                with window:
                    run()
        finally:  # a cell that fails has still taken time and energy
            self.shell.user_ns[options.output] = window
            if window.seconds is not None:
                display(window)

    def _compiled(self, cell: str) -> Callable[[], None]:
        """Return the cell as a function: it runs in the notebook, and shows its last expression."""
        shell = self.shell
        source = shell.transform_cell(cell)
        file_name = shell.compile.cache(source)
        nodes = ast.parse(source, file_name).body
        shown = nodes[-1:] if nodes and isinstance(nodes[-1], ast.Expr) else []
        done = nodes[: len(nodes) - len(shown)]
        parts = [
            compile(ast.Module(done, []), file_name, "exec"),
            compile(ast.Interactive(shown), file_name, "single"),
        ]

        def run() -> None:
            for part in parts:
                exec(part, shell.user_ns)

        return run


def load_ipython_extension(shell: Any) -> None:
    """Register the magic: what `%load_ext edge_eval_lib.energy.magics` calls."""
    shell.register_magics(MeasureMagics)
