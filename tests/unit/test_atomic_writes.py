"""Files and folders are complete under their names or not there, also when the process dies between two steps."""

import io
import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from higgs_trainer import files
from higgs_trainer.errors import SaveError, UserError


class Killed(BaseException):
    """The process dies here: no `except` of the code under test may catch it."""


def kill(*_, **__):
    raise Killed


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def make_folder(path, content):
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


def test_a_file_is_replaced_only_when_the_new_one_is_complete(tmp_path):
    path = tmp_path / "not made yet" / "file.txt"
    files.write_text(path, "first")

    def write_half():
        with files.whole_file(path) as unfinished:
            unfinished.write_text("sec")
            assert (path.read_text(), unfinished.suffix) == ("first", ".txt")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        write_half()
    assert path.read_text() == "first"
    assert list_names(path.parent) == ["file.txt"]


def test_a_file_has_the_permissions_that_the_user_set(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_json_is_read_back_with_every_letter_and_one_row_a_line(tmp_path):
    rows = [{"text": "Größe\u2028\n"}, {"n": 1.5}]
    files.write_json(tmp_path / "one.json", rows)
    files.write_json_lines(tmp_path / "many.jsonl", iter(rows))
    assert json.loads((tmp_path / "one.json").read_text(encoding="utf-8")) == rows
    lines = (tmp_path / "many.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert lines[-1] == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"{", "is not valid JSON"),
        (b"[]", "does not contain a JSON object"),
    ],
)
def test_a_damaged_json_file_is_named(tmp_path, content, message):
    path = tmp_path / "some.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"some.json {message}.*; write it again"):
        files.read_json_object(path)
    files.write_json(path, {"a": 1})
    assert files.read_json_object(path) == {"a": 1}


def test_a_file_that_cannot_be_written_is_named_with_its_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    expected = r"file/below could not be written \(.*; [\d,.]+ MB were free\); think again"
    with pytest.raises(SaveError, match=expected):
        files.write_text(tmp_path / "file" / "below", "text", remedy="think again")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
def test_a_full_disk_is_named(tmp_path, error):
    expected = r"checkpoint-3 could not be written \(.*(No space|I/O).*; [\d,.]+ MB were free\); do this"
    target = tmp_path / "not made yet" / "checkpoint-3"
    with pytest.raises(SaveError, match=expected), files.explain_failed_write(target, "do this"):
        raise error


class FullDisk(io.RawIOBase):
    def write(self, data: Any) -> int:
        raise OSError(28, "No space left on device")


def test_what_torch_raises_when_it_cannot_write_is_a_failed_write(tmp_path):
    for target in (FullDisk(), str(tmp_path / "missing" / "file"), "/dev/full"):
        with pytest.raises(SaveError), files.explain_failed_write(tmp_path / "file"):
            torch.save({"weight": torch.ones(1000)}, target)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms"),
        OSError(12, "Cannot allocate memory"),
        MemoryError(),
    ],
)
def test_another_error_while_a_file_is_written_is_no_failed_write(tmp_path, error):
    with pytest.raises(type(error)) as raised, files.explain_failed_write(tmp_path / "file"):
        raise error
    assert raised.value is error


def test_a_new_folder_appears_when_it_is_complete(tmp_path):
    output = tmp_path / "parent" / "out"
    make_folder(output.with_name(files.UNFINISHED + "out"), "of a killed process")
    with files.new_folder(output) as folder:
        assert list_names(folder) == []
        assert not output.exists()
        (folder / "file").write_text("new")
    assert (output / "file").read_text() == "new"
    assert list_names(output.parent) == ["out"]


def test_a_new_folder_may_take_the_place_of_an_empty_one_only(tmp_path):
    (tmp_path / "empty").mkdir()
    with files.new_folder(tmp_path / "empty") as folder:
        (folder / "file").write_text("new")
    with pytest.raises(UserError, match="not empty"), files.new_folder(tmp_path / "empty"):
        pass
    assert list_names(tmp_path) == ["empty"]


def test_a_folder_that_failed_leaves_nothing(tmp_path):
    with pytest.raises(SaveError, match="out could not be written"), files.new_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert list_names(tmp_path) == []


def test_a_folder_is_replaced_with_all_its_files(tmp_path):
    old, new = make_folder(tmp_path / "a", "old"), make_folder(tmp_path / "b", "new")
    (old / "left over").write_text("")
    files.move_into_place(new, old)
    assert ((old / "file").read_text(), list_names(old), list_names(tmp_path)) == ("new", ["file"], ["a"])


def test_a_file_is_moved_onto_a_file(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).write_text(name)
    files.move_into_place(tmp_path / "new", tmp_path / "old")
    assert (list_names(tmp_path), (tmp_path / "old").read_text()) == (["old"], "new")


