"""Models by name, by directory or by repository of the hub: what a study says of one.

    smollm2-135M                      a stanza of params/models.yaml
    /data/my-model, ./my-model        a directory of safetensors
    Qwen/Qwen2.5-0.5B-Instruct        a repository of the hub

Of a directory or a repository, everything follows from its name, its config.json, the headers of
its safetensors and its card. A repository's revision is pinned when it is first seen: what was
found is kept in outputs/models/seen/ and read from there afterwards.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson

from edge_eval_lib.errors import UserError, nearest, pick, shown
from edge_eval_lib.paths import outputs_root, project_root
from edge_eval_lib.study.yaml_file import read_mapping

PATIENCE_S = 10.0  # for the hub's first answer
BYTES_PER_WEIGHT = {"fp16": 2.0, "int8": 1.0, "int4": 0.5}
_REPOSITORY = re.compile(r"\w[\w.\-]*/\w[\w.\-]{0,90}", re.ASCII)
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", re.IGNORECASE)


def resolve_model(entry: Any, study_path: Path) -> Any:
    """Return the stanza (fields of `Model`, not checked yet) that an entry of `models` means.

    The entry is a stanza, a name, a directory or a repository; models.yaml and directories are
    looked for beside the study's file first. UserError if there is no such model.
    """
    origin = study_path
    if isinstance(entry, str):
        stanzas = _merged("models.yaml", study_path)
        directory = _directory(entry, study_path)
        if entry in stanzas:
            entry, origin = stanzas[entry]
        elif directory is not None:
            return stanza_of_directory(directory)
        elif _REPOSITORY.fullmatch(entry):
            at_hub = [
                stanza
                for stanza in stanzas.values()
                if isinstance(stanza[0], dict)
                and (stanza[0].get("source"), stanza[0].get("location")) == ("hub", entry)
            ]
            if not at_hub:
                return _stanza_of_repository(entry, study_path)
            entry, origin = at_hub[0]
        elif entry.startswith(("/", "./", "../", "~")):
            raise UserError(
                f"{study_path}: models names {shown(entry)}, which is not a directory with a "
                "config.json."
            )
        else:
            pick(stanzas, entry, "model", "models.yaml")
    if not isinstance(entry, dict) or not isinstance(entry.get("location"), str):
        return entry
    location = entry["location"]
    if entry.get("source") == "local":
        try:
            return entry | {"location": str((origin.parent / location).resolve())}
        except (OSError, RuntimeError):  # a circle of links: what reads it says so
            return entry
    if "config" not in entry:
        shapes = _merged("shapes.yaml", study_path)
        if entry.get("source") == "random":
            pick(shapes, location, "shape", "shapes.yaml")
        entry = entry | {"config": shapes.get(location, (None, None))[0]}
    return entry


def _merged(file_name: str, study_path: Path) -> dict[str, tuple[Any, Path]]:
    """Return what the file in params/ holds, replaced by what one beside the study does.

    By name: the content, and the file that it is from.
    """
    content: dict[str, tuple[Any, Path]] = {}
    for path in (project_root() / "params" / file_name, study_path.parent / file_name):
        if path.is_file():
            content |= {name: (value, path) for name, value in read_mapping(path).items()}
    return content


def _directory(entry: str, study_path: Path) -> Path | None:
    """Return the directory of a model that an entry means, beside the study or from here."""
    for base in (study_path.parent, Path.cwd(), project_root()):
        try:
            directory = (base / Path(entry).expanduser()).resolve()
            if (directory / "config.json").is_file():
                return directory
        except (OSError, RuntimeError):  # too long a name, a circle of links, an unknown ~user
            continue
    return None


def stanza_of_directory(directory: Path) -> dict[str, Any]:
    """Return what a directory's config.json, safetensors and card say of a model.

    Raises:
        UserError: For weights that are missing, damaged, of another format or quantised.
    """
    from edge_eval_lib import tensors

    config = tensors.read_config(directory)
    if "quantization_config" in config:
        raise UserError(f"{directory} is quantised already; give the unquantised weights.")
    parameters = sum(tensor.elements for tensor in tensors.read_tensors(directory).values())
    stanza = _stanza(directory.name, config, parameters)
    return stanza | {
        "source": "local",
        "location": str(directory),
        "revision": "none",
        "licence": _licence(directory / "README.md"),
    }


def _stanza(name: str, config: dict[str, Any], parameters: int) -> dict[str, Any]:
    """Return what follows from a model's name, its config.json and how many parameters it has."""
    if not isinstance(config.get("model_type"), str):
        raise UserError(
            f"The config.json of {name} names no model_type: it is not a language model."
        )
    size = _SIZE.search(name)
    words = name if size is None else f"{name[: size.start()]}-{name[size.end() :]}"
    family = re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-.")
    if not re.search("[a-z]", family) or re.fullmatch(r"[0-9a-f]{40}", name):  # a hub's snapshot
        family = config["model_type"].lower().replace("_", "-")
    return {
        "family": family[:64],
        "size": size_in_words(parameters) if size is None else f"{size[1]}{size[2].upper()}",
        "parameters": parameters,
        "nominal_gb": {
            p: parameters * weight_bytes / 1e9 for p, weight_bytes in BYTES_PER_WEIGHT.items()
        },
        "config": config,
    }


