"""Read the memory of a process, and measure what Python and the libraries take before a model is loaded."""

import subprocess
import sys
from functools import cache
from pathlib import Path

STATUS = Path("/proc/self/status")

MEASURE = "from higgs_trainer.planning.process_memory import read_peak_bytes; import higgs_trainer.run.train; "


def read_peak_bytes() -> int | None:
    """Return the largest resident memory that this process ever had. None: the system does not say it."""
    try:
        status = STATUS.read_text(encoding="ascii")
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None


@cache
def measure_libraries() -> int:
    """Return the memory of a process that has imported what `train` needs and loaded nothing.

    It takes some seconds, because that process is started. 0: the system does not say it.
    """
    result = subprocess.run(
        [sys.executable, "-c", MEASURE + "print(read_peak_bytes() or 0)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stdout.split()[-1])
