"""The code cells of a notebook in this process, without a kernel."""

import ast
import json

from nbformat import v4

from edge_eval_lib.paths import project_root


def run_cells(notebook, parameters, added=(), shown=None):
    """Execute a notebook's cells; the namespace they leave.

    `parameters` stands for its parameters cell, `added` are codes after its last cell. The cells
    with what they show are put in the list `shown`.
    """
    content = json.loads((project_root() / "notebooks" / notebook).read_text(encoding="utf-8"))
    added = [{"cell_type": "code", "metadata": {}, "source": [code]} for code in added]
    namespace = {}
    for cell in [*content["cells"], *added]:
        code, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
        if cell["cell_type"] == "markdown":
            executed = v4.new_markdown_cell(code, metadata={"tags": tags})
        else:
            executed = v4.new_code_cell(code, metadata={"tags": tags})
            value = _execute(parameters if "parameters" in tags else code, namespace)
            executed.outputs = _outputs(value)
        if shown is not None:
            shown.append(executed)
    return namespace


def _execute(code, namespace):
    """Run a cell; the value of its last line, if that is an expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    if last is not None:
        return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
    return None


def _outputs(value):
    data = value._repr_mimebundle_() if hasattr(value, "_repr_mimebundle_") else {}
    if hasattr(value, "_repr_markdown_"):
        data["text/markdown"] = value._repr_markdown_()
    return [v4.new_output("display_data", data)] if data else []


def run_cell(notebook, cell_id, namespace):
    """Execute one cell of a notebook in a namespace; what it shows."""
    content = json.loads((project_root() / "notebooks" / notebook).read_text(encoding="utf-8"))
    (code,) = ["".join(c["source"]) for c in content["cells"] if c["id"] == cell_id]
    return _execute(code, namespace)
