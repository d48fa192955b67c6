"""Broken and unusual input: `prepare` rejects it with one message that names file and line, or reads it.

It never causes a traceback, a hang or half a dataset. Row 1 is valid in every manifest; row 2 is the case under test.
"""

import json
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.cli import main
from higgs_trainer.dataset.prepared import read_prepared

HANG_SECONDS = 30
RATE_HZ = 24_000
Build = Callable[[Path], bytes | None]


def noise(seconds: float = 0.5, *, rate_hz: int = RATE_HZ, channels: int = 1, seed: int = 1) -> np.ndarray:
    shape = (round(seconds * rate_hz), channels)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape)


def row(audio: str = "b.wav", text: object = "two", **fields: object) -> bytes:
    return json.dumps({"audio": audio, "text": text, **fields}).encode()


def sound(
    samples: np.ndarray, name: str = "b.wav", rate_hz: int = RATE_HZ, text: str = "two", **options: str
) -> Build:
    """Build a row about a file with these samples."""

    def build(folder: Path) -> bytes:
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, samples, rate_hz, **options)
        return row(name, text)

    return build


def content(make: Callable[[bytes], bytes], name: str = "b.wav", **options: str) -> Build:
    """Build a row about a file whose bytes are derived from those of an audio file."""

    def build(folder: Path) -> bytes:
        soundfile.write(folder / "whole", noise(2), RATE_HZ, **{"format": "WAV", **options})
        (folder / name).write_bytes(make((folder / "whole").read_bytes()))
        return row(name)

    return build


def line(text: str | bytes) -> Build:
    """Build this line, and a valid file `b.wav`."""

    def build(folder: Path) -> bytes:
        soundfile.write(folder / "b.wav", noise(), RATE_HZ)
        soundfile.write(folder / "c.wav", noise(seed=2), RATE_HZ)
        return text.encode() if isinstance(text, str) else text

    return build


def fields(**given: object) -> Build:
    return line(json.dumps({"audio": "b.wav", "text": "two"} | given))


def made(make: Callable[[Path], object], name: str = "b.wav") -> Build:
    """Build a row about what ``make`` creates instead of a file."""

    def build(folder: Path) -> bytes:
        make(folder / name)
        return row(name)

    return build


def whole_manifest(encode: Callable[[str], bytes]) -> Build:
    """Write two valid rows in another encoding."""

    def build(folder: Path) -> None:
        soundfile.write(folder / "b.wav", noise(), RATE_HZ)
        rows = [{"audio": "a.wav", "text": "öne"}, {"audio": "b.wav", "text": "two"}]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "m.jsonl").write_bytes(encode(text))

    return build


def three_hours(path: Path) -> None:
    """Write a sparse WAV file of three hours, which takes no space on the disk."""
    size = 3 * 3600 * RATE_HZ * 2
    header = (
        b"RIFF"
        + struct.pack("<I", 36 + size)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 24000, 48000, 2, 16)
    )
    with path.open("wb") as file:
        file.write(header + b"data" + struct.pack("<I", size))
        file.truncate(44 + size)


def set_rate(rate_hz: int) -> Callable[[bytes], bytes]:
    return lambda wav: wav[:24] + struct.pack("<I", rate_hz) + wav[28:]


def link_outside(path: Path) -> None:
    soundfile.write(path.parent.parent / "outside.wav", noise(), RATE_HZ)
    path.symlink_to(path.parent.parent / "outside.wav")


def copy_as(name: str, text: str, **options: str) -> Build:
    """Build a row about a copy of the recording of row 1."""

    def build(folder: Path) -> bytes:
        samples, _ = soundfile.read(folder / "a.wav", dtype="int16")
        soundfile.write(folder / name, samples, RATE_HZ, **options)
        return row(name, text)

    return build


def bind_socket(path: Path) -> None:
    os.chdir(path.parent)  # a socket's name may not be longer than some hundred characters
    with socket.socket(socket.AF_UNIX) as unbound:
        unbound.bind(path.name)


