"""INT8: LLM.int8() of bitsandbytes (arXiv 2208.07339) for transformers, W8A8 for vLLM."""

from typing import Any

LAYER = "Linear8bitLt"
LARGEST_SHARE = 1.0


def configuration(compressor: str, compute_dtype: str) -> Any:
    """Return what quantises to 8 bits by that compressor."""
    if compressor == "llm-compressor":
        return {"scheme": "W8A8"}
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)
