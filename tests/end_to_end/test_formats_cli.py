"""`prepare` gives the same rows, codes and tasks for one corpus in every format."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from datasets import Audio, Dataset

from higgs_trainer.audio.files import write_audio
from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.cli import main
from higgs_trainer.dataset.prepared import read_prepared

TEXTS = {"a": "one two", "b": "three"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create recordings of noise of 0.5 and 0.3 seconds, and a codec."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    for name, num_samples in (("a", 12_000), ("b", 7_200)):
        write_audio(folder / "wavs" / f"{name}.wav", torch.rand(num_samples, generator=generator) - 0.5)
    noise_S = torch.randn(24_000, generator=generator) * 0.1
    MelCodec.fit([noise_S], codebook_size=5, seed=0, name="tiny").save_pretrained(folder / "codec")
    return folder


def write_lines(path: Path, *lines: object) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def write_json_lines(folder: Path) -> Path:
    return write_lines(folder / "m.jsonl", *({"audio": f"wavs/{n}.wav", "text": t} for n, t in TEXTS.items()))


def write_csv(folder: Path) -> Path:
    return write_lines(folder / "m.csv", "text,audio", *(f"{t},wavs/{n}.wav" for n, t in TEXTS.items()))


def write_absolute(folder: Path) -> Path:
    return write_lines(
        folder / "m.txt", "audio_file|text", *(f"{folder}/wavs/{n}.wav|{t}" for n, t in TEXTS.items())
    )


def write_ljspeech(folder: Path) -> Path:
    return write_lines(folder / "metadata.csv", *(f"{n}|{t.upper()}|{t}" for n, t in TEXTS.items()))


def write_texts(folder: Path) -> Path:
    for name, text in TEXTS.items():
        (folder / "wavs" / f"{name}.txt").write_text(text)
    return folder / "wavs"


def write_train_higgs_audio(folder: Path) -> Path:
    write_texts(folder)
    samples = [
        {"audio_file": f"{n}.wav", "transcript_file": f"{n}.txt", "task_type": "audio_generation"}
        for n in TEXTS
    ]
    (folder / "wavs" / "metadata.json").write_text(json.dumps({"dataset_info": {}, "samples": samples}))
    return folder / "wavs"


def write_ms_swift(folder: Path) -> Path:
    return write_lines(
        folder / "m.jsonl",
        *(
            {"messages": [{"role": "assistant", "content": f"<audio>{t}"}], "audios": [f"wavs/{n}.wav"]}
            for n, t in TEXTS.items()
        ),
    )


def write_dataset(folder: Path) -> Path:
    cells = [{"path": f"{n}.wav", "bytes": (folder / "wavs" / f"{n}.wav").read_bytes()} for n in TEXTS]
    columns: dict[str, list[Any]] = {"audio": cells, "text": list(TEXTS.values())}
    Dataset.from_dict(columns).cast_column("audio", Audio()).save_to_disk(folder / "saved")
    return folder / "saved"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "JSON lines": write_json_lines,
    "table": write_csv,
    "absolute paths": write_absolute,
    "LJSpeech": write_ljspeech,
    "folder of texts": write_texts,
    "train-higgs-audio": write_train_higgs_audio,
    "ms-swift": write_ms_swift,
    "Hugging Face dataset": write_dataset,
}


def prepare(data: Path, folder: Path, *options: str) -> list[dict[str, Any]]:
    arguments = ["prepare", str(data), "-o", str(folder / "out"), "--codec", str(folder / "codec"), *options]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code
    assert not (folder / ".out.unfinished").exists()  # nor any recording that was written out of a dataset
    return list(read_prepared(folder / "out").rows)


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_corpus_in_each_format(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    codec = MelCodec.from_pretrained(folder / "codec")
    rows = prepare(WRITERS[name](folder), folder)
    assert [(row["text"], row["task"]) for row in rows] == [
        (text, "single_speaker") for text in TEXTS.values()
    ]
    assert [len(row["codes_FK"]) for row in rows] == [13, 8]
    for row in rows:
        assert codec.decode(row["codes_FK"]).shape == (len(row["codes_FK"]) * 960,)
    shown = {"JSON lines": None, "absolute paths": "table"}.get(name, name)
    out = capsys.readouterr().out
    assert (f"is read as: {shown}" in out) if shown else ("is read as" not in out)


def test_qwen3_tts_with_the_words_of_its_reference(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    data = write_lines(
        folder / "m.jsonl", {"audio": "wavs/b.wav", "text": "three", "ref_audio": "wavs/a.wav"}
    )
    (folder / "wavs" / "a.txt").write_text("one two")
    (row,) = prepare(data, folder)
    assert (row["task"], list(row["context_texts"]), list(map(len, row["context_codes"]))) == (
        "zero_shot_cloning",
        ["one two"],
        [13],
    )


def test_the_options_reach_the_dataset(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    rows = [
        {"audio": f"wavs/{n}.wav", "text": "[laugh] 2 and 3rd", "speaker": "s", "language": "en"}
        for n in TEXTS
    ]
    data = write_lines(folder / "m.jsonl", *(row | {"reward": 0.5} for row in rows))
    (folder / "tags.json").write_text('{"[laugh]": "<SE>[Laughter]</SE>"}')
    options = ["--expand-numbers", "--tags", str(folder / "tags.json"), "--pair-references", "--seed", "3"]
    first, second = prepare(data, folder, *options)
    assert first["text"] == "<SE>[Laughter]</SE> two and 3rd"
    assert list(first["text_changes"]) == ["tags", "numbers", "digits left"]
    assert (first["reward"], first["task"], first["num_references"]) == (0.5, "zero_shot_cloning", 1)
    assert torch.equal(torch.stack(first["context_codes"]), second["codes_FK"][None])
    assert list(first["context_texts"]) == [second["text"]]
    out = capsys.readouterr().out
    assert "tasks: 2 zero_shot_cloning" in out
    assert "changed in texts: 2 tags, 2 numbers, 2 digits left" in out


def test_a_reference_that_is_the_target_in_another_format(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files have equal samples but different bytes."""
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    samples, rate_hz = soundfile.read(folder / "wavs" / "a.wav", dtype="int16")
    soundfile.write(folder / "copy.flac", samples, rate_hz)
    row = {"audio": "wavs/a.wav", "text": "one two", "ref_audio": "copy.flac", "ref_text": "one two"}
    data = write_lines(folder / "m.jsonl", row)
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", str(data), "-o", str(folder / "out"), "--codec", str(folder / "codec")])
    assert stopped.value.code == 2
    assert "m.jsonl:1:" in (err := capsys.readouterr().err)
    assert "has the same samples as the audio of the row" in err
    (accepted,) = prepare(data, folder, "--allow-own-reference")
    assert torch.equal(torch.stack(accepted["context_codes"]), accepted["codes_FK"][None])