def broken_reference(folder: Path) -> bytes:
    soundfile.write(folder / "b.wav", noise(), RATE_HZ)
    (folder / "c.wav").write_bytes(b"no sound")
    return row(ref_audio="c.wav", ref_text="three")


def sound_as_manifest(folder: Path) -> None:
    (folder / "a.wav").rename(folder / "m.jsonl")


def write_manifest(content: bytes) -> Build:
    def build(folder: Path) -> None:
        (folder / "m.jsonl").write_bytes(content)

    return build


def unknown_length(wav: bytes) -> bytes:
    return wav[:4] + b"\xff" * 4 + wav[8:40] + b"\xff" * 4 + wav[44:]


def cancelling(seconds: float = 0.5) -> np.ndarray:
    return np.concatenate([noise(seconds), -noise(seconds)], axis=1)


def not_a_number(value: float) -> np.ndarray:
    samples = noise()
    samples[100] = value
    return samples


def hide_length(flac: bytes) -> bytes:
    """Announce no length, as a program does that writes into a pipe."""
    return flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 0, 0]) + flac[26:]


def silence_of_unknown_length(path: Path) -> None:
    """Write three minutes of silence as 20 kB of FLAC, with a header that announces no length."""
    soundfile.write(path, np.zeros(180 * RATE_HZ, np.int16), RATE_HZ, format="FLAC")
    path.write_bytes(hide_length(path.read_bytes()))


def another_reference(text: str, audio: str = "a.wav") -> Build:
    """Build a row with a reference that is the recording of row 1, "one"."""
    return fields(ref_audio=audio, ref_text=text)


@dataclass(frozen=True)
class Case:
    """``message`` is None if the input is read. ``line`` is the line in the message, or 0 for the whole file."""

    build: Build
    message: str | None = None
    line: int = 2


