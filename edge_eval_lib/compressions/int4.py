"""INT4: NF4 of bitsandbytes (QLoRA's, arXiv 2305.14314) for transformers, W4A16 for vLLM."""

from typing import Any

LAYER = "Linear4bit"
LARGEST_SHARE = 0.45  # of the same layers in FP16: 4 bits and their scales make 0.26-0.29


def configuration(compressor: str, compute_dtype: str) -> Any:
    """Return what quantises to 4 bits by that compressor."""
    if compressor == "llm-compressor":
        # Of the groups that share a scale, the largest that divides every layer's inputs is taken.
        return {"scheme": "W4A16", "group_sizes": [128, 64, 32]}
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, compute_dtype),
    )
