"""FP16: the merged weights in 16 bits, as every engine reads them."""

LAYER = "Linear"
LARGEST_SHARE = 1.0


def configuration(compressor: str, compute_dtype: str) -> None:
    """Nothing is quantised."""
