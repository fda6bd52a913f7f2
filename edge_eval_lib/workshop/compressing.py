"""Exercises of workshop notebook 2: adapt and compress. Answers follow from what it measured."""

from __future__ import annotations

from collections.abc import Sequence

from edge_eval_lib.workshop.choice import choice, larger
from edge_eval_lib.workshop.exercise import Exercise, Mistake

NATS_SAME_SHARE = 0.02  # of a likelihood over a few hundred tokens: below it is noise


def trained_share(trained: int, parameters: int) -> Exercise:
    """How many percent of a model's parameters an adapter trains."""
    percent = 100 * trained / parameters
    seen = f"{trained / 1e6:.1f} of {parameters / 1e6:.0f} million parameters"
    return Exercise(
        answer=percent,
        unit="%",
        tolerance=0.5,
        hint_text="beside a matrix of 576 x 576 LoRA puts one of 576 x 16 and one of 16 x 576, and "
        "here in half of the layers only.",
        solution_text=f"{seen}. The base stays as it is: many adapters can share one.",
        mistakes=(
            Mistake(
                lambda given: given >= 99,
                "That is full fine-tuning: every parameter. LoRA leaves the base as it is.",
            ),
            Mistake(
                lambda given: given >= 20,
                f"{seen} are trained: two thin matrices beside each thick one.",
            ),
            Mistake(
                trained / parameters,
                "That is the share as a fraction; the question is for percent.",
            ),
        ),
    )


def stored_share(
    layers_bytes: int, rest_bytes: int, bits: int, written_bytes: int, written_rest_bytes: int
) -> Exercise:
    """How many percent of FP16's bytes weights of so many bits take on disk.

    Args:
        layers_bytes: Of the layers that are quantised, in FP16.
        rest_bytes: Of everything else, in FP16.
        bits: That a quantised weight has.
        written_bytes: What was written of both.
        written_rest_bytes: What of it is everything else.
    """
    fp16_bytes = layers_bytes + rest_bytes
    percent, naive = 100 * written_bytes / fp16_bytes, 100 * bits / 16
    in_16 = 100 * (layers_bytes * bits / 16 + rest_bytes) / fp16_bytes
    rest = f"the rest, {rest_bytes / 1e6:.0f} of {fp16_bytes / 1e6:.0f} MB, is not quantised"
    rest_bits = round(16 * written_rest_bytes / rest_bytes)
    return Exercise(
        answer=percent,
        unit="%",
        tolerance=0.1,
        hint_text=f"only the layers go from 16 to {bits} bits; {rest}, and is written in the "
        f"{rest_bits} bits that are computed with here.",
        solution_text=f"The layers shrink to a little more than {naive:.0f} %, for their scales "
        f"take room too; {rest}, and written in {rest_bits} bits. That makes "
        f"{written_bytes / 1e6:.0f} MB. The larger the model, the smaller the rest.",
        mistakes=(
            Mistake(
                naive, f"{bits} bits are {naive:.0f} % of 16. But not all is quantised: {rest}."
            ),
            Mistake(
                in_16,
                f"You thought of the embedding: {rest}. But it is written in the {rest_bits} bits "
                "that are computed with here, not in 16.",
            ),
            Mistake(naive / 2, f"That is {bits} of 32 bits. FP16 has 16; and {rest}."),
            Mistake(lambda given: given >= 100, "Compressed weights are smaller than FP16's."),
            Mistake(
                lambda given: given < naive,
                f"{bits} of 16 bits would be {naive:.0f} %, if all were quantised. Not all is.",
            ),
        ),
    )


def loses_more(fp16_nats: float, int8_nats: float, int4_nats: float) -> Exercise:
    """Which makes gold answers less likely: `int8`, `int4` or `same`."""
    seen = (
        f"Measured, nats a token (lower is better): FP16 {fp16_nats:.3f}, INT8 {int8_nats:.3f}, "
        f"INT4 {int4_nats:.3f}."
    )
    return choice(
        larger(int8_nats, int4_nats, ("int8", "int4", "same"), NATS_SAME_SHARE),
        {
            "int8": f"{seen} 8 bits have 256 levels, and columns with outliers are kept in 16 "
            "bits.",
            "int4": f"{seen} 16 levels did no more harm here than 256.",
            "same": f"{seen} How many levels has a weight of 8 bits, and how many one of 4?",
        },
        "A weight of 8 bits has 256 levels, one of 4 bits 16.",
        f"{seen} Rounding is noise on every weight; it is the coarser the fewer levels there are.",
    )


def gain_or_loss(base_nats: float, adapted_nats: float, int4_nats: float) -> Exercise:
    """Which is larger: what `adapting` gained, or what `int4` lost; or `same`."""
    gained, lost = base_nats - adapted_nats, int4_nats - adapted_nats
    seen = (
        f"Adapting made a gold token {gained:.2f} nats likelier, INT4 {lost:.2f} nats less likely."
    )
    return choice(
        larger(gained, lost, ("adapting", "int4", "same")),
        {
            "adapting": f"{seen} The examples were too few, or the rounding too coarse.",
            "int4": f"{seen} The first examples teach what an answer looks like; rounding blurs "
            "what was learnt, and does not erase it.",
            "same": f"{seen} The two are not of one size.",
        },
        "The base has never seen an answer of this form. How much of that does rounding take back?",
        f"{seen} A small model that was adapted and rounded may be better at one task than what it "
        "was made of.",
    )


def speed_of_int4(fp16_tok_s: float, int4_tok_s: float) -> Exercise:
    """Whether INT4 is `faster`, `slower` or `same` in tokens a second."""
    seen = f"Measured: {fp16_tok_s:.0f} tok/s in FP16, {int4_tok_s:.0f} tok/s in INT4."
    return choice(
        larger(int4_tok_s, fp16_tok_s, ("faster", "slower", "same")),
        {
            "faster": f"{seen} Fewer bytes are read, but a 4-bit weight is unpacked at every step, "
            f"and arithmetic is not done in 4 bits.",
            "slower": f"{seen} Here the bytes that are not read were worth more than the "
            "unpacking.",
            "same": f"{seen} Fewer bytes to read, more work to unpack them: look at which won.",
        },
        "It reads fewer bytes, and unpacks each weight before it computes. Which weighs more here?",
        f"{seen} Which of the two wins depends on the machine, its kernels and the batch: smaller "
        "is not faster by itself.",
    )


def same_answers(fp16: Sequence[str], quantised: Sequence[str]) -> Exercise:
    """How many percent of the answers stay the same, word for word."""
    same = sum(one == other for one, other in zip(fp16, quantised, strict=True))
    percent = 100 * same / len(fp16)
    seen = f"{same} of {len(fp16)} answers are the same."
    return Exercise(
        answer=percent,
        unit="%",
        tolerance=0.25,  # of three quarters, all are not
        hint_text="where two tokens are nearly as likely, a little noise decides; and after the "
        "first other token the rest goes its own way.",
        solution_text=f"{seen} Another answer need not be a worse one: that is what a score is "
        "for.",
        mistakes=(
            Mistake(lambda given: given > 100, "More than all?"),
            Mistake(
                lambda given: given > 95,
                f"{seen} Rounding changed every probability a little, and somewhere the first and "
                "the second changed places.",
            ),
            Mistake(
                lambda given: given < 5,
                f"{seen} Most tokens are certain enough to survive the rounding.",
            ),
        ),
    )
