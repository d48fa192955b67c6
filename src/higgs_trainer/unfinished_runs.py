"""Put a run folder in order after a process was killed while it replaced an earlier run or wrote the result.

restore_run             what every reader of a run folder calls first
settle_earlier_run      the earlier run that ``train --overwrite`` moved away
finish_result           the final files of a run, which replace those of the run that it continues
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from higgs_trainer.distributed import is_first_process
from higgs_trainer.errors import SaveError, UserError
from higgs_trainer.files import explain_failed_write, move_into_place, remove_folder, restore_replaced
from higgs_trainer.outputs import find_free_name, hold_folder
from higgs_trainer.run_folder import METRICS_FILE, RESULT_FOLDER, list_checkpoints
from higgs_trainer.terminal import echo

EARLIER = "_earlier-"


def restore_run(folder: str | Path) -> None:
    """Put a folder in order that a killed process left, if it is that of a run. Readers call this first.

    While another command trains into the folder, or if the folder is read-only, it is left as it is.
    """
    restore_replaced(folder)
    folder = Path(folder).absolute()
    if is_in_order(folder):
        return
    with suppress(SaveError, UserError):
        settle_run(folder)


def is_in_order(output_dir: Path) -> bool:
    """Return whether no process that was killed, or that still runs, has left anything to be settled."""
    if not output_dir.name:
        return True
    # A name that is too long for the disk raises OSError in Path.is_dir.
    return not os.path.isdir(name_earlier(output_dir)) and not os.path.isdir(output_dir / RESULT_FOLDER)


def settle_run(output_dir: Path) -> None:
    """Put a run folder in order, and hold it meanwhile.

    Only the first process of a distributed run does so. If the others took the lock too, the first could find it taken.

    Raises:
        UserError: another command trains into the folder.
        SaveError: a file or folder could not be renamed.
    """
    if not is_first_process():
        return
    with hold_folder(output_dir):
        finish_result(output_dir)
        settle_earlier_run(output_dir)


def finish_result(output_dir: Path) -> None:
    """Move the final files of a run into place, ``metrics.json`` last. They are whole when their folder exists."""
    result = output_dir / RESULT_FOLDER
    if not result.is_dir():
        return
    with explain_failed_write(output_dir):
        for path in sorted(result.iterdir(), key=lambda path: path.name == METRICS_FILE):
            move_into_place(path, output_dir / path.name)
        shutil.rmtree(result)


def settle_earlier_run(output_dir: Path) -> None:
    """Give an earlier run that is being replaced its place: its old name, or ``NAME.replaced-N`` if the new run has
    begun to be worth something."""
    earlier = name_earlier(output_dir)
    if not os.path.isdir(earlier):
        return
    with explain_failed_write(output_dir, "rename it by hand"):
        if (output_dir / METRICS_FILE).is_file() or list_checkpoints(output_dir):
            kept = find_free_name(output_dir, "replaced")
            os.replace(earlier, kept)
            echo(f"the earlier run is now {kept}")
            return
        if output_dir.is_dir():
            remove_folder(output_dir)
        os.replace(earlier, output_dir)


def name_earlier(output_dir: Path) -> Path:
    """Return the name of an earlier run while a new one has no checkpoint and no result yet."""
    return output_dir.with_name(EARLIER + output_dir.name)