REJECTED = {
    # not audio
    "zero bytes": Case(made(lambda path: path.write_bytes(b"")), "b.wav cannot be read as audio"),
    "text named .wav": Case(
        made(lambda path: path.write_text("hello " * 99)), "b.wav cannot be read as audio"
    ),
    "an HTML page named .mp3": Case(
        made(lambda path: path.write_text("<!doctype html>" * 99), "b.mp3"), "b.mp3 cannot be read"
    ),
    "a pointer of Git LFS": Case(
        made(lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n")), "cannot be read"
    ),
    "random bytes": Case(
        made(lambda path: path.write_bytes(np.random.default_rng(0).bytes(9999))), "cannot be read"
    ),
    "raw samples": Case(
        made(lambda path: path.write_bytes(bytes(9999)), "b.raw"), "b.raw cannot be read as audio"
    ),
    # not a file
    "missing": Case(lambda folder: row(), '"audio" does not exist: b.wav'),
    "a folder": Case(made(Path.mkdir), '"audio" is a folder, not a file: b.wav'),
    "a pipe": Case(made(os.mkfifo), '"audio" is a pipe, not a file: b.wav'),
    "a socket": Case(made(bind_socket), '"audio" is a socket, not a file: b.wav'),
    "a device": Case(
        lambda folder: row("/dev/zero"), '"audio" is outside the folder of the manifest: /dev/zero'
    ),
    "a link to a device": Case(
        made(lambda path: path.symlink_to("/dev/zero")), '"audio" is outside the folder of the manifest'
    ),
    "a link out": Case(made(link_outside), '"audio" is outside the folder of the manifest: b.wav'),
    "a path out": Case(
        lambda folder: row("../b.wav"), '"audio" is outside the folder of the manifest: ../b.wav'
    ),
    "a link to nothing": Case(
        made(lambda path: path.symlink_to("none.wav")), '"audio" does not exist: b.wav'
    ),
    "a loop of links": Case(made(lambda path: path.symlink_to("b.wav")), '"audio" is not a valid path'),
    "a NUL in the path": Case(lambda folder: row("b\0.wav"), '"audio" is not a valid path'),
    "a path that is too long": Case(lambda folder: row("b" * 5000), '"audio" is not a valid path'),
    "a URL": Case(
        lambda folder: row("https://example.org/b.wav"), '"audio" does not exist: https://example.org/b.wav'
    ),
    "a file as a folder": Case(lambda folder: row("a.wav/b.wav"), '"audio" does not exist: a.wav/b.wav'),
    # damaged audio
    "half a WAV": Case(content(lambda wav: wav[: len(wav) // 2]), "b.wav ends early, after 1.0"),
    "half a FLAC": Case(
        content(lambda flac: flac[: len(flac) // 2], format="FLAC"), "b.wav cannot be read as audio"
    ),
    "half an MP3": Case(content(lambda mp3: mp3[: len(mp3) // 2], format="MP3"), "b.wav ends early, after"),
    "a header alone": Case(content(lambda wav: wav[:44]), "b.wav ends early, after 0.000 s"),
    "half a header": Case(content(lambda wav: wav[:20]), "b.wav cannot be read as audio"),
    "a rate of 3 MHz": Case(content(set_rate(3_000_000)), "b.wav has a sample rate of 3000000 Hz"),
    "a rate of 1 Hz": Case(content(set_rate(1)), "b.wav "),
    "not a number": Case(
        sound(not_a_number(np.nan), subtype="FLOAT"), "b.wav contains NaN or infinite samples"
    ),
    "infinite": Case(sound(not_a_number(np.inf), subtype="FLOAT"), "b.wav contains NaN or infinite samples"),
    # unusable audio
    "no samples": Case(sound(noise(0)), "b.wav is empty: it has no samples"),
    "one sample": Case(sound(noise(1 / RATE_HZ)), "b.wav lasts 0.000 s, less than 0.1 s"),
    "too short": Case(sound(noise(0.05)), "b.wav lasts 0.050 s, less than 0.1 s"),
    "three hours": Case(made(three_hours), "b.wav lasts 10800.0 s, more than 120 s"),
    "silence": Case(sound(0 * noise()), "b.wav is silent (its peak is -120 dBFS)"),
    "all but silence": Case(sound(noise() * 1e-3), "b.wav is silent (its peak is -66 dBFS)"),
    "clipped": Case(sound(np.clip(noise() * 3, -1, 1)), "b.wav is clipped (33"),
    "integers as floats": Case(sound(noise() * 32767, subtype="FLOAT"), "but full scale is 1"),
    "channels that cancel": Case(sound(cancelling()), "b.wav has two channels that cancel each other"),
    "5.1": Case(sound(noise(channels=6)), "b.wav has 6 channels"),
    "4 kHz": Case(
        sound(noise(rate_hz=4000), rate_hz=4000), "b.wav has a sample rate of 4000 Hz, less than 8000 Hz"
    ),
    # duplicates
    "the same file": Case(
        lambda folder: row("a.wav", "one"), "a.wav is the same recording as in line 1. Remove"
    ),
    "a copy": Case(copy_as("b.wav", "one"), "b.wav is the same recording as in line 1. Remove"),
    "a copy as FLAC": Case(copy_as("b.flac", "one"), "b.flac is the same recording as in line 1. Remove"),
    "a copy with other words": Case(
        copy_as("b.wav", "two"), "line 1, but has other words. Correct the wrong transcript."
    ),
    "its own reference": Case(
        fields(ref_audio="b.wav", ref_text="two"), '"ref_audio" is the same recording as "audio"'
    ),
    "a broken reference": Case(broken_reference, "c.wav cannot be read as audio"),
    "a reference with other words than its row": Case(
        another_reference("two"), "a.wav is the same recording as in line 1, but has other words"
    ),
    "two references of one recording": Case(
        fields(references=[{"audio": "c.wav", "text": "three"}, {"audio": "c.wav", "text": "four"}]),
        "c.wav occurs twice in the row, with other words",
    ),
    "a turn and a reference of one recording": Case(
        fields(ref_audio="c.wav", ref_text="three", turns=[{"audio": "c.wav", "text": "four"}]),
        "c.wav occurs twice in the row, with other words",
    ),
    "64 channels": Case(sound(noise(channels=64)), "b.wav has 64 channels"),
    "long silence": Case(made(silence_of_unknown_length, "b.flac"), "b.flac lasts more than 120 s. Cut it"),
    "FLAC of unknown length": Case(
        content(hide_length, "b.flac", format="FLAC"), "b.flac cannot be read as audio"
    ),
    # text
    "no text": Case(line('{"audio": "b.wav"}'), '"text" is missing'),
    "text null": Case(fields(text=None), '"text" is missing'),
    "text empty": Case(fields(text=""), '"text" is empty'),
    "text of white space": Case(fields(text=" \t\u3000\n"), '"text" is empty'),
    "text without a visible character": Case(fields(text="\u200b\u200d"), '"text" contains no word'),
    "text of emoji": Case(fields(text="🙂🙃"), '"text" contains no word'),
    "text a number": Case(fields(text=2), '"text" is of type int, not a string'),
    "text a list": Case(fields(text=["two"]), '"text" is of type list, not a string'),
    "text of 10 MB": Case(fields(text="two " * 2_500_000), '"text" has 10000000 characters'),
    "a NUL in the text": Case(fields(text="tw\0o"), '"text" contains U+0000'),
    "a quote of Windows-1252 in Latin-1": Case(fields(text="it\x92s"), '"text" contains U+0092'),
    "a replacement character": Case(fields(text="caf\ufffd"), '"text" contains U+FFFD'),
    "half a surrogate pair": Case(
        line('{"audio": "b.wav", "text": "two \\ud83d"}'), '"text" contains half of a surrogate pair'
    ),
    "a special token": Case(
        fields(text="two <|audio_eos|>"), '"text" contains the special token "<|audio_eos|>"'
    ),
    "a number of a speaker with a zero": Case(
        fields(text="[SPEAKER01] two"), '"text" contains "[SPEAKER01]", which the model does not know'
    ),
    "a speaker in small letters": Case(
        fields(text="[speaker 1] two"), '"text" contains "[speaker 1]", which the model does not know'
    ),
    "speaker 100": Case(fields(text="[SPEAKER100] two"), "from [SPEAKER0] to [SPEAKER99]."),
    "a speaker of 5,000 digits": Case(
        fields(text=f"[SPEAKER{'9' * 5000}] two"), "from [SPEAKER0] to [SPEAKER99]."
    ),
    "an unassigned code point": Case(fields(text="two \u0378"), '"text" contains U+0378'),
    "a noncharacter": Case(fields(scene="a \ufffe room"), '"scene" contains U+FFFE'),
    "a special token in a reference": Case(
        fields(ref_audio="c.wav", ref_text="<|eot_id|> x"), '"ref_text" contains the special token'
    ),
    # numbers
    "a reward beyond float32": Case(fields(reward=1e300), '"reward" is 1e+300, which float32 cannot hold'),
    "a reward below float32": Case(fields(reward=-1e-300), '"reward" is -1e-300, which float32 cannot'),
    "a reward of 30 digits": Case(fields(reward=10**39), '"reward" is 1e+39, which float32 cannot hold'),
    "a reward of 5,000 digits": Case(
        line('{"audio": "b.wav", "text": "two", "reward": ' + "9" * 5000 + "}"),
        "a number has 5000 characters, more than 40",
    ),
    "a reward of true": Case(fields(reward=True), '"reward" is of type bool'),
    "an infinite reward": Case(
        line('{"audio": "b.wav", "text": "two", "reward": 1e999}'), '"reward" is inf, which float32 cannot'
    ),
    "a seed of 64 bits": Case(fields(seed=2**63), f'"seed" is {2**63}'),
    # too much
    "a thousand fields": Case(
        fields(**{f"key{i}": 1 for i in range(1000)}), "the row has 1002 fields, more than 100"
    ),
    "a long field": Case(fields(**{"k" * 100_000: 1}), "(100000 characters)"),
    "a thousand turns": Case(
        fields(turns=[{"audio": "c.wav", "text": "x"}] * 1001), '"turns" has 1001 clips'
    ),
    "a line of 17 MB": Case(line("x" * 17_000_000), "the line is longer than 16 MiB, so it is not a row"),
    # JSON
    "half a line": Case(line('{"audio": "b.wav", "te'), "not JSON"),
    "a comma too many": Case(line('{"audio": "b.wav", "text": "two",}'), "not JSON"),
    "single quotes": Case(line("{'audio': 'b.wav', 'text': 'two'}"), "not JSON"),
    "a list": Case(line('["b.wav", "two"]'), "the line is a list, not an object"),
    "two objects": Case(line('{"audio": "b.wav", "text": "two"} {}'), "not JSON"),
    "a key twice": Case(
        line('{"audio": "b.wav", "text": "two", "text": "three"}'), '"text" is given 2 times'
    ),
    "NaN in JSON": Case(line('{"audio": "b.wav", "text": "two", "reward": NaN}'), "NaN is not JSON"),
    "deeply nested": Case(line("[" * 100_000), "not JSON"),
    "a NUL in the file": Case(line(b'{"audio": "b.wav", "text": "tw\x00o"}'), "contains NUL bytes", 0),
    "Latin-1": Case(line('{"audio": "b.wav", "text": "zwölf"}'.encode("latin-1")), "not UTF-8"),
    "an unknown field": Case(fields(speeker="s"), 'unknown field "speeker". Did you mean "speaker"?'),
    "a field in capitals": Case(fields(Text="two"), 'unknown field "Text"'),
    # manifests
    "an empty manifest": Case(write_manifest(b""), "there are no rows", 0),
    "UTF-16 without a mark": Case(
        whole_manifest(lambda text: text.encode("utf-16-le")), "contains NUL bytes", 0
    ),
    "line ends of old Macs": Case(
        whole_manifest(lambda text: text.replace("\n", "\r").encode()), "contains a carriage return", 1
    ),
    "a sound as the manifest": Case(sound_as_manifest, "contains NUL bytes", 0),
    "a folder without data": Case(
        lambda folder: (folder / "m.jsonl").mkdir(), "m.jsonl contains no recordings. Known formats", 0
    ),
    "a pipe as the manifest": Case(
        lambda folder: os.mkfifo(folder / "m.jsonl"),
        "m.jsonl is a pipe. Give a file or a folder with data.",
        0,
    ),
    "no manifest": Case(lambda folder: (folder / "a.wav").unlink(), "cannot be read", 0),
}

ACCEPTED = {
    "an MP3 named .wav": content(lambda mp3: mp3, format="MP3"),
    "Opus": content(lambda opus: opus, "b.opus", format="OGG", subtype="OPUS"),
    "AIFF": content(lambda aiff: aiff, "b.aiff", format="AIFF"),
    "8 kHz": sound(noise(rate_hz=8000), rate_hz=8000),
    "192 kHz": sound(noise(rate_hz=192_000), rate_hz=192_000),
    "384 kHz": sound(noise(rate_hz=384_000), rate_hz=384_000),
    "a reference with other punctuation": another_reference("One!"),
    "two speakers": fields(text="[SPEAKER0] two\n[SPEAKER1] three"),
    "a reward": fields(reward=-1.5e30),
    "a reward of zero": fields(reward=0),
    "8 bit": sound(noise(), subtype="PCM_U8"),
    "24 bit": sound(noise(), subtype="PCM_24"),
    "float": sound(noise(), subtype="FLOAT"),
    "mu-law": sound(noise(), subtype="ULAW"),
    "stereo": sound(noise(channels=2)),
    "a length that was not known": content(unknown_length),
    "bytes after the end": content(lambda wav: wav + b"LIST" + struct.pack("<I", 4) + b"INFO"),
    "a name with everything": sound(noise(), "sub dir/%20 ü 🙂 'b'.WAV"),
    "emoji and words": fields(text="two 🙂"),
    "combining marks": fields(text="cafe\u0301"),
    "right to left": fields(text="\u200fשתיים اثنان"),
    "a script without spaces": fields(text="二つです"),
    "a line separator": fields(text="two\u2028three"),
    "a control tag": fields(text="two [laugh] <SE>[Applause]</SE>"),
    "a tag alone": fields(text="[laugh]"),
    "a surrogate pair": line('{"audio": "b.wav", "text": "two \\ud83d\\ude42"}'),
    "blank lines": line(b'\n  \n{"audio": "b.wav", "text": "two"}\n\n'),
    "a byte order mark": whole_manifest(lambda text: text.encode("utf-8-sig")),
    "CRLF": whole_manifest(lambda text: text.replace("\n", "\r\n").encode()),
    "UTF-16": whole_manifest(lambda text: text.encode("utf-16")),
    "no line end": whole_manifest(lambda text: text.rstrip().encode()),
}


@pytest.fixture
def no_hang() -> Iterator[None]:
    def stop(*_: object) -> None:
        pytest.fail(f"no result within {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def codec_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec")
    MelCodec.fit([torch.randn(24_000) * 0.1], codebook_size=3, seed=0, name="tiny").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, no_hang: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder `data/` with a valid recording `a.wav`."""
    monkeypatch.chdir(tmp_path)  # one of the cases changes it
    (tmp_path / "data").mkdir()
    soundfile.write(tmp_path / "data" / "a.wav", noise(seed=0), RATE_HZ)
    return tmp_path / "data"


def run_prepare(folder: Path, codec_folder: Path, build: Build) -> int:
    """Run `prepare`, and return its exit code."""
    if (second := build(folder)) is not None:
        (folder / "m.jsonl").write_bytes(row("a.wav", "one") + b"\n" + second + b"\n")
    output = ["-o", str(folder.parent / "out"), "--codec", str(codec_folder)]
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", str(folder / "m.jsonl"), *output])
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("case", REJECTED.values(), ids=REJECTED)
def test_rejected_input(
    case: Case, folder: Path, codec_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_prepare(folder, codec_folder, case.build) == 2
    captured = capsys.readouterr()
    message = captured.err[captured.err.index("error: ") :]
    place = f"{folder / 'm.jsonl'}:{case.line}: " if case.line else str(folder / "m.jsonl")
    assert place in message
    assert case.message is not None
    assert case.message in message
    assert message.count(str(folder / "m.jsonl")) == 1, "one problem is reported once"
    assert len(message) < 1000
    assert "Traceback" not in captured.err
    assert captured.out == ""
    left = {path.name for path in folder.parent.iterdir()}
    assert left <= {"data", "outside.wav"}


@pytest.mark.parametrize("build", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted_input(
    build: Build, folder: Path, codec_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_prepare(folder, codec_folder, build) == 0, capsys.readouterr().err
    prepared = read_prepared(folder.parent / "out")
    assert prepared.card.utterances == 2
    seconds = [row["duration_seconds"] for row in prepared.rows]
    assert seconds[0] == pytest.approx(0.5)
    assert seconds[1] == pytest.approx(0.5, abs=0.01) or seconds[1] == pytest.approx(2, abs=0.05)


def test_the_list_has_at_least_sixty_cases() -> None:
    assert len(REJECTED) + len(ACCEPTED) >= 60
