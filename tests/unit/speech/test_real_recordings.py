"""A run folder holds recordings to compare its samples with: the references and the recordings of the same texts."""

import json

import torch

from higgs_trainer.audio.files import read_audio
from higgs_trainer.dataset.prepared import read_prepared
from higgs_trainer.dataset.prepared_writer import write_encoded
from higgs_trainer.speech.real_recordings import ComparisonRecording, decode_row, find_rows, write_recordings
from run_folders import tone
from tiny import NUM_CODEBOOKS, ToneCodec, draw_codes, make_row


class LoudCodec:
    """Decode each code to a constant stretch, so that the expected waveform is known."""

    num_codebooks = NUM_CODEBOOKS

    def decode(self, codes_FK):
        return codes_FK.reshape(-1).float().repeat_interleave(100) / 20


def read_index(folder):
    return [json.loads(line) for line in (folder / "_recordings" / "index.jsonl").read_text().splitlines()]


def read_clip(folder, line):
    return read_audio(folder / "_recordings" / line["audio"])


def test_the_first_row_with_a_text_is_found_in_the_order_of_the_sets():
    held_out = [make_row(1, text="one"), make_row(2, text="two", num_frames=7), make_row(3, text="two")]
    train = [make_row(4, text="two"), make_row(5, text="three", num_frames=9)]
    found = find_rows(["three", "two", "a text that no row has", "two"], [held_out, train])
    assert [row["utterance_id"] for row in found] == ["clip-5", "clip-2"]


def test_a_dataset_on_disk_is_searched_too(tmp_path):
    rows = [make_row(seed, text=text) for seed, text in ((1, "one"), (2, "two"))]
    write_encoded(
        [(row["utterance_id"], row["text"], row["codes_FK"].numpy()) for row in rows],
        tmp_path / "prepared",
        codec=ToneCodec(),
        source="test",
    )
    (found,) = find_rows(["two"], [read_prepared(tmp_path / "prepared").rows])
    assert (found["text"], found["codes_FK"].tolist()) == ("two", rows[1]["codes_FK"].tolist())


def test_a_row_is_decoded_after_the_references_in_its_prompt(tmp_path):
    row = make_row(2, text="two", num_frames=7, ref_frames=9)
    write_recordings(tmp_path, decode_row(row, LoudCodec(), with_references=True))
    lines = read_index(tmp_path)
    assert [(line["sentence"], line["kind"], line["text"]) for line in lines] == [
        ("two", "reference", "nine nine"),
        ("two", "recording", "two"),
    ]
    for line, codes_FK in zip(lines, (draw_codes(9, 1002), draw_codes(7, 2)), strict=True):
        torch.testing.assert_close(read_clip(tmp_path, line), LoudCodec().decode(codes_FK), atol=1e-4, rtol=0)
    (alone,) = decode_row(row, LoudCodec(), with_references=False)
    assert alone.kind == "recording"


def test_recordings_of_an_earlier_run_are_replaced(tmp_path):
    write_recordings(tmp_path, [ComparisonRecording("one", "reference", "said there", tone())])
    assert read_index(tmp_path)[0]["text"] == "said there"
    torch.testing.assert_close(read_clip(tmp_path, read_index(tmp_path)[0]), tone(), atol=1e-4, rtol=0)
    write_recordings(tmp_path, [])
    assert [path.name for path in (tmp_path / "_recordings").iterdir()] == ["index.jsonl"]
