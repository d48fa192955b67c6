"""How well held-out sentences are spoken while a model trains: metrics by which its best checkpoint is chosen."""

import json
from pathlib import Path

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import decode_file, to_waveform
from higgs_trainer.evaluation.comparison import FIGURES
from higgs_trainer.evaluation.judging import Clip, Judges, judge_clips
from higgs_trainer.evaluation.sentences import embed_voices, read_sentences
from higgs_trainer.run_folder import CLIP_INDEX_FILE

METRICS = ("wer", "cer", "similarity", "stopped")


class HeldOutScores:
    """The first ``count`` rows of a prepared, held-out set, and the judges of what is spoken of them."""

    def __init__(self, prepared: Path, codec: Codec, count: int, judges: Judges) -> None:
        self.judges = judges
        self.sentences = read_sentences(prepared, codec, count=count)
        self.voices = embed_voices(self.sentences, judges.encoder, judges.sample_rate_hz)

    def measure(self, folder: Path) -> dict[str, float]:
        """`METRICS` of a folder of clips whose last ones are the sentences; what nobody can say is left out."""
        index = (folder / CLIP_INDEX_FILE).read_text(encoding="utf-8").splitlines()
        spoken = [json.loads(line) for line in index[-len(self.sentences) :]]
        clips = [
            Clip(to_waveform(decode_file(folder / row["audio"])), row["stopped"], row["audio"])
            for row in spoken
        ]
        rows = judge_clips("held out", self.sentences, clips, self.voices, self.judges)
        ratios = {name: FIGURES[name](rows) for name in METRICS}
        return {name: ratio.value for name, ratio in ratios.items() if ratio.is_known.all()}
