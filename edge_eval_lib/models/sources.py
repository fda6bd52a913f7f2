"""Where a model's weights come from: a package, a directory, the hub, or a random draw.

Weights are read from safetensors only, and no code that comes with a model is ever executed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_eval_lib.errors import UserError
from edge_eval_lib.models import gguf, weights
from edge_eval_lib.models.load import require_whole
from edge_eval_lib.models.random_weights import write_random_model
from edge_eval_lib.paths import outputs_root
from edge_eval_lib.study import Model

HUB_FILES = ("*.safetensors", "*.json", "tokenizer*", "*.model", "merges.txt", "vocab*", "*.jinja")


def model_directory(model: Model) -> Path:
    """A local directory with the model's safetensors, configuration and tokenizer.

    Source `package` is converted once from the GGUF file that an installed package carries (FP16
    of its dequantised weights); `hub` is downloaded at its revision, with the token from HF_TOKEN
    if one is needed; `local` is used as it is; `random` is made once from its config. What was made
    here and is damaged is made again. Raises UserError if it is not there, or if its weights are
    not whole (`require_whole`).
    """
    with of_model(model):
        directory = {
            "package": _from_package,
            "local": _from_local,
            "hub": _from_hub,
            "random": _from_config,
        }[model.source](model)
        require_whole(directory)
    return directory


@contextmanager
def of_model(model: Model) -> Iterator[None]:
    """Says of a UserError in the body which model it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"Model {model.name}: {error}") from error


def weights_here(model: Model) -> Path | None:
    """Where a model's weights lie already, without downloading, converting or making anything.

    Raises UserError for a local directory or a package that lacks what is needed.
    """
    if model.source == "local":
        return _from_local(model)
    if model.source == "hub":
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model.location, "config.json", revision=model.revision)
        directory = Path(cached).parent if isinstance(cached, str) else None
    elif model.source == "package":
        directory = _converted(model)
        if not directory.is_dir():
            package_file(model)
    else:
        directory = None
    # What lies in a cache or was made here and is damaged is fetched or made again.
    return directory if directory is not None and weights.is_readable(directory) else None


def _from_local(model: Model) -> Path:
    directory = Path(model.location)
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} must hold config.json, a tokenizer and *.safetensors.")
    return directory


def _from_hub(model: Model) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if model.gated and not os.environ.get("HF_TOKEN"):
        raise UserError(
            f"{model.location} is gated; accept its licence on the hub and set "
            "the environment variable HF_TOKEN."
        )
    try:
        path = snapshot_download(
            model.location, revision=model.revision, allow_patterns=list(HUB_FILES)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{model.location} at revision {model.revision} cannot be had from "
            f"the hub ({type(error).__name__}); check the name, the revision and the network."
        ) from error
    return Path(path)


def _from_package(model: Model) -> Path:
    target = _converted(model)
    if weights.is_sound(target):
        return target
    gguf.convert_apart(package_file(model), target)
    return target


def _converted(model: Model) -> Path:
    return outputs_root() / "models" / f"{model.name}-{model.revision}"


def package_file(model: Model) -> Path:
    """The GGUF file of a model that an installed package carries; UserError if it is not there."""
    package, _, file_name = model.location.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package!r} is not installed; run make setup.")
    file = Path(next(iter(spec.submodule_search_locations))) / file_name
    if not file.is_file():
        raise UserError(f"the package {package!r} has no file {file_name!r}.")
    return file


def _from_config(model: Model) -> Path:
    identity = hashlib.sha256(json.dumps(model.config, sort_keys=True).encode()).hexdigest()[:8]
    target = outputs_root() / "models" / f"{model.name}-random-{identity}"
    if not weights.is_sound(target):
        import torch

        try:
            write_random_model(model.config or {}, target)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # as in _load
            raise UserError(f"transformers makes no model of its config ({error}).") from error
    return target
