"""The interface of a codec, and loading one by name.

A codec converts a waveform to codes and back. There are two: the mel codec (`mel_codec.py`), which is small, runs on a
CPU and needs no download, and the released Higgs Audio v2 tokenizer (`higgs_tokenizer.py`), which is a download and
runs best on a GPU.
"""

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from torch import Tensor

from higgs_trainer.audio.higgs_tokenizer import HiggsTokenizerCodec
from higgs_trainer.audio.mel_codec import CONFIG_FILE, MelCodec
from higgs_trainer.errors import CheckpointError
from higgs_trainer.hub_names import EMBEDDED, check_hub_name, is_hub_subfolder

GIVE_CODEC = (
    f"Give '{EMBEDDED}', the folder of a codec, or a hub name such as bosonai/higgs-audio-v2-tokenizer."
)


class Codec(Protocol):
    """Converts waveforms to codes and back. `codebook_size` counts audio codes, not the two stream tokens."""

    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str | None:
        """The hub commit that was loaded; None for a folder."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the weights. The same codes mean other sounds under another fingerprint."""
        ...

    @property
    def sample_rate_hz(self) -> int: ...
    @property
    def frames_per_second(self) -> float: ...
    @property
    def num_codebooks(self) -> int: ...
    @property
    def codebook_size(self) -> int: ...

    def encode(self, waveform_S: Tensor) -> Tensor:
        """Encode float32 samples to codes_FK, long, each in [0, codebook_size)."""
        ...

    def encode_batch(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Encode waveforms of any lengths to exactly the codes of `encode`, in the same order."""
        ...

    def decode(self, codes_FK: Tensor) -> Tensor:
        """Decode long codes to waveform_S, float32."""
        ...


def load_codec(name: str | Path) -> Codec:
    """Load a codec: "embedded", the folder of either codec, or the hub name of the released tokenizer.

    A hub name is `owner/name`, or `owner/name/folder` for a codec in a folder of a repository, such as
    k2-fsa/OmniVoice/audio_tokenizer.

    Raises:
        CheckpointError: there is no such codec, or a library that it needs is missing.
    """
    if str(name) == EMBEDDED:
        with as_file(files("higgs_trainer.audio") / "embedded_codec") as folder:
            return _load_mel_codec(folder)
    folder = Path(name)
    if (folder / CONFIG_FILE).is_file():
        return _load_mel_codec(folder)
    if not folder.is_dir():
        if not is_hub_subfolder(name):
            check_hub_name(name, known=[EMBEDDED], more=GIVE_CODEC)
    elif not (folder / "config.json").is_file():
        raise CheckpointError(f"{name} contains no codec ({CONFIG_FILE} or config.json). {GIVE_CODEC}")
    return HiggsTokenizerCodec.from_pretrained(name)


def _load_mel_codec(folder: Path) -> Codec:
    try:
        return MelCodec.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"the codec in {folder} is damaged ({error}). Copy the folder again."
        ) from error
