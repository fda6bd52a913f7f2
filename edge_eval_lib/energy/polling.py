"""A thread that visits a meter while windows are open."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Poller:
    """A daemon thread that calls `visit` every `interval_s` while it is not paused."""

    def __init__(self, visit: Callable[[], Any], interval_s: float) -> None:
        self._visit, self._interval_s = visit, interval_s
        self._wanted, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Visit from now on."""
        self._wanted.set()

    def pause(self) -> None:
        """Stop visiting until `resume`."""
        self._wanted.clear()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._wanted.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wanted.wait()
            if not self._stopped.wait(self._interval_s) and self._wanted.is_set():
                self._visit()
