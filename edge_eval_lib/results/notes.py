"""Why a figure of a table of variants is empty."""

from __future__ import annotations

import numpy as np
import pandas as pd

from edge_eval_lib.results import columns
from edge_eval_lib.results.columns import VARIANT


class Notes:
    """Why a figure is empty, variant by variant."""

    def __init__(self, runs: pd.DataFrame) -> None:
        own = runs.groupby(VARIANT, sort=False)["notes"].agg(columns.joined)
        self._texts = own.map(lambda text: [text] if isinstance(text, str) else [])

    def copy(self) -> Notes:
        copied = object.__new__(Notes)
        copied._texts = self._texts.map(list)
        return copied

    def add(self, where, text: str) -> None:
        for texts in self._texts[np.asarray(where, dtype=bool)]:
            texts.append(text)

    def add_missing(self, column: pd.Series) -> None:
        """Say that a figure is missing, unless the runs' own notes say why."""
        said = self._texts.map(lambda texts: f"{column.name}:" in "; ".join(texts))
        self.add(column.isna() & ~said, f"{column.name}: not measured")

    def add_unscored(self, answers: pd.DataFrame) -> None:
        unscored = answers[answers["score"].isna()]
        for key, group in unscored.groupby(VARIANT, sort=False):
            if key in self._texts.index:
                reasons = columns.joined(group["score_reason"]) or "no reason recorded"
                count = group["prompt_id"].nunique()
                self._texts[key].append(f"score: {count} prompts not scored ({reasons})")

    def text(self) -> pd.Series:
        return self._texts.map(lambda texts: "; ".join(dict.fromkeys(texts)) or None)