@pytest.mark.parametrize(("step", "kept"), [(1, "old"), (2, "old"), (3, "new")])
@pytest.mark.parametrize("recover", ["read", "restore", "replace once more"])
def test_a_process_killed_while_it_replaces_a_folder_loses_neither(
    tmp_path, monkeypatch, step, kept, recover
):
    target = make_folder(tmp_path / "a" / "target", "old")
    whole = make_folder(tmp_path / "b" / "whole", "new")
    calls = []

    def count(call):
        def counted(*arguments, **options):
            calls.append(call)
            return kill() if len(calls) == step else call(*arguments, **options)

        return counted

    # Three steps: the old folder is renamed, the new one is renamed, the old one is deleted.
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", count(os.replace))
        patched.setattr(files, "_restore", lambda target: None)
        patched.setattr(shutil, "rmtree", count(shutil.rmtree))
        with pytest.raises(Killed):
            files.move_into_place(whole, target)
    assert len(calls) == step
    if recover == "read":
        files.restore_replaced(target)
        assert (target / "file").read_text() == kept
        return
    if recover == "restore":
        files.restore_folders(target.parent)
        assert (target / "file").read_text() == kept
    else:
        files.move_into_place(make_folder(tmp_path / "c", "third"), target)
        assert (target / "file").read_text() == "third"
    assert list_names(target.parent) == ["target"]


def test_a_folder_that_cannot_be_replaced_keeps_its_name(tmp_path):
    target = make_folder(tmp_path / "target", "old")
    with pytest.raises(FileNotFoundError):
        files.move_into_place(tmp_path / "does not exist", target)
    assert (list_names(tmp_path), (target / "file").read_text()) == (["target"], "old")


def test_a_reader_that_restores_the_old_folder_meanwhile_does_not_stop_the_replacement(tmp_path, monkeypatch):
    target, whole = make_folder(tmp_path / "target", "old"), make_folder(tmp_path / "whole", "new")
    replace, calls = os.replace, []

    def read_between(source, place):
        calls.append(place)
        replace(source, place)
        if len(calls) == 1:
            files.restore_replaced(target)

    monkeypatch.setattr(os, "replace", read_between)
    files.move_into_place(whole, target)
    assert (list_names(tmp_path), (target / "file").read_text()) == (["target"], "new")


def test_a_reader_restores_nothing_that_has_a_successor(tmp_path):
    make_folder(tmp_path / "_replaced-out", "old")
    make_folder(tmp_path / "out", "new")
    files.restore_replaced(tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "new"


def test_a_folder_loses_its_name_before_its_files(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "checkpoint-3", "weights")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda path, **_: kill() if path.exists() else None)
        with pytest.raises(Killed):
            files.remove_folder(folder)
    assert not folder.exists()
    files.restore_folders(tmp_path)
    assert list_names(tmp_path) == []


def test_restoring_touches_nothing_else(tmp_path):
    make_folder(tmp_path / "checkpoint-3", "weights")
    (tmp_path / "_recordings").mkdir()
    (tmp_path / f"{files.UNFINISHED}12-report.html").write_text("half")
    files.restore_folders(tmp_path)
    assert list_names(tmp_path) == ["_recordings", "checkpoint-3"]


def test_two_processes_cannot_write_one_folder(tmp_path):
    """The lock belongs to the temporary folder, and ends with the process that holds it."""
    code = """
import os, sys
from higgs_trainer.files import new_folder
with new_folder(sys.argv[1]) as unfinished:
    (unfinished / "half").write_text("x")
    print("writing", flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), 9)
"""
    output = tmp_path / "out"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "writing\n"
    with pytest.raises(UserError, match="another process is writing"), files.new_folder(output):
        pass
    other.communicate("")
    with files.new_folder(output) as unfinished:
        (unfinished / "whole").touch()
    assert [path.name for path in output.iterdir()] == ["whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_another_process_has_written_meanwhile_is_kept(tmp_path):
    writing = files.new_folder(tmp_path / "out")
    writing.__enter__()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").touch()
    with pytest.raises(UserError, match="not empty"):
        writing.__exit__(None, None, None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]


def test_what_a_killed_process_left_of_a_file_is_removed_and_nothing_else(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = [
        "page.html",
        f"_unfinished-{os.getpid()}-page.html",
        f"_unfinished-{ended.pid}-other.html",
        "_unfinished",
    ]
    for name in (*kept, f"_unfinished-{ended.pid}-page.html", f"_unfinished-{10**30}-page.html"):
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path / "page.html")
    assert list_names(tmp_path) == sorted(kept)
