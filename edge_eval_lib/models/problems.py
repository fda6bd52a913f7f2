"""What a study's models lack, said before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge_eval_lib import compressions
from edge_eval_lib.errors import UserError, nearest
from edge_eval_lib.models import weights
from edge_eval_lib.models.sources import of_model, weights_here
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import Model, Study, read_yaml
from edge_eval_lib.tensors import Tensor, read_config, read_tensors

HUB_PATIENCE_S = 10.0


def weight_problems(study: Study) -> list[str]:
    """List what the weights that lie here, and models' configurations, rule out in a study.

    Reads no values and imports no torch: milliseconds a model.

    Args:
        study: The study.

    Returns:
        A sentence for each reason why a variant cannot run.
    """
    problems = []
    for model in study.models:
        try:
            with of_model(model):
                directory = weights_here(model)
                config = model.config if directory is None else read_config(directory)
                tensors = {} if directory is None else read_tensors(directory)
                if directory is not None:
                    weights.require_vocabulary(directory)
        except UserError as error:
            first = next(v for v in study.variants() if v.model == model.name)
            why = str(error)
            problems.append(f"{first} cannot run: {why[0].lower()}{why[1:]}")
            continue
        problems += _problems_of(study, model, config or {}, tensors)
    return problems


def _problems_of(
    study: Study, model: Model, config: dict[str, Any], tensors: dict[str, Tensor]
) -> Iterator[str]:
    adapted = [v for v in study.variants() if v.model == model.name and v.method != "none"]
    context = (config.get("text_config") or config).get("max_position_embeddings")
    asked = study.training.max_tokens
    if adapted and isinstance(context, int) and asked > context:
        yield (
            f"{adapted[0]} cannot be adapted: training.max_tokens is {asked:,}, but the model's "
            f"context holds {context:,} tokens (max_position_embeddings); lower it."
        )
    if not tensors:
        return
    layers, wanted = weights.linear_layers(tensors), study.training.target_modules
    if wrong := weights.contradiction(tensors, model.parameters, model.nominal_gb):
        yield f"Model {model.name}: {wrong}."
    lacking = None if wanted == "all-linear" else weights.lacking_modules(layers, wanted)
    if adapted and lacking:
        yield f"{adapted[0]} cannot be adapted: {lacking}."
    int4 = next((v for v in adapted if compressions.storage(v.precision) == "int4"), None)
    if int4 is not None and (why := _not_int4(study, layers)):
        yield f"{int4} cannot be compressed: {why}; leave int4 out for this model."


def _not_int4(study: Study, layers: dict[str, tuple[int, int]]) -> str | None:
    """Why the engine's INT4 cannot be made of layers of these shapes; None if it can."""
    if study.workload.engine_kind.compressor == "llm-compressor":
        name = weights.ungrouped(layers)
        return name and (
            f"{name} has {layers[name][1]} inputs, which no group of {weights.GROUP_SIZE} divides"
        )
    share = weights.nf4_share(layers) if layers else 0.0
    if share <= weights.INT4_LARGEST_SHARE:
        return None
    return (
        f"its layers are so small that as NF4 they take {share:.2f} of their FP16 bytes, more than "
        f"{weights.INT4_LARGEST_SHARE}"
    )


def hub_problem(model: Model) -> str | None:
    """Say in a sentence why a hub model cannot be had; None if it can, or lies here already."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place, revision = model.location, model.revision
    if isinstance(try_to_load_from_cache(place, "config.json", revision=revision), str):
        return None
    where = f"Model {model.name}: the hub"
    known = read_yaml(project_root() / "params" / "shapes.yaml")

    def hint(otherwise: str) -> str:
        return otherwise if place in known else nearest(place, known, otherwise)

    try:
        HfApi().model_info(place, revision=revision, timeout=HUB_PATIENCE_S)
        if model.gated:
            HfApi().auth_check(place)
    except GatedRepoError:
        return f"{where} has not granted {place} to your HF_TOKEN; accept its licence there."
    except RevisionNotFoundError:
        return f"{where} has {place}, but no revision {revision} of it."
    except (RepositoryNotFoundError, ValueError):
        return f"{where} has no {place!r}; {hint('correct its location.')}"
    except Exception as error:  # of whichever HTTP library the hub's client is made with
        advice = hint("check the network, or take a -random model of params/models.yaml.")
        return f"{where} cannot be reached for {place!r} ({type(error).__name__}); {advice}"
    return None
