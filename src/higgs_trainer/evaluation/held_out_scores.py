"""Judge the held-out sentences that a model generates during training, so that its best checkpoint can be chosen."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import decode_file, to_waveform
from higgs_trainer.evaluation.figures import FIGURES
from higgs_trainer.evaluation.judging import ClipToJudge, Judges, judge_clips
from higgs_trainer.evaluation.sentences import build_row_sentences
from higgs_trainer.evaluation.voices import embed_voices
from higgs_trainer.run_folder import CLIP_INDEX_FILE

METRICS = ("wer", "cer", "similarity", "stopped")


class HeldOutScores:
    """Judge the held-out sentences. Their recordings and voices are read once, for all steps."""

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        codec: Codec,
        judges: Judges,
        *,
        language: str | None = None,
    ) -> None:
        """Read the recordings and embed the voices. ``language`` is the language of rows that name none."""
        self.judges = judges
        self.sentences = build_row_sentences(rows, codec, language=language)
        self.voices = embed_voices(self.sentences, judges.encoder, judges.sample_rate_hz)

    def measure(self, folder: Path) -> dict[str, float]:
        """Judge a folder of clips. The held-out sentences are the last ones in its index.

        Returns:
            `METRICS` by name. A metric without a value for each sentence is left out.
        """
        index = (folder / CLIP_INDEX_FILE).read_text(encoding="utf-8").splitlines()
        generated = [json.loads(line) for line in index[-len(self.sentences) :]]
        clips = [
            ClipToJudge(to_waveform(decode_file(folder / row["audio"])), row["stopped"], row["audio"])
            for row in generated
        ]
        rows = judge_clips("held out", self.sentences, clips, self.voices, self.judges)
        ratios = {name: FIGURES[name](rows) for name in METRICS}
        return {name: ratio.value for name, ratio in ratios.items() if ratio.is_known.all()}
