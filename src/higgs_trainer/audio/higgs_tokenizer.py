"""The released Higgs Audio v2 tokenizer as a codec: a thin wrapper around transformers' `HiggsAudioV2TokenizerModel`.

A codec with other weights than those of its file encodes every sound to noise, and nothing in the training shows it. So
loading refuses weights that are missing, left over or not finite, and then encodes a test sound.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from higgs_trainer.audio.tokenizer_class import load_tokenizer_class
from higgs_trainer.errors import CheckpointError, list_first
from higgs_trainer.hub_names import is_hub_subfolder
from higgs_trainer.printable import join_lines
from higgs_trainer.tensors import list_not_finite

OTHER_SOURCE = "k2-fsa/OmniVoice/audio_tokenizer"
"""A folder of another repository that is said to have the same codec."""
FEWEST_CODES = 4
"""Codes that each codebook must use for the test sound of 25 frames. A codec without its weights uses one."""


class HiggsTokenizerCodec:
    """The released tokenizer."""

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
            CheckpointError: the folder or hub name cannot be loaded, its weights are not those of this class, or a test
                sound becomes the same codes everywhere.
        """
        try:
            model, loaded = load_tokenizer_class().from_pretrained(
                **_split_subfolder(name), use_safetensors=True, output_loading_info=True
            )
        except (ImportError, OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"the codec {name} cannot be loaded ({join_lines(error)}). Check its name and your "
                "access, or copy it again."
            ) from error
        _check_weights(name, model, loaded)
        codec = cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), str(name))
        codec._check_codes()
        return codec

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for key, weight in sorted(self._model.state_dict().items()):
            digest.update(key.encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode(self, waveform_S: Tensor) -> Tensor:
        """Encode float32 samples to codes_FK, long, on the CPU.

        Silence fills the last frame. transformers' processor does not fill it, because the hop length of the released
        feature extractor is 1: where a length is no multiple of a frame, the codes of the last frames may differ.
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
                [_pad(waveforms[index], num_frames * self._frame_samples) for index in indices]
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

    def _check_codes(self) -> None:
        codes_FK = self.encode(_build_test_sound(self.sample_rate_hz))
        used = [len(codes_F.unique()) for codes_F in codes_FK.T]
        if min(used) < FEWEST_CODES:
            raise CheckpointError(
                f"the codec {self.name} encodes a test sound of {len(codes_FK)} frames with only {min(used)} different "
                f"codes in codebook {used.index(min(used))}, so its weights are not those of a codec. Download it "
                f"again, or give {OTHER_SOURCE}."
            )


def _split_subfolder(name: str | Path) -> dict[str, Any]:
    """Return the arguments that name a folder, a repository, or a folder in a repository to `from_pretrained`."""
    if Path(name).is_dir() or not is_hub_subfolder(name):
        return {"pretrained_model_name_or_path": name}
    owner, repository, subfolder = str(name).split("/", 2)
    return {"pretrained_model_name_or_path": f"{owner}/{repository}", "subfolder": subfolder}


def _check_weights(name: str | Path, model: Any, loaded: dict[str, Any]) -> None:
    """Raise `CheckpointError` unless the file had exactly the weights of the model, and all are finite."""
    for problem, keys in (
        ("are missing", loaded["missing_keys"]),
        ("have another shape", [key[0] for key in loaded["mismatched_keys"]]),
        ("are not part of a codec", loaded["unexpected_keys"]),
    ):
        if keys:
            raise CheckpointError(
                f"the file of the codec {name} is not that of a Higgs Audio v2 tokenizer: {len(keys)} weights "
                f"{problem}: {list_first(sorted(keys))}. With random weights, all codes would be noise. Download it "
                f"again, or give {OTHER_SOURCE}."
            )
    if bad := list_not_finite(model.state_dict()):
        raise CheckpointError(
            f"the codec {name} has weights that are not finite: {list_first(bad)}. Copy it again."
        )


def _build_test_sound(sample_rate_hz: int) -> Tensor:
    """Build waveform_S of one second: a tone that rises from 100 to 4,000 Hz, with two overtones."""
    times_S = torch.arange(sample_rate_hz) / sample_rate_hz
    phase_S = 2 * math.pi * (100 * times_S + 3_900 / 2 * times_S**2)
    return sum((0.2 / k * torch.sin(k * phase_S) for k in (1, 2, 3)), torch.zeros(()))


def _pad(waveform_S: Tensor, num_samples: int) -> Tensor:
    """Append silence up to `num_samples`."""
    return torch.nn.functional.pad(waveform_S, (0, num_samples - len(waveform_S)))
