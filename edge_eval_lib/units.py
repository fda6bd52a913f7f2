"""Conversions and sizes that several rooms need, once each."""

JOULES_PER_KWH = 3.6e6
HOURS_PER_YEAR = 8760.0
# Of the weights that a precision quantises. INT4 is NF4 with double quantisation: 4 bits and 0.127
# bits of constants (QLoRA, arXiv 2305.14314).
BYTES_PER_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": (4 + 0.127) / 8}
