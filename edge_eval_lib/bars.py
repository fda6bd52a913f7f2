"""A bar for what takes long in a notebook that somebody watches.

A study's runs have none: nobody watches them, and their notebooks are kept. By hand a bar is drawn
once a second at most; what serves in a measured window does not move it, steps of training do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DRAWN_EVERY_S = 1.0


def shown() -> bool:
    """Decide whether somebody watches: a notebook that is run by hand, in a kernel."""
    if "EDGE_EVAL_RUN" in os.environ or "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a bar while a loop runs; it goes when the loop ends.

    Args:
        what: What is counted, as people say it.
        total: How many there are.

    Yields:
        A function that counts so many more; without a bar it does nothing.
    """
    if not shown():
        yield lambda _: None
        return
    with _bar(what, total) as bar:
        yield bar.update


def _bar(what: str, total: int):
    from tqdm import tqdm as plain
    from tqdm.auto import tqdm

    plain.monitor_interval = 0  # its watching thread would wake up within measured windows
    return tqdm(total=total, desc=what, mininterval=DRAWN_EVERY_S, leave=False)
