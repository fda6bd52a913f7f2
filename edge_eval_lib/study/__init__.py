"""What is run: params/*.yaml -> Study, its variants, and the runs that measure them.

    study = load_study("embedded")
    study.variants(), study.runs()

Pure code: it imports neither torch nor a notebook, so that planning starts at once.
"""

from edge_eval_lib.study.files import (
    find_beside,
    find_study,
    load_study,
    study_on,
    trial,
    write_study,
)
from edge_eval_lib.study.grid import (
    EXPERIMENT,
    MEASURED_ALONE,
    NOTEBOOKS,
    PUBLISHED,
    STAGES,
    Run,
    Variant,
    adapter_path,
    hash_of,
    weights_path,
)
from edge_eval_lib.study.refusal import validate
from edge_eval_lib.study.schema import Study
from edge_eval_lib.study.sections import (
    MOST_REPETITIONS,
    Line,
    Method,
    Model,
    PowerSweep,
    Precision,
    Strict,
    Task,
    Text,
    Training,
    Workload,
)
from edge_eval_lib.study.yaml_file import read_yaml

__all__ = [
    "EXPERIMENT",
    "MEASURED_ALONE",
    "MOST_REPETITIONS",
    "NOTEBOOKS",
    "PUBLISHED",
    "STAGES",
    "Line",
    "Method",
    "Model",
    "PowerSweep",
    "Precision",
    "Run",
    "Strict",
    "Study",
    "Task",
    "Text",
    "Training",
    "Variant",
    "Workload",
    "adapter_path",
    "find_beside",
    "find_study",
    "hash_of",
    "load_study",
    "read_yaml",
    "study_on",
    "trial",
    "validate",
    "weights_path",
    "write_study",
]
