"""A study's adapters and weights: where they lie, whether they are whole, building them again."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from edge_eval_lib import apart, compressions, scraps
from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import place
from edge_eval_lib.errors import UserError
from edge_eval_lib.models import model_directory
from edge_eval_lib.models.weights import is_sound
from edge_eval_lib.study import Study, Variant, adapter_path, weights_path


def adapter_directory(study: Study, adapter: str) -> Path:
    """Return where the adapter called `family-size_task_method` lies."""
    return study.directory / adapter_path(adapter)


def weights_directory(study: Study, variant: Variant) -> Path:
    """Return where a variant's weights lie; for the unadapted base, its model directory."""
    if variant.method == "none":
        return model_directory(study.model(variant.model))
    return study.directory / weights_path(variant)


def weights_to_serve(study: Study, variant: Variant) -> Path:
    """Return `weights_directory`, every byte checked.

    Weights that were deleted to save disk, or are damaged, are built again first.
    """
    directory = weights_directory(study, variant)
    if damage := damage_of_weights(study, variant):
        print(f"The weights of {variant} are damaged ({damage}); they are built again.")
        shutil.rmtree(directory)
    sound = variant.method == "none" or is_sound(directory)
    return directory if sound else rebuilt(study, variant)


def damage_of_weights(study: Study, variant: Variant) -> str | None:
    """Say what is wrong with a variant's weights, every byte read; None also for none there."""
    at = place(study, "compress", variant.adapter)
    record = None if variant.method == "none" else completion.read(at)
    if record is None:
        return None
    return completion.damage_of(at, record, f"{weights_path(variant)}/", whole=True)


def rebuilt(study: Study, variant: Variant, target: Path | None = None) -> Path:
    """Build weights again, in their place or in `target`; returns where.

    In a process of its own, unmeasured: a cold load needs one without torch.
    """
    own = study.directory / "study.yaml"  # of a study on another model
    path = own if own.is_file() else study.path
    where = [] if target is None else ["--target", str(target)]
    otherwise = f"Building the weights of {variant} was stopped."
    apart.run_module(
        "edge_eval_lib", "rebuild", str(path), str(variant), *where, otherwise=otherwise
    )
    return target or weights_directory(study, variant)


def require_whole_adapter(study: Study, adapter: str) -> None:
    """Read every byte of an adapter; UserError if it is not as its run made it."""
    at = place(study, "adapt", adapter)
    completion.require_whole(at, f"{adapter_path(adapter)}/", f"The adapter {adapter}")


def rebuild_weights(study: Study, variant_name: str, target: Path | None = None) -> None:
    """Merge a variant's adapter into its base again, and compress the sum as its run did.

    The weights take their place among the study's artefacts, or go to `target`.
    """
    from edge_eval_lib.lifecycle import compress

    variant = {str(v): v for v in study.prepared_variants()}.get(variant_name)
    if variant is None:
        raise UserError(f"study {study.name} has no variant {variant_name!r}.")
    adapter = adapter_directory(study, variant.adapter)
    if not adapter.is_dir():
        raise UserError(
            f"The adapter {variant.adapter} is missing; "
            f"`make all STUDY={study.argument} RERUN=adapt`."
        )
    require_whole_adapter(study, variant.adapter)
    directory = target or weights_directory(study, variant)
    base = model_directory(study.model(variant.model))
    directory.parent.mkdir(parents=True, exist_ok=True)
    ran = place(study, "compress", variant.adapter).notebook
    recorded = scraps.read_scraps(ran) if ran.is_file() else {}
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        made = Path(scratch)
        for precision in compressions.path(variant.precision):
            target = directory if precision == variant.precision else made / precision
            if compressions.is_merged(precision):
                artefact = compress.merge(base, adapter, target)
            else:
                artefact = compress.step_of_study(
                    study,
                    variant.trained_as,
                    made,
                    precision,
                    target,
                    recorded.get(f"{precision}_quantization"),
                )
            compress.require_answers(artefact)
    compress.verify([artefact], base)
    if target is None:
        completion.note_rebuilt(study, variant.adapter, variant.weights)
