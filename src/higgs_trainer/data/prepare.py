"""Manifest -> prepared dataset: every row checked, every recording encoded once, written whole or not at all.

A prepared folder is a `datasets` dataset with a `dataset_card.json` beside it. A recording is kept as its
codes, uint16, frame after frame: F*K numbers, to be read back as `codes.reshape(num_frames, num_codebooks)`.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from higgs_trainer import __version__
from higgs_trainer.data.audio import SAMPLE_RATE_HZ, read_audio
from higgs_trainer.data.codec import Codec, load_codec
from higgs_trainer.data.manifest import Utterance, check_manifest
from higgs_trainer.data.references import pair_references
from higgs_trainer.data.text import TextRules
from higgs_trainer.errors import AudioError, CheckpointError, ManifestError, Problem, UserError

if TYPE_CHECKING:
    from datasets import Dataset, Features

CARD_NAME = "dataset_card.json"
OWN_NAMES = (
    CARD_NAME,
    "dataset_info.json",
    "state.json",
)  # and the *.arrow files: all that is in one

Progress = Callable[[Sequence[Utterance], str], Iterable[Utterance]]
"""Wraps the rows being worked through, with a description: how a progress bar is drawn."""


@dataclass(frozen=True)
class DatasetCard:
    """What a prepared folder holds, and which codec its codes belong to. ``tasks`` and ``text_changes`` count rows;
    the rows' own columns of these names say which."""

    codec_name: str
    codec_fingerprint: str
    num_codebooks: int
    codebook_size: int
    frames_per_second: float
    utterances: int
    tasks: dict[str, int]
    text_changes: dict[str, int]
    hours: float
    manifest: str
    higgs_trainer_version: str


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared folder, opened. `rows` has the columns that `build_features` lists."""

    rows: "Dataset"
    card: DatasetCard


@dataclass(frozen=True)
class PreparedSummary:
    """What `prepare` wrote, and where."""

    folder: Path
    card: DatasetCard


def show_progress(rows: Sequence[Utterance], description: str) -> Iterable[Utterance]:
    """A rich progress bar on stderr; where that is no terminal, one line at the end."""
    from rich.console import Console
    from rich.progress import track

    return track(rows, description, console=Console(stderr=True))


def prepare(
    manifest: str | Path,
    output: str | Path,
    *,
    codec: Codec | str | Path,
    allow_outside: bool = False,
    allow_own_reference: bool = False,
    text_rules: TextRules = TextRules(),
    pair_seed: int | None = None,
    overwrite: bool = False,
    progress: Progress = show_progress,
) -> PreparedSummary:
    """Check every row, then encode every recording once and write `output`.

    With ``pair_seed``, single-speaker rows are given references (`pair_references`).

    Raises:
        ManifestError: all that is wrong with rows and recordings, together; nothing was written.
        UserError: the manifest cannot be read, or `output` is not empty and `overwrite` was not asked for.
        CheckpointError: there is no such codec.
    """
    manifest, output = Path(manifest), Path(output)
    check_output(output, overwrite=overwrite)
    utterances, problems = check_manifest(
        manifest,
        allow_outside=allow_outside,
        allow_own_reference=allow_own_reference,
        text_rules=text_rules,
    )
    if pair_seed is not None:
        utterances, unpaired = pair_references(utterances, seed=pair_seed)
        problems += unpaired
    _check_recordings(utterances, problems, progress)
    if isinstance(codec, str | Path):
        codec = load_codec(codec)
    if codec.sample_rate_hz != SAMPLE_RATE_HZ:
        raise CheckpointError(
            f"the codec {codec.name} works at {codec.sample_rate_hz} Hz, not at {SAMPLE_RATE_HZ} Hz"
        )
    return _save(_encode_rows(utterances, codec, progress), output, codec, manifest.name)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise UserError unless `output` is new, empty, or nothing but a prepared folder to be overwritten."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{output} is not empty; give another folder, or --overwrite")
    if not (output / CARD_NAME).is_file():
        raise UserError(f"{output} is no prepared dataset and is not overwritten; give another folder")
    strangers = [
        path.name for path in output.iterdir() if path.name not in OWN_NAMES and path.suffix != ".arrow"
    ]
    if strangers:
        raise UserError(
            f"{output} holds {', '.join(sorted(strangers))} too; move that, or give another folder"
        )


def _check_recordings(utterances: Sequence[Utterance], problems: list[Problem], progress: Progress) -> None:
    """Every problem of every row, those of its recordings included, raised together."""
    for utterance in progress(utterances, "checking recordings"):
        for path in (utterance.audio, *(clip.audio for clip in utterance.clips)):
            try:
                read_audio(path)
            except AudioError as error:
                what = f"{path} {error.what}"
                problems.append(Problem(utterance.file, utterance.line, what, error.what_to_do))
    if problems:
        raise ManifestError(sorted(problems, key=lambda problem: problem.line))


def build_features() -> "Features":
    """The columns of a prepared dataset.

    What stands before the target in the prompt, references first and then earlier turns, lies end to end in
    ``context_codes``; ``context_frames`` and ``context_texts`` have one entry a clip. Flat columns, since nested ones
    read many times slower.
    """
    from datasets import Features, Sequence, Value

    text, codes = Value("string"), Sequence(Value("uint16"))
    return Features(
        utterance_id=text,
        text=text,
        speaker=text,
        language=text,
        scene=text,
        task=text,
        codes=codes,
        num_frames=Value("int32"),
        num_references=Value("int32"),
        context_texts=Sequence(text),
        context_frames=Sequence(Value("int32")),
        context_codes=codes,
        duration_seconds=Value("float32"),
        reward=Value("float32"),
        text_changes=Sequence(text),
    )


def _encode_rows(utterances: Sequence[Utterance], codec: Codec, progress: Progress) -> dict[str, list[Any]]:
    rows = [_encode_row(utterance, codec) for utterance in progress(utterances, "encoding")]
    return {name: [row[name] for row in rows] for name in build_features()}


def _encode_row(utterance: Utterance, codec: Codec) -> dict[str, Any]:
    codes, num_frames, duration_seconds = _encode_file(utterance.audio, codec)
    context = [_encode_file(clip.audio, codec)[:2] for clip in utterance.clips]
    return {
        "utterance_id": utterance.utterance_id,
        "text": utterance.text,
        "speaker": utterance.speaker,
        "language": utterance.language,
        "scene": utterance.scene,
        "task": utterance.task,
        "codes": codes,
        "num_frames": num_frames,
        "num_references": len(utterance.references),
        "context_texts": [clip.text for clip in utterance.clips],
        "context_frames": [num_frames for _, num_frames in context],
        "context_codes": np.concatenate([np.empty(0, np.uint16), *(codes for codes, _ in context)]),
        "duration_seconds": duration_seconds,
        "reward": utterance.reward,
        "text_changes": list(utterance.text_changes),
    }


def _encode_file(path: Path, codec: Codec) -> tuple[np.ndarray, int, float]:
    """(codes, flat uint16, F*K), F, seconds."""
    waveform_S = read_audio(path)
    codes_FK = codec.encode(waveform_S)
    if codes_FK.ndim != 2 or codes_FK.shape[1] != codec.num_codebooks or len(codes_FK) == 0:
        raise CheckpointError(
            f"the codec {codec.name} made codes of shape {tuple(codes_FK.shape)} from {path}; "
            f"expected (frames, {codec.num_codebooks})"
        )
    if codes_FK.min() < 0 or codes_FK.max() >= codec.codebook_size:
        raise CheckpointError(
            f"the codec {codec.name} made codes outside [0, {codec.codebook_size}) from {path}"
        )
    return codes_FK.flatten().numpy().astype(np.uint16), len(codes_FK), len(waveform_S) / SAMPLE_RATE_HZ


def write_encoded(
    clips: Sequence[tuple[str, str, np.ndarray]], output: str | Path, *, codec: Codec, source: str
) -> PreparedSummary:
    """Write a prepared folder from clips that are codes already: (utterance id, text, codes (F, K)) each.

    ``source`` stands in the card in the manifest's place. Raises UserError where `output` is not empty.
    """
    output = Path(output)
    check_output(output, overwrite=False)
    columns: dict[str, list[Any]] = {name: [None] * len(clips) for name in build_features()}
    columns["utterance_id"] = [utterance_id for utterance_id, _, _ in clips]
    columns["text"] = [text for _, text, _ in clips]
    columns["codes"] = [codes_FK.flatten().astype(np.uint16) for _, _, codes_FK in clips]
    columns["num_frames"] = [len(codes_FK) for _, _, codes_FK in clips]
    columns["duration_seconds"] = [len(codes_FK) / codec.frames_per_second for _, _, codes_FK in clips]
    columns["task"] = ["single_speaker"] * len(clips)
    columns["num_references"] = [0] * len(clips)
    for name in ("context_texts", "context_frames", "context_codes", "text_changes"):
        columns[name] = [[] for _ in clips]
    return _save(columns, output, codec, source)


def _save(columns: dict[str, list[Any]], output: Path, codec: Codec, source: str) -> PreparedSummary:
    from datasets import Dataset

    with _write_whole(output) as unfinished:
        rows = Dataset.from_dict(columns, features=build_features())
        card = build_card(rows, codec, source)
        rows.save_to_disk(unfinished)
        (unfinished / CARD_NAME).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")
    return PreparedSummary(output, card)


def build_card(rows: "Dataset", codec: Codec, source: str) -> DatasetCard:
    """The card of freshly encoded rows."""
    return DatasetCard(
        codec_name=codec.name,
        codec_fingerprint=codec.fingerprint,
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        frames_per_second=codec.frames_per_second,
        utterances=len(rows),
        tasks=dict(Counter(rows["task"])),
        text_changes=dict(Counter(change for changes in rows["text_changes"] for change in changes)),
        hours=round(sum(rows["duration_seconds"]) / 3600, 6),
        manifest=source,
        higgs_trainer_version=__version__,
    )


@contextmanager
def _write_whole(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output`: takes its place at the end, or vanishes if anything goes wrong."""
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        yield unfinished
        unfinished.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        if output.exists():
            shutil.rmtree(output)
        unfinished.replace(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_prepared(folder: str | Path) -> PreparedDataset:
    """Open a prepared folder.

    Raises:
        CheckpointError: it is not one, or is damaged.
    """
    from datasets import load_from_disk

    folder = Path(folder)
    make_one = f"make one with: higgs-trainer prepare MANIFEST -o {folder}"
    if not (folder / CARD_NAME).is_file():
        raise CheckpointError(f"{folder} is no prepared dataset (no {CARD_NAME}); {make_one}")
    try:
        card = DatasetCard(**json.loads((folder / CARD_NAME).read_text(encoding="utf-8")))
        rows = load_from_disk(folder)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} is damaged or of another version ({error}); {make_one}") from error
    if len(rows) != card.utterances or rows.features != build_features():
        raise CheckpointError(f"the rows of {folder} are not those of its {CARD_NAME}; {make_one}")
    rows = rows.with_format(
        "numpy", columns=["codes", "context_codes", "context_frames"], output_all_columns=True
    )
    return PreparedDataset(rows, card)


def check_codec(card: DatasetCard, codec: Codec) -> None:
    """Raise CheckpointError when the codes behind `card` were not made by `codec`."""
    if card.codec_fingerprint != codec.fingerprint:
        raise CheckpointError(
            f"{card.manifest} was encoded by the codec {card.codec_name} ({card.codec_fingerprint}), but the "
            f"model speaks through {codec.name} ({codec.fingerprint}), where these codes are other sounds; "
            "prepare the data again with --codec and the model's codec"
        )
