"""Checksums find every damaged file of a folder before it is used, and say which one it is."""

import json
import os

import pytest
import xxhash

from higgs_trainer import checksums, file_memory
from higgs_trainer.errors import DamageError
from higgs_trainer.run_folder import CHECKSUMS_FILE, CHECKSUMS_SCHEMA

REMEDY = "Copy it again."


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(256)) * 11)
    (folder / "inner" / ".hidden").write_bytes(b"inner")
    (folder / "empty").touch()
    checksums.write_checksums(folder)
    return folder


@pytest.fixture
def large(folder, tmp_path, monkeypatch):
    """The hashes of this folder are remembered: it counts as large, and as long unchanged."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "REMEMBER_FROM_BYTES", 100)
    monkeypatch.setattr(file_memory, "SETTLED_SECONDS", -1)
    return folder


def verify(folder):
    return checksums.verify_checksums(folder, checksums.list_files, remedy=REMEDY)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def rename(path):
    path.rename(path.with_name("other"))


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "flipped": (flip_a_bit, "has changed since it was written"),
    "cut": (
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "has 2,815 bytes, but was written with 2,816",
    ),
    "emptied": (lambda path: path.write_bytes(b""), "has 0 bytes, but was written with 2,816"),
    "deleted": (lambda path: path.unlink(), "is missing"),
    "renamed": (rename, "is missing"),
    "a folder": (replace_by_folder, "is not a regular file"),
    "a pipe": (replace_by_pipe, "is not a regular file"),
    "a broken link": (lambda path: (path.unlink(), path.symlink_to("nowhere")), "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_the_remedy(folder, damage):
    assert verify(folder)
    change, message = DAMAGES[damage]
    change(folder / "weights")
    with pytest.raises(DamageError, match=message) as raised:
        verify(folder)
    assert str(raised.value).startswith(str(folder / "weights"))
    assert str(raised.value).endswith(REMEDY)


def test_an_added_file_is_named(folder):
    (folder / "inner" / "more").touch()
    with pytest.raises(DamageError, match="inner/more was added after the folder was written"):
        verify(folder)


def test_only_chosen_files_are_covered(folder):
    checksums.write_checksums(folder, ["weights"])
    flip_a_bit(folder / "inner" / ".hidden")
    assert checksums.verify_checksums(folder, lambda folder: ["weights"], remedy=REMEDY)


def test_a_folder_without_checksums_is_unverified(folder):
    (folder / CHECKSUMS_FILE).unlink()
    assert not verify(folder)


def edit(change):
    def rewrite(path):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return rewrite


CHECKSUM_DAMAGES = {
    "cut": lambda path: path.write_text(path.read_text()[:-9]),
    "empty": lambda path: path.write_text(""),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
    "a list": lambda path: path.write_text("[]"),
    "nested deeply": lambda path: path.write_text("[" * 100_000),
    "no files": edit(lambda content: content.pop("files")),
    "files as a list": edit(lambda content: content.update(files=["weights"])),
    "another schema": edit(lambda content: content.update(schema="other/2")),
    "a name left out": edit(lambda content: content["files"].pop("empty")),
    "another hash": edit(lambda content: content["files"]["empty"].update(xxh3="0" * 32)),
    "a size of another type": edit(lambda content: content["files"]["empty"].update(bytes="0")),
    "a name that leads out": edit(
        lambda content: content["files"].update({"../a": {"bytes": 0, "xxh3": ""}})
    ),
    "a broken link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", CHECKSUM_DAMAGES)
def test_damaged_checksums_are_named_themselves(folder, damage):
    CHECKSUM_DAMAGES[damage](folder / CHECKSUMS_FILE)
    with pytest.raises(DamageError, match=f"{CHECKSUMS_FILE} is damaged") as raised:
        verify(folder)
    assert "\n" not in str(raised.value)


def test_the_fingerprint_of_a_folder_depends_on_names_and_contents(folder):
    names = checksums.list_files(folder)
    before = checksums.compute_fingerprint(folder, names)
    assert json.loads((folder / CHECKSUMS_FILE).read_text())["fingerprint"] == before
    (folder / CHECKSUMS_FILE).unlink()
    assert checksums.compute_fingerprint(folder, names[::-1]) == before
    (folder / "empty").rename(folder / "empty2")
    assert checksums.compute_fingerprint(folder, checksums.list_files(folder)) != before
    (folder / "empty2").rename(folder / "empty")
    flip_a_bit(folder / "weights")
    assert checksums.compute_fingerprint(folder, names) != before


def test_a_large_folder_is_read_once_until_a_file_changes(large, monkeypatch):
    read = []
    hash_file = checksums.hash_file
    monkeypatch.setattr(checksums, "hash_file", lambda path: read.append(path.name) or hash_file(path))
    assert [verify(large), verify(large)] == [True, True]
    assert sorted(read) == [".hidden", "empty", "weights"]
    (large / "inner" / ".hidden").touch()
    assert verify(large)
    assert read[3:] == [".hidden"]
    checksums.forget_hashes(large)
    assert verify(large)
    assert len(read) == 7


def test_a_change_that_keeps_size_and_modification_time_is_found_in_a_large_folder(large):
    assert verify(large)
    before = (large / "weights").stat()
    flip_a_bit(large / "weights")
    os.utime(large / "weights", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DamageError, match="weights has changed"):
        verify(large)


def test_a_file_that_was_just_written_is_not_remembered(large, monkeypatch):
    monkeypatch.setattr(file_memory, "SETTLED_SECONDS", 60)
    assert verify(large)
    assert checksums._recall(large) == {}


@pytest.mark.parametrize("content", ["", "[]", '{"weights": 3}', "\udcff"])
def test_a_damaged_memory_is_ignored(large, content):
    assert verify(large)
    file_memory.find_memory("hashes", large).write_text(content, encoding="utf-8", errors="surrogateescape")
    assert verify(large)


def test_without_a_place_for_the_memory_files_are_read_each_time(large, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert verify(large)
    assert verify(large)


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret", "a/../../secret"])
def test_checksums_that_name_a_file_outside_the_folder_are_damaged(tmp_path, name):
    """Even if their fingerprint is right: no file outside the folder is read."""
    digest = "0" * 32
    fingerprint = xxhash.xxh3_128_hexdigest(json.dumps([[name, digest]]).encode())
    files = {name: {"bytes": 1, "xxh3": digest}}
    content = {"schema": CHECKSUMS_SCHEMA, "fingerprint": fingerprint, "files": files}
    (tmp_path / "checksums.json").write_text(json.dumps(content))
    with pytest.raises(DamageError, match="which is outside the folder"):
        checksums.verify_checksums(tmp_path, lambda folder: [], remedy="")
