"""Compressions: what a study's word means, and what notebooks 01 and 02 show of them."""

from pathlib import Path
from typing import Any

import nbformat
import pytest

from edge_eval_lib import compressions
from edge_eval_lib.lifecycle import adapt
from edge_eval_lib.paths import project_root

KNOWN = "depthNN, distil, fp16, int4, int8, magnitudeNN, widthNN"


def cell(file_name: str, defines: str) -> dict[str, Any]:
    """The variables after the cell of a notebook that assigns to a name."""
    notebook = nbformat.read(project_root() / "notebooks" / file_name, as_version=4)
    code = [c.source for c in notebook.cells if c.cell_type == "code"]
    (source,) = (text for text in code if f"\n{defines} = " in text)
    variables: dict[str, Any] = dict.fromkeys(("rank", "alpha"), 4) | {"compute_dtype": "float32"}
    variables |= {"dropout": 0.0, "target_modules": ["q_proj"], "adapted_share": 1.0}
    variables |= {"adapt": adapt, "base": Path("base")}
    exec(source, variables)  # a cell of this project's own
    return variables


def plain(configuration: Any) -> dict[str, Any]:
    return configuration if isinstance(configuration, dict) else configuration.to_dict()


@pytest.mark.parametrize("compressor", ["bitsandbytes", "llm-compressor"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_notebook_02_shows_how_a_precision_is_made(compressor, precision):
    shown = cell("02_compress.ipynb", "configurations")["configurations"][compressor][precision]
    made = compressions.configuration(precision, compressor, "float32")
    assert plain(shown) == plain(made)


def test_notebook_01_shows_the_base_of_qlora():
    shown = cell("01_adapt.ipynb", "nf4")["nf4"]
    assert plain(shown) == plain(compressions.configuration("int4", "bitsandbytes", "float32"))


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("int4", None),
        ("int2", f"there is no compression 'int2'; there are {KNOWN}"),
        ("prune50-int4", f"there is no compression 'prune50'; there are {KNOWN}"),
        ("int4-int8", "'int4-int8' says twice how weights are stored: int4 and int8"),
    ],
)
def test_a_word_for_a_precision_is_checked(word, problem):
    assert compressions.problem(word) == problem
    if problem is None:
        assert compressions.storage(word) == word.split("-")[-1]
