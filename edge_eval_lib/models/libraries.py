"""Imports what a stage uses, all of it, so that no import falls in the windows that follow.

transformers and peft import most of their modules when they are first used, some only once the
kind of model is known. Naming the classes that a stage uses imports them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

from edge_eval_lib.models.load import quieten


@contextlib.contextmanager
def leanly() -> Iterator[None]:
    """Import without what takes time and serves nothing here.

    The garbage collector would search what is imported again and again: a fifth of the time. As
    vLLM does once it has started, what is there at the end is left out of later searches.
    transformers takes scikit-learn, where it is installed (here for scores), for assisted decoding
    and metrics of its own: a sixth, which a server would not have.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        from transformers import utils

        has_sklearn, utils.is_sklearn_available = utils.is_sklearn_available, lambda: False
        try:
            yield
        finally:
            utils.is_sklearn_available = has_sklearn
    finally:
        gc.freeze()
        if collected:
            gc.enable()


@leanly()
def import_for_inference(directory: Path) -> None:
    """Import what loading and running the model in `directory` takes."""
    quieten()
    import accelerate  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig  # noqa: F401
    from transformers.models.auto import MODEL_FOR_CAUSAL_LM_MAPPING, tokenization_auto

    _import_parts("encodings.unicode_escape")
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:  # else loading will say what is wrong
        MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    named = tokenization_auto.get_tokenizer_config(directory).get("tokenizer_class")
    if named:
        tokenization_auto.tokenizer_class_from_name(named)
    if hasattr(config, "quantization_config"):  # a server of FP16 weights has no use for it
        _import_bitsandbytes()


@leanly()
def import_for_compression(directory: Path) -> None:
    """Import what merging an adapter into the model in `directory` and quantising the sum takes."""
    import_for_inference(directory)
    _import_bitsandbytes()
    from peft import PeftModel  # noqa: F401
    from transformers import BitsAndBytesConfig  # noqa: F401

    _import_parts("peft.tuners.lora.bnb", "peft.utils.transformers_weight_conversion")


@leanly()
def import_for_training(directory: Path) -> None:
    """Import what training a LoRA adapter on the model in `directory` takes, on a 4-bit base too.

    Alike for both methods: peft imports bitsandbytes wherever it is installed.
    """
    import_for_compression(directory)
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training  # noqa: F401
    from transformers import (  # noqa: F401
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    _import_parts("torch.profiler._cupti_monitor")


def _import_bitsandbytes() -> None:
    # It has fallbacks compiled that neither a CPU nor a CUDA GPU runs; torch's compiler is a fifth
    # of the imports.
    asked = os.environ.pop("TORCHDYNAMO_DISABLE", None)
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        import bitsandbytes  # noqa: F401
    finally:
        del os.environ["TORCHDYNAMO_DISABLE"]
        if asked is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = asked

    _import_parts("transformers.integrations.bitsandbytes")


def _import_parts(*names: str) -> None:
    """Import what libraries import inside functions; which modules differs between versions."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
