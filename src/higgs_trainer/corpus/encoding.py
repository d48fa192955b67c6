"""Accepted recordings -> codes, each once: in batches of equal length, dealt out to processes, kept at once."""

import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import Decoded, decode_file, to_waveform
from higgs_trainer.audio.loudness import check_loudness_library, normalize_loudness
from higgs_trainer.corpus.code_store import CodeStore
from higgs_trainer.corpus.inspection import Progress
from higgs_trainer.corpus.measurements import hash_content
from higgs_trainer.corpus.work_directory import ROWS, open_table_file
from higgs_trainer.distributed import Processes
from higgs_trainer.errors import AudioError, CheckpointError

FORMAT = 1  # of everything between a file and its codes; a change makes old codes unknown


@dataclass(frozen=True)
class Encoder:
    """A codec and what is done to a waveform before it. Equal `settings`, equal codes."""

    codec: Codec
    loudness_lufs: float | None = None

    def __post_init__(self) -> None:
        if self.loudness_lufs is not None:
            check_loudness_library()

    @property
    def settings(self) -> str:
        return json.dumps([FORMAT, self.codec.fingerprint, self.loudness_lufs])

    def load_waveform(self, path: str, content_hash: str) -> Tensor:
        """waveform_S of a file that was measured before.

        Raises:
            AudioError: the file is another one now.
        """
        decoded: Decoded = decode_file(path)
        if hash_content(decoded) != content_hash:
            raise AudioError(
                path, "was changed after it was checked", "Run again when no program writes to it."
            )
        waveform_S = to_waveform(decoded)
        return (
            waveform_S if self.loudness_lufs is None else normalize_loudness(waveform_S, self.loudness_lufs)
        )

    def encode(self, paths: Sequence[str], waveforms: Sequence[Tensor]) -> list[np.ndarray]:
        """Codes of each, (F*K,) uint16, frame after frame.

        Raises:
            CheckpointError: the codec makes something else than it promises.
        """
        codes = self.codec.encode_batch(waveforms)
        for path, codes_FK in zip(paths, codes, strict=True):
            check_codes(codes_FK, self.codec, path)
        return [codes_FK.flatten().numpy().astype(np.uint16) for codes_FK in codes]


def check_codes(codes_FK: Tensor, codec: Codec, path: str) -> None:
    if codes_FK.ndim != 2 or codes_FK.shape[1] != codec.num_codebooks or len(codes_FK) == 0:
        raise CheckpointError(
            f"the codec {codec.name} made codes of shape {tuple(codes_FK.shape)} from {path}; "
            f"expected (frames, {codec.num_codebooks})"
        )
    if codes_FK.min() < 0 or codes_FK.max() >= codec.codebook_size:
        raise CheckpointError(
            f"the codec {codec.name} made codes outside [0, {codec.codebook_size}) from {path}"
        )


@dataclass(frozen=True)
class Pending:
    """A recording to be encoded."""

    content_hash: str
    path: str
    num_frames: int


def plan_batches(
    tables: sqlite3.Connection, frames_per_second: float, *, batch_seconds: float
) -> Iterator[list[Pending]]:
    """Every accepted recording once, the longest first; those of equally many frames together, up to `batch_seconds`.

    The plan follows from the recordings alone, so that all processes make the same one.
    """
    query = """
        SELECT content_hash, MIN(path), seconds FROM recordings
        WHERE number NOT IN (SELECT number FROM problems)
        GROUP BY content_hash ORDER BY seconds DESC, content_hash
    """
    batch: list[Pending] = []
    for content_hash, path, seconds in tables.execute(query):
        num_frames = math.ceil(
            round(seconds * frames_per_second, 6)
        )  # 7 frames last 7.000000000000001 of them
        pending = Pending(content_hash, path, num_frames)
        is_full = (len(batch) + 1) * seconds > batch_seconds
        if batch and (is_full or pending.num_frames != batch[0].num_frames):
            yield batch
            batch = []
        batch.append(pending)
    if batch:
        yield batch


def encode_recordings(
    folder: Path,
    encoder: Encoder,
    store: CodeStore,
    processes: Processes,
    *,
    batch_seconds: float,
    progress: Progress,
) -> int:
    """Encode this process's batches but for what the store holds; returns how many clips it held for all processes."""
    tables = open_table_file(folder / ROWS)
    plan = list(plan_batches(tables, encoder.codec.frames_per_second, batch_seconds=batch_seconds))
    tables.close()
    known = processes.share(lambda: sum(clip.content_hash in store for batch in plan for clip in batch))
    share = plan[processes.index :: processes.count]
    missing = [[clip for clip in batch if clip.content_hash not in store] for batch in share]
    for batch in progress(filter(None, missing), "encoding", sum(map(bool, missing))):
        paths = [clip.path for clip in batch]
        waveforms = [encoder.load_waveform(clip.path, clip.content_hash) for clip in batch]
        store.add([clip.content_hash for clip in batch], encoder.encode(paths, waveforms))
    return known
