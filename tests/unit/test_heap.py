"""What was freed goes back to the system."""

import subprocess
import sys

import pytest

PROGRAM = """
import threading
from edge_eval_lib.machine import heap

def resident_kb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

def fill():  # in small pieces, of which the last keeps the heap from shrinking by itself
    pieces = [b"%d" % number * 30_000 for number in range(1000)]  # not zeros: never touched, those
    kept.append(pieces[-1])

kept = []
for worker in [threading.Thread(target=fill) for _ in range(2)]:
    worker.start()
    worker.join()
before = resident_kb()
heap.give_back()
print(before - resident_kb(), len(kept))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_freed_memory_of_every_thread_goes_back_to_the_system():
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={"MALLOC_TRIM_THRESHOLD_": str(1 << 40)},  # nothing by itself
    )
    given_kb, kept = map(int, said.stdout.split())
    assert kept == 2
    assert given_kb > 50_000
