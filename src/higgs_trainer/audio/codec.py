"""The interface of a codec, and loading one by name.

A codec converts a waveform to codes and back. There are two: the mel codec (`mel_codec.py`), which is small, runs on a
CPU and needs no download, and the released Higgs Audio v2 tokenizer (`HiggsTokenizerCodec`), which is a download and
runs best on a GPU.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from higgs_trainer.audio.mel_codec import CONFIG_FILE, MelCodec
from higgs_trainer.errors import CheckpointError, list_first
from higgs_trainer.hub_names import check_hub_name
from higgs_trainer.printable import join_lines
from higgs_trainer.tensors import list_not_finite

EMBEDDED = "embedded"
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


def pad_waveform(waveform_S: Tensor, num_samples: int) -> Tensor:
    """Append silence up to `num_samples`."""
    return torch.nn.functional.pad(waveform_S, (0, num_samples - len(waveform_S)))


def load_codec(name: str | Path) -> Codec:
    """Load a codec: "embedded", the folder of either codec, or the hub name of the released tokenizer.

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


class HiggsTokenizerCodec:
    """The released tokenizer: a thin wrapper around transformers' `HiggsAudioV2TokenizerModel`."""

    def __init__(self, model: Any, name: str) -> None:
        self.name = name
        self._model = model.eval()
        self.sample_rate_hz: int = model.config.sample_rate
        self.codebook_size: int = model.config.codebook_size
        self.frames_per_second = float(model.quantizer.frame_rate)
        self.revision: str | None = getattr(model.config, "_commit_hash", None)
        self._frame_samples = round(self.sample_rate_hz / self.frames_per_second)
        # `model.encode` uses the last bandwidth by default.
        widest = model.config.target_bandwidths[-1]
        self.num_codebooks: int = model.quantizer.get_num_quantizers_for_bandwidth(widest)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "HiggsTokenizerCodec":
        """Load from a folder or the hub, onto a GPU if there is one.

        Raises:
            CheckpointError: torchaudio is not installed, or the folder or hub name cannot be loaded.
        """
        if find_spec("torchaudio") is None:
            raise CheckpointError(
                f"the codec {name} needs torchaudio. Install the version that matches torch: pip install torchaudio"
            )
        from transformers import HiggsAudioV2TokenizerModel

        try:
            model = HiggsAudioV2TokenizerModel.from_pretrained(name, use_safetensors=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"the codec {name} cannot be loaded ({join_lines(error)}). Check its name and your "
                "access, or copy it again."
            ) from error
        if bad := list_not_finite(model.state_dict()):
            raise CheckpointError(
                f"the codec {name} has weights that are not finite: {list_first(bad)}. Copy it again."
            )
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), str(name))

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for key, weight in sorted(self._model.state_dict().items()):
            digest.update(key.encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode(self, waveform_S: Tensor) -> Tensor:
        """Encode float32 samples to codes_FK, long, on the CPU.

        Silence fills the last frame, as in transformers' feature extractor, which pads to a multiple of the hop length.
        """
        return self.encode_batch([waveform_S])[0]

    @torch.no_grad()
    def encode_batch(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Encode waveforms of equally many frames together. Padding to another length would change the codes."""
        by_num_frames: dict[int, list[int]] = {}
        for index, waveform_S in enumerate(waveforms):
            by_num_frames.setdefault(math.ceil(len(waveform_S) / self._frame_samples), []).append(index)
        codes: dict[int, Tensor] = {}
        for num_frames, indices in by_num_frames.items():
            batch_BS = torch.stack(
                [pad_waveform(waveforms[index], num_frames * self._frame_samples) for index in indices]
            )
            codes_BKF = self._model.encode(batch_BS[:, None].to(self._model.device)).audio_codes
            codes_BFK = codes_BKF.transpose(1, 2).contiguous().long().cpu()
            codes.update(zip(indices, codes_BFK, strict=True))
        return [codes[index] for index in range(len(waveforms))]

    @torch.no_grad()
    def decode(self, codes_FK: Tensor) -> Tensor:
        """Decode long codes to waveform_S, float32, on the CPU."""
        codes_1KF = codes_FK.T[None].contiguous().to(self._model.device)
        waveform_S: Tensor = self._model.decode(codes_1KF).audio_values[0, 0].float().cpu()
        return waveform_S