def size_in_words(parameters: int) -> str:
    """Return a model's size in two digits, as model cards say it."""
    number, unit = (parameters / 1e9, "B") if parameters >= 1e9 else (parameters / 1e6, "M")
    return f"{number:.0f}{unit}" if number >= 10 else f"{number:.2g}{unit}"


def _licence(card: Path) -> str:
    """Return the licence that a model card's first lines name; `unknown` if they name none."""
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "unknown"
    heading = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    licence = heading and re.search(r"^license: *['\"]?([\w.\- ]+)", heading[1], re.MULTILINE)
    return licence[1].strip() if licence else "unknown"


def _stanza_of_repository(repository: str, study_path: Path) -> dict[str, Any]:
    """Return what the hub says of a repository; the same ever after the first time."""
    pinned = outputs_root() / "models" / "seen" / f"{repository.replace('/', '--')}.json"
    if pinned.is_file():
        return orjson.loads(pinned.read_bytes())
    stanza = _from_cache(repository) or _from_hub(repository, study_path)
    stanza |= {"source": "hub", "location": repository}
    pinned.parent.mkdir(parents=True, exist_ok=True)
    temporary = pinned.with_suffix(".part")
    temporary.write_bytes(orjson.dumps(stanza, option=orjson.OPT_INDENT_2))
    temporary.rename(pinned)
    return stanza


def _from_cache(repository: str) -> dict[str, Any] | None:
    """Return the stanza of what lies whole in the hub's cache; None if it does not."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json")
    if not isinstance(config, str):
        return None
    try:
        stanza = stanza_of_directory(Path(config).parent)
    except UserError:  # not all of it
        return None
    named = _stanza(repository.split("/")[1], stanza["config"], stanza["parameters"])
    return stanza | named | {"revision": Path(config).parent.name, "gated": False}


def _from_hub(repository: str, study_path: Path) -> dict[str, Any]:
    from huggingface_hub import HfApi, get_safetensors_metadata, hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        NotASafetensorsRepoError,
        RepositoryNotFoundError,
    )

    try:
        info = HfApi().model_info(repository, timeout=PATIENCE_S)
        config = orjson.loads(
            Path(hf_hub_download(repository, "config.json", revision=info.sha)).read_bytes()
        )
        counts = get_safetensors_metadata(repository, revision=info.sha).parameter_count
    except GatedRepoError as error:
        raise UserError(
            f"{repository} is gated; accept its licence on the hub and set the environment "
            "variable HF_TOKEN."
        ) from error
    except NotASafetensorsRepoError as error:
        raise UserError(f"{repository} holds no safetensors, which are needed.") from error
    except RepositoryNotFoundError as error:
        known = [
            stanza.get("location") for stanza, _ in _merged("models.yaml", study_path).values()
        ]
        raise UserError(
            f"The hub has no model {repository!r}; {nearest(repository, known)}"
        ) from error
    except Exception as error:  # of whichever HTTP library the hub's client is made with
        raise UserError(
            f"The model {repository} lies in no cache here, and the hub cannot be asked for it "
            f"({type(error).__name__}); check the network, or give a directory."
        ) from error
    card = info.card_data
    return _stanza(repository.split("/")[1], config, sum(counts.values())) | {
        "revision": info.sha,
        "licence": (card and card.get("license")) or "unknown",
        "gated": bool(info.gated),
    }
