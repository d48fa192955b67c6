"""A folder that is complete or absent: written under another name, renamed when nothing is missing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from higgs_trainer.errors import SaveError, UserError


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """Write into the folder that this gives; it becomes ``output`` at the end, or vanishes with what went wrong.

    Raises:
        UserError: ``output`` is a file, or a folder that holds something.
        SaveError: it could not be written: the disk is full, or not there.
    """
    output = Path(output).resolve()
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"{output} is there and not empty; give another folder")
    unfinished = output.with_name(f".{output.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.replace(output)  # onto an empty folder, too
    except (OSError, SafetensorError) as error:
        raise SaveError(
            f"{output} could not be written ({error}); make room, or give another folder"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
