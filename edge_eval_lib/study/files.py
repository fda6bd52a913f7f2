"""Finding and reading a study: by its name in params/, by path, or on another model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from edge_eval_lib.errors import UserError, nearest, pick, shown
from edge_eval_lib.paths import outputs_root, project_root
from edge_eval_lib.study.refusal import validate
from edge_eval_lib.study.schema import Study
from edge_eval_lib.study.sections import Model
from edge_eval_lib.study.stanzas import resolve_model
from edge_eval_lib.study.yaml_file import CONTROL, read_mapping, read_yaml

THIS_MACHINE = "this-machine"  # hardware that is found out and not declared


def load_study(path_or_name: str | Path, repetitions: int | None = None) -> Study:
    """Read and check a study.

    Args:
        path_or_name: A file name in params/ without its ending (`embedded`), or the path of a
            YAML file. Its models are stanzas, names in a `models.yaml` beside it or in params/,
            directories of safetensors, or repositories of the hub.
        repetitions: Serving repetitions, instead of the file's.

    Raises:
        UserError: In one sentence naming the field, for anything wrong.
    """
    path = find_study(path_or_name)
    content = _content(path)
    if repetitions is not None:
        content["repetitions"] = repetitions
    study = validate(Study, content, path)
    study._path = path
    prices = find_beside(path, "prices.yaml")
    pick(_section(prices, "sets"), study.prices, "set of prices", str(prices))
    hardware = project_root() / "params" / "hardware.yaml"
    declared = [*_section(hardware, "devices"), THIS_MACHINE]
    pick(dict.fromkeys(declared), study.hardware, "hardware", "params/hardware.yaml")
    return study


def _content(path: Path) -> dict[str, Any]:
    """Return what a study file holds, its models as stanzas."""
    content = read_yaml(path)
    if not isinstance(content, dict) or "configurations" not in content:
        raise UserError(f"{path} is not a study: it has no field 'configurations'.")
    if isinstance(content.get("models"), list):
        content["models"] = [resolve_model(entry, path) for entry in content["models"]]
    return content


def _section(path: Path, field: str) -> dict[str, Any]:
    """Return what stands in a section of a file, by name; its own reader checks the values."""
    section = read_mapping(path).get(field)
    if not isinstance(section, dict):
        raise UserError(f"{path}: the field {field!r} is {shown(section)}; it holds what by name.")
    return section


def study_on(path_or_name: str | Path, model: str) -> Path:
    """Write a study on another model to outputs/STUDY-MODEL/study.yaml, for `load_study`.

    The model is a name in models.yaml, a directory, or a repository of the hub. UserError if there
    is none, or if the file is that of another study or model.
    """
    origin = find_study(path_or_name)
    here = Path(model).expanduser()
    stanza = resolve_model(str(here.resolve()) if here.is_dir() else model, origin)
    content = read_yaml(origin)
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        load_study(origin)  # which says what is wrong with it
    model_name = f"{stanza['family']}-{stanza['size']}"
    content["description"] = _on(content["name"], model_name)
    content["name"] = f"{content['name']}-{model_name}"
    content["models"] = [{field: value for field, value in stanza.items() if value is not None}]
    target = outputs_root() / content["name"] / "study.yaml"
    heading = f"# {origin} on {stanza['location']}; written by MODEL=, read it or copy it.\n"
    if target.is_file() and not target.read_text(encoding="utf-8").startswith(heading):
        raise UserError(f"{target} is a study of another model or from another file; remove it.")
    _write(content, target, heading, origin)
    return target


def _on(study: str, model: str) -> str:
    """Describe a study on another model: its own description may name its model."""
    return f"The study {study} on the model {model}."


def write_study(study: Study, target: Path, what: str) -> None:
    """Write a study that may have no file of its own; `what` is said of it in a comment."""
    _write(study.model_dump(exclude_none=True), target, f"# {what}\n", study.path)


def _write(content: dict[str, Any], target: Path, heading: str, origin: Path) -> None:
    """Write a study's content, with the prices that lie beside the study it is made from."""
    harness = content.get("harness")
    if isinstance(harness, dict) and "task_directory" in harness:
        harness["task_directory"] = str((origin.parent / harness["task_directory"]).resolve())
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8") as file:
        file.write(heading)
        YAML().dump(content, file)
    prices = origin.parent / "prices.yaml"
    if prices.is_file() and origin.parent not in (target.parent, project_root() / "params"):
        shutil.copy(prices, target.parent)


def trial(
    study: Study, model: str, task: str, method: str, precision: str | None = None
) -> tuple[Study, Model]:
    """Return a study of one model, task and method in memory, and its model: a run by hand.

    The model is one of the study, a name in models.yaml, a directory, or a repository of the hub;
    with one that the study does not have it is called STUDY-MODEL, as `study_on` calls it. It
    serves at `precision`, by default at those of the study for that method. UserError for anything
    that there is not.
    """
    known = {stanza.name: stanza for stanza in study.models}
    name, description = study.name, study.description
    if model in known:
        chosen = known[model]
    else:
        chosen = validate(Model, resolve_model(model, study.path), study.path)
        if chosen not in study.models:
            name, description = f"{study.name}-{chosen.name}", _on(study.name, chosen.name)
    precisions = [c.precision for c in study.configurations if c.method == method]
    if precision is not None:
        precisions = [precision]
    precisions = precisions or list(dict.fromkeys(c.precision for c in study.configurations))
    tried = study.changed(
        name=name,
        description=description,
        models=[chosen.model_dump()],
        tasks=[task],
        configurations=[{"method": method, "precision": p} for p in precisions],
        ablation=None,
        power_sweep=None,
    )
    return tried, tried.models[0]


def find_study(path_or_name: str | Path) -> Path:
    """Return the file that a path or a name in params/ means; UserError if there is none."""
    text = str(path_or_name)
    if len(os.fsencode(text)) > 4000 or CONTROL.search(text) or "\n" in text:
        raise UserError(
            f"The study {shown(text)} can be no file: it is too long, or holds line breaks or "
            "control characters; give a YAML file or a name in params/."
        )
    try:
        if text.endswith((".yaml", ".yml")) or "/" in text:
            path = Path(text).expanduser().resolve()
            if path.is_file():
                return path
            raise UserError(
                f"There is no study file {path}; give a YAML file or a name in params/."
            )
        folder = project_root() / "params"
        path = folder / f"{text}.yaml"
        if path.is_file():
            return path
    except (OSError, RuntimeError) as error:  # too long a name, an unknown ~user, a closed folder
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"The study file {shown(text)} cannot be found: {why}; give a YAML file or a name in "
            "params/."
        ) from error
    studies = sorted(p.stem for p in folder.glob("*.yaml") if "configurations:" in p.read_text())
    raise UserError(f"There is no study {shown(text)} in params/; {nearest(text, studies)}")


def find_beside(study_path: Path, file_name: str) -> Path:
    """Return `file_name` beside the study file if it is there, else the one in params/."""
    beside = study_path.parent / file_name
    return beside if beside.is_file() else project_root() / "params" / file_name
