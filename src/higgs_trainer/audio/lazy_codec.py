"""Open the codec of a training run without reading its weights, which only samples need.

Training compares the fingerprint of the codec with that of its data. A hash of the released codec takes its 0.8 GB of
weights, so it is remembered until a file of the codec changes; and only the first process computes it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from higgs_trainer.audio.codec import Codec, load_codec
from higgs_trainer.audio.mel_codec import CONFIG_FILE
from higgs_trainer.distributed import find_processes
from higgs_trainer.file_memory import list_states, recall, remember
from higgs_trainer.hub_names import EMBEDDED, is_hub_name, is_hub_subfolder

KIND = "codecs"
"""The name of what is remembered of codecs."""
FORMAT = 1
"""Must be raised if the fingerprint of a codec is computed in another way."""


@dataclass(frozen=True)
class CodecFacts:
    """What a codec says of itself: the attributes of `Codec` but its name."""

    revision: str | None
    fingerprint: str
    sample_rate_hz: int
    frames_per_second: float
    num_codebooks: int
    codebook_size: int


class LazyCodec:
    """A codec whose weights are read when it encodes or decodes for the first time.

    Args:
        source: the folder or hub name to load the weights from.
    """

    def __init__(self, name: str, source: str, facts: CodecFacts) -> None:
        self.name = name
        self.source = source
        self.revision = facts.revision
        self.fingerprint = facts.fingerprint
        self.sample_rate_hz = facts.sample_rate_hz
        self.frames_per_second = facts.frames_per_second
        self.num_codebooks = facts.num_codebooks
        self.codebook_size = facts.codebook_size

    @cached_property
    def _codec(self) -> Codec:
        return load_codec(self.source)

    def encode(self, waveform_S: Tensor) -> Tensor:
        """Encode float32 samples to codes_FK."""
        return self._codec.encode(waveform_S)

    def encode_batch(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Encode waveforms of any lengths."""
        return self._codec.encode_batch(waveforms)

    def decode(self, codes_FK: Tensor) -> Tensor:
        """Decode codes to waveform_S."""
        return self._codec.decode(codes_FK)


def open_codec(name: str | Path) -> Codec:
    """Open a codec as `load_codec` does, but without its weights if they are large. Every process must call this.

    Raises:
        CheckpointError: as `load_codec`, if nothing is remembered of the codec.
    """
    return find_processes().share(lambda: _open(str(name)))


def _open(name: str) -> Codec:
    if name == EMBEDDED or (Path(name) / CONFIG_FILE).is_file():
        # Small, and its files have its fingerprint.
        return load_codec(name)
    facts = _recall_facts(name)
    if facts is None:
        codec = load_codec(name)
        facts = CodecFacts(**{field.name: getattr(codec, field.name) for field in fields(CodecFacts)})
        _remember_facts(name, facts)
    # The same files, also if the hub has newer ones by then.
    return LazyCodec(name, str(_find_files(name) or name), facts)


def _recall_facts(name: str) -> CodecFacts | None:
    folder = _find_files(name)
    if folder is None:
        return None
    memory = recall(KIND, folder)
    if (memory.get("format"), memory.get("files")) != (FORMAT, list_states(_list_files(folder))):
        return None
    try:
        return CodecFacts(**memory["facts"])
    except (LookupError, TypeError):
        return None


def _remember_facts(name: str, facts: CodecFacts) -> None:
    folder = _find_files(name)
    states = None if folder is None else list_states(_list_files(folder))
    if folder is not None and states is not None:
        values: dict[str, Any] = {"format": FORMAT, "files": states, "facts": asdict(facts)}
        remember(KIND, folder, values)


def _list_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def _find_files(name: str) -> Path | None:
    """Return the folder of a codec, or that of its last download from the hub."""
    if Path(name).is_dir():
        return Path(name)
    if not (is_hub_name(name) or is_hub_subfolder(name)):
        return None
    owner, repository, *subfolder = name.split("/", 2)
    found = try_to_load_from_cache(f"{owner}/{repository}", "/".join([*subfolder, "config.json"]))
    return Path(found).parent if isinstance(found, str) else None
