"""Run a command, and add its duration and peak memory to a JSON file. A command that is in the file is not repeated.

    python scripts/measure_command.py measures.json merge higgs-trainer merge runs/voice -o merged
    python scripts/measure_command.py measures.json                           # prints the file as one line

The peak is the resident memory of the largest process of the command in MB (10^6 bytes). Pages of a mapped file count,
such as weights that are read straight from the disk's cache, although the system can take them back at any time.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path


def measure_command(command: list[str]) -> dict[str, float]:
    """Run a command and measure it. Exit with its exit code if it fails."""
    start = time.monotonic()
    exit_code = subprocess.run(command, check=False).returncode
    if exit_code:
        sys.exit(exit_code if exit_code > 0 else 128 - exit_code)
    # Linux counts in KiB, macOS in bytes.
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit_bytes
    return {"seconds": round(time.monotonic() - start, 1), "peak_mb": round(peak_bytes / 1e6)}


def main() -> None:
    """Measure one command, or print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("name", nargs="?")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    measured = json.loads(arguments.file.read_text()) if arguments.file.is_file() else {}
    if arguments.name is None:
        print(json.dumps(measured))
        return
    if arguments.name not in measured:
        measured[arguments.name] = measure_command(arguments.command)
        arguments.file.write_text(json.dumps(measured, indent=2) + "\n")
    result = measured[arguments.name]
    print(f"{arguments.name}: {result['seconds']} s, {result['peak_mb']} MB", flush=True)


if __name__ == "__main__":
    main()
