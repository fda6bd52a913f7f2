"""A process of its own that turns a GPU's knob, and puts back what it found.

    with turning("sm_clock_mhz", by="power_sweep") as turn:
        turn(585)

The watchdog is the only one that changes the setting. It notes first, in a file, what it found, and
puts that back when its pipe closes or the process that asked for it ends, in whatever way: the end
of the `with`, an exception, a signal, SIGKILL. It is no child of that process and in no group of
it, and ignores the signals that end one. Where the watchdog itself is killed, the file stays:
`left_over` tells it, and the next watchdog puts that back before it does anything else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pynvml

from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import nvml
from edge_eval_lib.machine.knobs import KNOBS, Found, Knob
from edge_eval_lib.machine.nvml import Device
from edge_eval_lib.paths import project_root, user_directory

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # settings end with the boot, as files may not
TRIES, BETWEEN_TRIES_S = 3, 0.5  # of putting back


@contextlib.contextmanager
def turning(
    knob_name: str, by: str, locked_mhz: Found | None = None
) -> Iterator[Callable[[float], None]]:
    """Hand out a function that sets the knob of all visible GPUs, until the `with` ends.

    Args:
        knob_name: One of `knobs.KNOBS`.
        by: Who turns it, in words.
        locked_mhz: What an administrator had locked the SM clock to, [low, high], which NVML
            cannot tell: put back instead of the driver's own.

    Yields:
        Sets the knob; UserError, in one sentence, where NVML refuses.

    Raises:
        UserError: The watchdog does not start, or could not put back what it found.
    """
    order = {
        "knob": knob_name,
        "gpus": [nvml.uuid(device) for device in nvml.visible_devices()],
        "by": by,
        "locked_mhz": locked_mhz or [],
        "parent": os.getpid(),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, json.dumps(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=project_root(),
        text=True,
        bufsize=1,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    answers = process.stdout

    def answered() -> None:
        said = answers.readline().strip()
        if said != "done":
            raise UserError(said or "The watchdog that would put the settings back ended.")

    def turn(value: float) -> None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{value}\n")  # type: ignore[union-attr]
        answered()

    answered()
    try:
        yield turn
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        answered()
        process.wait()


def left_over() -> list[str]:
    """Return what a sweep left that was killed with its watchdog, a sentence each."""
    sentences = []
    for file in _files():
        with contextlib.suppress(FileNotFoundError), file.open("r+", encoding="utf-8") as opened:
            if not _lock(opened):
                continue  # its watchdog lives
            note = json.load(opened)
            knob = KNOBS[note["knob"]]
            for device in _devices(note["found"]):
                found, now = note["found"][nvml.uuid(device)], knob.now(device)
                shown = "NVML does not tell it" if now is None else f"now {now:g} {knob.unit}"
                sentences.append(
                    f"A sweep was interrupted ({note['by']}, {note['started']}) before it could "
                    f"put back {knob.what} of {device.label} ({shown}); "
                    f"`{knob.command_back(device, found)}` does, and so does the next sweep."
                )
    return sentences


# --- the watchdog itself ----------------------------------------------------------------------


def main(order: dict[str, Any]) -> None:
    """Turn the knob as asked line by line, until nobody asks any more; then put it back."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    ends = [0]
    with contextlib.suppress(OSError, AttributeError):  # a copy of the pipe may outlive the parent
        ends.append(os.pidfd_open(order["parent"]))
    if os.getppid() != order["parent"] or os.fork():
        os._exit(0)
    os.setsid()
    try:
        for left in _files():
            with left.open("r+", encoding="utf-8") as opened:
                if _lock(opened):
                    _put_all_back(opened)
        knob, devices = KNOBS[order["knob"]], _devices(order["gpus"])
        found = {nvml.uuid(d): order["locked_mhz"] or knob.found(d) for d in devices}
        note = _note(knob, found, order["by"])
    except Exception as error:
        _say(f"What the GPU is set to cannot be noted: {error}")
        return
    _say("done")
    touched = False
    try:
        for line in _lines(ends):
            answer, refused = _turned(knob, devices, float(line))
            touched = touched or not refused
            _say(answer)
    finally:
        if touched:
            answer = _put_all_back(note)
            note.close()  # unlocked before anybody hears of it, who may look for what is left
            _say(answer)
        else:  # what it may not set it cannot put back
            os.unlink(note.name)
            _say("done")


