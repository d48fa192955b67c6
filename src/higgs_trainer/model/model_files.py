"""The files that loading a model or an adapter reads, and their checksums.

A run folder contains much more, and some of it changes later: the model card, the report, the evaluation. So the
checksums of a model cover only these files.
"""

from pathlib import Path

from higgs_trainer.checksums import compute_fingerprint, verify_checksums, write_checksums
from higgs_trainer.errors import CheckpointError
from higgs_trainer.input_files import check_ends
from higgs_trainer.limits import STORED_JSON_BYTES, TEMPLATE_BYTES
from higgs_trainer.run_folder import (
    CHECKSUMS_FILE,
    LOCAL_PATHS_FILE,
    RESUME_FILE,
    RUN_RECORD,
    TRAINER_STATE_FILE,
)

CODEC_FOLDER = "codec"
SETTINGS = ("*.json", "*.jinja")
"""Everything that is read before the weights: the configuration, the tokenizer, the chat template."""
PATTERNS = ("*.safetensors", *SETTINGS)
HUB_FILES = [*PATTERNS, f"{CODEC_FOLDER}/*"]
"""The files to download from the hub. All files with checksums are among them."""
NOT_OF_THE_MODEL = frozenset({*RUN_RECORD, TRAINER_STATE_FILE, RESUME_FILE, CHECKSUMS_FILE, LOCAL_PATHS_FILE})
LARGEST = {".json": STORED_JSON_BYTES, ".jinja": TEMPLATE_BYTES}
REMEDY = (
    "Copy or download the folder again. If the change was intended, remove "
    f"{CHECKSUMS_FILE} from it: then it is used without verification."
)


def list_model_files(folder: Path) -> list[str]:
    """List the files of a folder that loading its model or adapter, tokenizer and codec may read."""
    paths = [
        path for pattern in PATTERNS for path in folder.glob(pattern) if path.name not in NOT_OF_THE_MODEL
    ]
    paths += [path for path in (folder / CODEC_FOLDER).rglob("*") if not path.is_dir()]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def write_model_checksums(folder: Path) -> None:
    """Write the checksums of the model or the adapter in a folder into the folder."""
    write_checksums(folder, list_model_files(folder))


def verify_model(folder: Path) -> bool:
    """Check that the model or the adapter in a folder is as it was written.

    Returns:
        False if the folder has no checksums, as one from the hub or from an earlier version.

    Raises:
        DamageError: a file is missing, cut, changed or added; names it.
        CheckpointError: there is a pipe or a device in place of a file, or a file of settings is implausibly large.
    """
    for name in list_model_files(folder):
        at_most = LARGEST.get(Path(name).suffix)
        check_ends(folder / name, "Copy or download it again.", CheckpointError, at_most=at_most)
    return verify_checksums(folder, list_model_files, remedy=REMEDY)


def fingerprint_model(folder: Path) -> str:
    """Compute a hash of a model or an adapter with its tokenizer and codec. It does not depend on other files."""
    return compute_fingerprint(folder, list_model_files(folder))
