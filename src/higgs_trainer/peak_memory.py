"""Read how much memory this process needed at most."""

from pathlib import Path

STATUS = Path("/proc/self/status")


def read_peak_bytes() -> int | None:
    """Return the largest resident memory that this process ever had. None: the system does not say it."""
    try:
        status = STATUS.read_text(encoding="ascii")
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None
