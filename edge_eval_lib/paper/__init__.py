"""The paper's analysis, redone from its published figures and taken further.

    from edge_eval_lib import paper
    study = paper.build()
    paper.write_figures(study=study, names=["pareto"])

Each table is a function of `Paper` in `TABLES`, each picture one in `FIGURES`: any can be rebuilt
alone. `prose` states the findings; `write_report` puts all of it on one page.
"""

from edge_eval_lib.paper import analysis, pictures, prose
from edge_eval_lib.paper.analysis import TABLES, Paper, build
from edge_eval_lib.paper.pictures import FIGURES, draw
from edge_eval_lib.paper.report import (
    CLAIM_COLUMNS,
    output_directory,
    show,
    write_figures,
    write_report,
    write_tables,
)

__all__ = [
    "CLAIM_COLUMNS",
    "FIGURES",
    "TABLES",
    "Paper",
    "analysis",
    "build",
    "draw",
    "output_directory",
    "pictures",
    "prose",
    "show",
    "write_figures",
    "write_report",
    "write_tables",
]
