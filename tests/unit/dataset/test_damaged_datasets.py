"""A prepared dataset that has changed since it was prepared is not used: the file or the row is named."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow
import pytest
from datasets import Dataset, load_from_disk

from higgs_trainer import checksums
from higgs_trainer.dataset import prepared
from higgs_trainer.dataset.content_check import compute_content_hash
from higgs_trainer.dataset.prepared import CARD_NAME, build_features, read_prepared, verify_prepared
from higgs_trainer.dataset.prepared_writer import write_prepared
from higgs_trainer.errors import CheckpointError, DamageError
from higgs_trainer.evaluation.sentences import read_sentences
from higgs_trainer.run_folder import CHECKSUMS_FILE
from higgs_trainer.training.datasets import load_sets
from tiny import NUM_CODES, ToneCodec, make_row, tiny_checkpoint


def write(folder, seeds=(1, 2, 3, 4, 5)):
    rows = []
    for seed in seeds:
        row = make_row(seed, num_frames=3 + seed, ref_frames=seed % 3)
        codes = {"codes_FK": row["codes_FK"].numpy().astype(np.uint16)}
        context = {"context_codes": [clip_FK.numpy().astype(np.uint16) for clip_FK in row["context_codes"]]}
        more = {
            "text_changes": [],
            "reward": None if seed % 2 else seed / 10,
            "language": "en",
            "speaker": None,
        }
        rows.append(row | codes | context | more)
    write_prepared(rows, folder, codec=ToneCodec(), source="rows")
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write(tmp_path_factory.mktemp("original") / "set")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "set")


def find_arrow(folder):
    (path,) = folder.glob("*.arrow")
    return path


def rewrite(change):
    """Return a damage that changes the rows (a list of dicts) and writes them as `datasets` does, with the old card."""

    def damage(folder):
        rows = change(load_from_disk(folder).to_list())
        for name in ("state.json", "dataset_info.json", find_arrow(folder).name):
            (folder / name).unlink()
        Dataset.from_list(rows, features=build_features()).save_to_disk(folder)

    return damage


def set_value(name, value, row=2):
    def change(rows):
        rows[row][name] = value(rows[row][name]) if callable(value) else value
        return rows

    return rewrite(change)


def exchange(*names):
    def change(rows):
        for name in names:
            rows[0][name], rows[3][name] = rows[3][name], rows[0][name]
        return rows

    return rewrite(change)


def flip_a_bit(place):
    def damage(folder):
        path = find_arrow(folder)
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return damage


def edit_card(**values):
    def damage(folder):
        path = folder / CARD_NAME
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


def take_rows_of_another(folder):
    other = write(folder.parent / "other", seeds=(11, 12, 13, 14, 15))
    for name in ("state.json", "dataset_info.json", find_arrow(other).name):
        shutil.copy(other / name, folder / name)


# Changes of rows are found by the hash of the content alone, too: the last word of each is what finds it then.
CONTENT_DAMAGES = {
    "texts exchanged": (exchange("text"), "the rows of .* have changed"),
    "codes exchanged": (exchange("codes", "num_frames", "duration_seconds"), "the rows of .* have changed"),
    "rows in another order": (rewrite(lambda rows: rows[::-1]), "the rows of .* have changed"),
    "rows of another dataset": (take_rows_of_another, "the rows of .* have changed"),
    "one code": (set_value("codes", lambda codes: [codes[0] ^ 1, *codes[1:]]), "the rows of .* have changed"),
    "two codes exchanged": (set_value("codes", lambda codes: codes[::-1]), "the rows of .* have changed"),
    "a reward": (set_value("reward", 0.5), "the rows of .* have changed"),
    "a missing reward": (set_value("reward", None, row=1), "the rows of .* have changed"),
    "a language": (set_value("language", None), "the rows of .* have changed"),
    "a text of a reference": (set_value("context_texts", ["ninenine"], row=1), "the rows of .* have changed"),
    "num_frames": (
        set_value("num_frames", 7),
        r"row 3 \(clip-3\) has codes of another length than its num_frames",
    ),
    "negative num_frames": (set_value("num_frames", -1), r"row 3 .* num_frames"),
    "context_frames": (
        set_value("context_frames", [1], row=1),
        r"row 2 \(clip-2\) has a context of another length",
    ),
    "context_frames that cancel": (
        set_value("context_frames", [3, -1], row=1),
        "row 2 .* context of another length",
    ),
    "a text of a context too many": (
        set_value("context_texts", ["a", "b"], row=1),
        "row 2 .* context of another",
    ),
    "num_references": (set_value("num_references", 2), "row 3 .* context of another length"),
    "no text": (set_value("text", None), "row 3 .* has a column without a value"),
    "no codes": (set_value("codes", None), "row 3 .* has a column without a value"),
    "a code too large": (
        set_value("codes", lambda codes: [*codes[:-1], NUM_CODES]),
        "row 3 .* codes that the codec",
    ),
    "a duration that is infinite": (
        set_value("duration_seconds", float("inf")),
        "row 3 .* not a finite number",
    ),
    "a reward that is infinite": (set_value("reward", float("inf")), "row 3 .* not a finite number"),
    "a row removed": (rewrite(lambda rows: rows[:-1]), "do not match its dataset_card.json"),
    "a row twice": (rewrite(lambda rows: [*rows, rows[0]]), "do not match its dataset_card.json"),
    "another codec": (edit_card(codec_fingerprint="g"), "the rows of .* have changed"),
    "another hash": (edit_card(content_hash="xxh3:0"), "the rows of .* have changed"),
    "another number of codebooks": (edit_card(num_codebooks=4), "row 1 .* num_frames"),
    "a card of another type": (edit_card(num_codebooks="8"), "is damaged or of another version"),
    "a card with another field": (edit_card(colour="red"), "is damaged or of another version .*colour"),
}
FILE_DAMAGES = {
    "first bit": (flip_a_bit(0), "arrow has changed"),
    "bit flipped": (flip_a_bit(0.5), "arrow has changed"),
    "last bit": (flip_a_bit(1), "arrow has changed"),
    "rows deleted": (lambda folder: find_arrow(folder).unlink(), "arrow is missing"),
    "rows emptied": (lambda folder: find_arrow(folder).write_bytes(b""), "arrow has 0 bytes"),
    "card deleted": (lambda folder: (folder / CARD_NAME).unlink(), "dataset_card.json is missing"),
    "state deleted": (lambda folder: (folder / "state.json").unlink(), "state.json is missing"),
    "a foreign file": (lambda folder: (folder / "a.arrow").touch(), "a.arrow was added after"),
    "checksums damaged": (
        lambda folder: (folder / CHECKSUMS_FILE).write_text("{}"),
        "checksums.json is damaged",
    ),
}


def check_refused(folder, message):
    with pytest.raises(CheckpointError, match=message) as raised:
        read_prepared(folder)
    assert "\n" not in str(raised.value)
    assert "higgs-trainer prepare" in str(raised.value)


def test_a_dataset_is_opened_with_and_without_checksums(folder):
    assert len(read_prepared(folder).rows) == 5
    (folder / ".DS_Store").touch()
    (folder / CHECKSUMS_FILE).unlink()
    assert len(read_prepared(folder).rows) == 5
    verify_prepared(folder)


@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_a_damaged_file_is_named(folder, damage):
    change, message = FILE_DAMAGES[damage]
    change(folder)
    check_refused(folder, message)


@pytest.mark.parametrize("damage", CONTENT_DAMAGES)
def test_changed_rows_are_found_by_the_checksums_and_by_the_content(folder, damage):
    change, message = CONTENT_DAMAGES[damage]
    change(folder)
    check_refused(folder, "has changed since it was written|was written with|was added")
    (folder / CHECKSUMS_FILE).unlink()
    check_refused(folder, message)


@pytest.mark.parametrize("place", [0, 0.1, 0.3, 0.5, 0.7, 0.9, 1])
def test_without_checksums_a_flipped_bit_does_not_end_in_a_crash(folder, place):
    """A bit of padding may flip, and does no harm."""
    (folder / CHECKSUMS_FILE).unlink()
    before = [row["text"] for row in read_prepared(folder).rows]
    flip_a_bit(place)(folder)
    try:
        rows = read_prepared(folder).rows
    except CheckpointError:
        return
    assert [row["text"] for row in rows] == before


def test_a_dataset_of_an_earlier_version_is_opened_with_a_warning(folder, caplog):
    (folder / CHECKSUMS_FILE).unlink()
    edit_card(content_hash="0123456789abcdef")(folder)
    assert len(read_prepared(folder).rows) == 5
    assert "was prepared by an earlier version, without checksums.json" in caplog.text
    set_value("num_frames", 7)(folder)
    check_refused(folder, "row 3 .* num_frames")


READERS = {
    "train and check": lambda folder: load_sets([folder], tiny_checkpoint(num_layers=1), ToneCodec()),
    "evaluate": lambda folder: read_sentences(folder, ToneCodec()),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_a_damaged_dataset(folder, reader):
    READERS[reader](folder)
    flip_a_bit(0.5)(folder)
    with pytest.raises(DamageError, match="has changed since it was written"):
        READERS[reader](folder)


def test_a_folder_that_is_no_dataset_is_not_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "list_files", lambda folder: pytest.fail("searched"))
    with pytest.raises(CheckpointError, match="is not a prepared dataset"):
        read_prepared(tmp_path)


def test_the_rows_of_a_large_dataset_are_verified_by_check_only(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "REMEMBER_FROM_BYTES", 100)
    monkeypatch.setattr(prepared, "REMEMBER_FROM_BYTES", 100)
    exchange("text")(folder)
    checksums.write_checksums(folder)
    assert read_prepared(folder)
    with pytest.raises(DamageError, match=r"the rows of .* have changed"):
        verify_prepared(folder)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_hash_of_the_content_does_not_depend_on_the_batches(folder, size):
    table = load_from_disk(folder).data.table
    parts = [table.slice(first, size) for first in range(0, 5, size)]
    divided = pyarrow.Table.from_batches([batch for part in parts for batch in part.to_batches()])
    copied = pyarrow.Table.from_pylist(table.to_pylist(), schema=table.schema)
    wanted = read_prepared(folder).card.content_hash
    assert compute_content_hash(divided, "f") == compute_content_hash(copied, "f") == wanted


def test_the_hash_of_the_content_separates_texts_and_missing_values():
    """Neighbours whose texts join to the same bytes, and empty and missing values, have other hashes."""
    row = dict.fromkeys(build_features())
    variants = [
        [row | {"text": "ab", "task": "c"}, row | {"text": "c", "task": "d"}],
        [row | {"text": "a", "task": "c"}, row | {"text": "bc", "task": "d"}],
        [row | {"text": "", "task": "c"}, row | {"text": "abc", "task": "d"}],
        [row | {"text": None, "task": "c"}, row | {"text": "abc", "task": "d"}],
        [row | {"context_texts": []}, row],
        [row, row | {"context_texts": []}],
        [row | {"context_texts": ["a", "b"]}, row | {"context_texts": ["c"]}],
        [row | {"context_texts": ["a"]}, row | {"context_texts": ["b", "c"]}],
        [row | {"reward": 0.0}, row],
        [row, row | {"reward": 0.0}],
        [row, row],
        [row],
    ]
    schema = build_features().arrow_schema
    hashes = {compute_content_hash(pyarrow.Table.from_pylist(rows, schema=schema), "f") for rows in variants}
    assert len(hashes) == len(variants)


def test_the_card_has_a_hash_of_the_rows_alone(tmp_path, original):
    again = write(tmp_path / "again")
    cards = [dataclasses.asdict(read_prepared(folder).card) for folder in (original, again)]
    assert cards[0] == cards[1]
