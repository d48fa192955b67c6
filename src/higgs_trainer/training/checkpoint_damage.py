"""Find damage in a checkpoint before a run continues from it, and name the newest checkpoint that is whole."""

import json
import logging
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.trainer import SCHEDULER_NAME

from higgs_trainer.checksums import list_files, verify_checksums
from higgs_trainer.errors import CheckpointError, DamageError, list_first
from higgs_trainer.model.weight_files import read_headers, read_tensors
from higgs_trainer.printable import join_lines
from higgs_trainer.run_folder import (
    CHECKSUMS_FILE,
    MODEL_CARD_FILE,
    RESUME_FILE,
    TRAINER_STATE_FILE,
    read_step,
)
from higgs_trainer.tensors import list_not_finite

logger = logging.getLogger(__name__)

TORCH_FILES = (".pt", ".pth", ".bin")
RNG_STATES = "rng_state*.pth"


def list_checkpoint_files(checkpoint: Path) -> list[str]:
    """List the files of a checkpoint that have checksums: all but the model card, which may be edited."""
    return [name for name in list_files(checkpoint) if name != MODEL_CARD_FILE]


def check_checkpoint(checkpoint: Path, others: Sequence[Path]) -> None:
    """Check that every file of a checkpoint is as it was written: weights, optimizer, scheduler, RNG, trainer state.

    A checkpoint without checksums, of an earlier version, is checked as far as its files allow, with a warning.

    Args:
        others: the other checkpoints of the run, the oldest first.

    Raises:
        DamageError: names the file, and the newest whole checkpoint among ``others``.
    """
    try:
        # A folder without a state is no checkpoint, which is another error.
        if not _verify(checkpoint) and (checkpoint / TRAINER_STATE_FILE).is_file():
            logger.warning(
                "%s has no %s, so a changed file could not be found; an earlier version wrote it",
                checkpoint,
                CHECKSUMS_FILE,
            )
    except DamageError as error:
        raise DamageError(error.what, _advise(checkpoint, others)) from error


def _advise(damaged: Path, others: Sequence[Path]) -> str:
    """Say how to continue from the newest whole checkpoint."""
    to_move = [damaged]
    for whole in reversed(others):
        if not _is_whole(whole):
            to_move.append(whole)
            continue
        start = f"ontinue from {whole.name}, which is whole: --resume_from_checkpoint {whole}"
        later = [path.name for path in sorted(to_move, key=read_step) if read_step(path) > read_step(whole)]
        return f"Move {' and '.join(later)} out of {damaged.parent}, and c{start}" if later else f"C{start}"
    return (
        f"No other checkpoint in {damaged.parent} is whole. Copy it from a backup, or start a new run with --overwrite "
        "in place of --resume_from_checkpoint."
    )


def _is_whole(checkpoint: Path) -> bool:
    try:
        _verify(checkpoint)
    except DamageError:
        return False
    return (checkpoint / TRAINER_STATE_FILE).is_file()


def _verify(checkpoint: Path) -> bool:
    """Raise DamageError if a file is damaged. Return whether the checkpoint has checksums."""
    verified = verify_checksums(checkpoint, list_checkpoint_files, remedy="")
    if not verified and (checkpoint / RESUME_FILE).is_file():
        # A version that writes one of the two writes both.
        raise DamageError(f"{checkpoint / CHECKSUMS_FILE} is missing", "")
    # Without a state this is no checkpoint, which is another error.
    if (checkpoint / TRAINER_STATE_FILE).is_file():
        _check_state(checkpoint)
        if not verified:
            _check_without_checksums(checkpoint)
    return verified


def _check_state(checkpoint: Path) -> None:
    path = checkpoint / TRAINER_STATE_FILE
    try:
        step = json.loads(path.read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DamageError(f"{path} is damaged ({error})", "") from error
    if read_step(checkpoint) not in (-1, step):
        raise DamageError(f"{path} is of step {step}, but the folder is named {checkpoint.name}", "")


def _check_without_checksums(checkpoint: Path) -> None:
    """Check what can be checked without checksums: that files are there and can be read.

    `higgs_trainer.train` resumes no such checkpoint, because it has no record of its run either. A HiggsAudioTrainer
    that is used alone does.
    """
    can_resume = any(checkpoint.glob("optimizer*"))
    for pattern in (SCHEDULER_NAME, RNG_STATES):
        if can_resume and not any(checkpoint.glob(pattern)):
            raise DamageError(f"{checkpoint / pattern} is missing", "")
    for name in list_files(checkpoint):
        path = checkpoint / name
        if path.suffix == ".safetensors":
            _check_safetensors(path)
        elif path.suffix in TORCH_FILES:
            _check_torch_file(path)


def _check_safetensors(path: Path) -> None:
    try:
        read_headers([path])
    except CheckpointError as error:
        raise DamageError(str(error), "") from error
    if bad := list_not_finite(read_tensors(path)):
        raise DamageError(f"{path} has weights that are not finite: {list_first(bad)}", "")


def _check_torch_file(path: Path) -> None:
    """Check a file of torch.save: it is a zip archive, with a CRC of each member, and of tensors and plain values."""
    # transformers 4.46, with which Boson's model is tested, does not have it.
    from transformers.trainer_pt_utils import safe_globals

    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            with safe_globals():
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (
        OSError,
        zipfile.BadZipFile,
        RuntimeError,
        NotImplementedError,
        ValueError,
        EOFError,
        LookupError,
        pickle.UnpicklingError,
    ) as error:
        raise DamageError(f"{path} is damaged ({join_lines(error)[:200]})", "") from error
    if damaged is not None:
        raise DamageError(f"{path} is damaged (CRC of {damaged})", "")