def _lines(ends: list[int]) -> Iterator[str]:
    """Yield what is asked, until the pipe closes or the process at its other end is gone."""
    poll = select.poll()
    for end in ends:
        poll.register(end, select.POLLIN)
    rest = b""
    while True:
        ready = [end for end, _ in poll.poll()]
        read = os.read(0, 4096) if ready == [0] else b""
        if not read:
            return
        *whole, rest = (rest + read).split(b"\n")
        yield from (line.decode() for line in whole)


def _turned(knob: Knob, devices: list[Device], value: float) -> tuple[str, bool]:
    """Set every GPU; what to answer, and whether none was touched for want of permission."""
    for device in devices:
        try:
            knob.turn(device, value)
            now = knob.now(device)
        except pynvml.NVMLError as error:
            refused = error.value == pynvml.NVML_ERROR_NO_PERMISSION and device is devices[0]
            why = f"cannot be set to {value:g} {knob.unit}: {nvml.text(error)}."
            return f"{knob.what_capital} of {device.label} {why}", refused
        if now is not None and abs(now - value) > 1e-3:
            return f"{device.label} was told {value:g} {knob.unit} and says {now:g}.", False
    return "done", False


def _put_all_back(opened: IO[str]) -> str:
    """Put back what a locked file notes, and remove it; what to answer."""
    opened.seek(0)
    note = json.load(opened)
    knob = KNOBS[note["knob"]]
    problems = [
        problem
        for device in _devices(note["found"])
        if (problem := _put_back(knob, device, note["found"][nvml.uuid(device)]))
    ]
    if not problems:
        os.unlink(opened.name)
    return " ".join(problems) or "done"


def _put_back(knob: Knob, device: Device, found: Found) -> str:
    for left in reversed(range(TRIES)):
        try:
            knob.put_back(device, found)
            return ""
        except (pynvml.NVMLError, nvml.Unavailable) as error:
            why = nvml.text(error) if isinstance(error, pynvml.NVMLError) else str(error)
            time.sleep(BETWEEN_TRIES_S if left else 0)
    return (
        f"{knob.what_capital} of {device.label} could not be put back ({why}): "
        f"say `{knob.command_back(device, found)}`."
    )


def _note(knob: Knob, found: dict[str, Found], by: str) -> IO[str]:
    """Write what was found to a locked file, for whoever comes after a watchdog that was killed."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    note = {"knob": knob.name, "found": found, "by": by, "started": started, "boot": _boot()}
    opened = (user_directory() / f"settings-{os.getpid()}.json").open("w+", encoding="utf-8")
    _lock(opened)
    json.dump(note, opened)
    opened.flush()
    os.fsync(opened.fileno())
    return opened


def _files() -> list[Path]:
    """Return the files of this boot that note what was found."""
    kept = []
    for file in sorted(user_directory().glob("settings-*.json")):
        try:
            same_boot = json.loads(file.read_text(encoding="utf-8"))["boot"] == _boot()
        except (OSError, ValueError):  # being written, or just removed
            continue
        if same_boot:
            kept.append(file)
        else:
            file.unlink(missing_ok=True)
    return kept


def _boot() -> str:
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text(encoding="ascii").strip()
    return ""


def _lock(opened: IO[str]) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _devices(uuids: Any) -> list[Device]:
    return [device for device in nvml.all_devices() if nvml.uuid(device) in uuids]


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(1, f"{' '.join(text.split())}\n".encode())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
