"""Encode each accepted recording once, in batches of equal length that are distributed to the processes."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import decode_file, to_waveform
from higgs_trainer.audio.loudness import check_loudness_library, normalize_loudness
from higgs_trainer.corpus.measurements import hash_content
from higgs_trainer.corpus.work_directory.code_store import CodeStore
from higgs_trainer.corpus.work_directory.corpus_tables import CorpusTables
from higgs_trainer.corpus.work_directory.directory import WorkDirectory
from higgs_trainer.distributed import Processes
from higgs_trainer.errors import AudioError, CheckpointError
from higgs_trainer.progress import Track

# The version of all steps from a file to its codes. A change makes stored codes unusable.
FORMAT = 1


@dataclass(frozen=True)
class Encoder:
    """A codec and the changes to a waveform before it. Equal `settings` give equal codes."""

    codec: Codec
    loudness_lufs: float | None = None

    def __post_init__(self) -> None:
        if self.loudness_lufs is not None:
            check_loudness_library()

    @property
    def settings(self) -> str:
        """Everything that the codes of a recording depend on."""
        return json.dumps([FORMAT, self.codec.fingerprint, self.loudness_lufs])

    def load_waveform(self, path: str, content_hash: str, seconds: float) -> Tensor:
        """Load waveform_S of a file that was measured before and lasted this many seconds.

        Raises:
            AudioError: the file has changed since then.
        """
        remedy = "It was changed after it was checked. Run again when no program writes to it."
        decoded = decode_file(path, max_seconds=seconds + 1, what_to_do=remedy)
        if hash_content(decoded) != content_hash:
            raise AudioError(
                path, "was changed after it was checked", "Run again when no program writes to it."
            )
        waveform_S = to_waveform(decoded)
        if self.loudness_lufs is None:
            return waveform_S
        return normalize_loudness(waveform_S, self.loudness_lufs)

    def encode(self, paths: Sequence[str], waveforms: Sequence[Tensor]) -> list[np.ndarray]:
        """Encode waveforms to codes (F, K), uint16, each.

        Raises:
            CheckpointError: the codec returns codes of another shape or range than it announces.
        """
        codes = self.codec.encode_batch(waveforms)
        for path, codes_FK in zip(paths, codes, strict=True):
            check_codes(codes_FK, self.codec, path)
        return [codes_FK.numpy().astype(np.uint16) for codes_FK in codes]


def check_codes(codes_FK: Tensor, codec: Codec, path: str) -> None:
    """Raise CheckpointError unless the codes have the shape and the range that the codec announces."""
    if codes_FK.ndim != 2 or codes_FK.shape[1] != codec.num_codebooks or len(codes_FK) == 0:
        raise CheckpointError(
            f"the codec {codec.name} encoded {path} to codes of shape {tuple(codes_FK.shape)}, "
            f"expected (frames, {codec.num_codebooks}). Check the codec and its version."
        )
    if codes_FK.min() < 0 or codes_FK.max() >= codec.codebook_size:
        raise CheckpointError(
            f"the codec {codec.name} encoded {path} to codes outside [0, {codec.codebook_size}). "
            "Check the codec and its version."
        )


@dataclass(frozen=True)
class PendingRecording:
    """A recording to encode."""

    content_hash: str
    path: str
    seconds: float
    num_frames: int


def plan_batches(
    tables: CorpusTables, frames_per_second: float, *, batch_seconds: float
) -> Iterator[list[PendingRecording]]:
    """Yield batches of recordings with equally many frames, up to ``batch_seconds`` long, the longest recordings first.

    Each accepted recording is in one batch. The plan depends only on the recordings, so that all processes compute the
    same plan.
    """
    batch: list[PendingRecording] = []
    for content_hash, path, seconds in tables.iterate_accepted_contents():
        # Without rounding, 7 frames could last 7.000000000000001 frames.
        num_frames = math.ceil(round(seconds * frames_per_second, 6))
        pending = PendingRecording(content_hash, path, seconds, num_frames)
        is_full = (len(batch) + 1) * seconds > batch_seconds
        if batch and (is_full or pending.num_frames != batch[0].num_frames):
            yield batch
            batch = []
        batch.append(pending)
    if batch:
        yield batch


def encode_recordings(
    work: WorkDirectory,
    encoder: Encoder,
    store: CodeStore,
    processes: Processes,
    *,
    batch_seconds: float,
    progress: Track,
) -> int:
    """Encode this process's batches, except what the store contains. Return how many recordings it contained."""
    with work.open_tables() as tables:
        plan = list(plan_batches(tables, encoder.codec.frames_per_second, batch_seconds=batch_seconds))
    known = processes.share(lambda: sum(clip.content_hash in store for batch in plan for clip in batch))
    share = plan[processes.index :: processes.count]
    missing = [[clip for clip in batch if clip.content_hash not in store] for batch in share]
    encoded = (clip for batch in missing if batch for clip in _encode_batch(batch, encoder, store))
    for _ in progress(encoded, "encoding", sum(map(len, missing))):
        pass
    return known


def _encode_batch(
    batch: list[PendingRecording], encoder: Encoder, store: CodeStore
) -> list[PendingRecording]:
    """Encode a batch into the store, and return it."""
    paths = [clip.path for clip in batch]
    waveforms = [encoder.load_waveform(clip.path, clip.content_hash, clip.seconds) for clip in batch]
    store.add([clip.content_hash for clip in batch], encoder.encode(paths, waveforms))
    return batch
