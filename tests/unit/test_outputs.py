"""No output is, contains or lies in an input, under whatever name; what a failed command leaves blocks nothing."""

import errno
import os
from pathlib import Path

import pytest
from filelock import FileLock

from higgs_trainer import outputs
from higgs_trainer.errors import UserError
from higgs_trainer.outputs import (
    IN_PROGRESS,
    Input,
    check_apart,
    check_can_fill,
    check_page,
    fill_folder,
    find_free_name,
    hold_folder,
    is_unfinished,
)


@pytest.fixture
def base(tmp_path):
    """A folder of an input, with a file in a subfolder."""
    folder = tmp_path / "models" / "base"
    (folder / "codec").mkdir(parents=True)
    (folder / "codec" / "weights").write_text("weights")
    return folder


def check(output, base, **options):
    check_apart("--output", output, [Input("a hub model", "owner/name"), Input("the base", base, **options)])


@pytest.mark.parametrize(
    ("name", "relation"),
    [
        ("models/base", "is the base"),
        ("models/base/", "is the base"),
        ("models/x/../base", "is the base"),
        ("link", "is the base"),
        ("models", "contains the base"),
        (".", "contains the base"),
        ("models/base/codec", "lies in the base"),
        ("models/base/new/folder", "lies in the base"),
        ("link/new", "lies in the base"),
        ("dangling", "lies in the base"),
        ("models/base/codec/weights", "lies in the base"),
    ],
)
def test_an_output_that_overlaps_an_input_is_refused(tmp_path, base, name, relation):
    (tmp_path / "link").symlink_to(base)
    (tmp_path / "dangling").symlink_to(base / "not there yet")
    with pytest.raises(
        UserError, match=f"--output: .* {relation} .*Nothing was written. Choose another place"
    ):
        check(tmp_path / name, base)


@pytest.mark.parametrize("name", ["other", "models/other", "models/base2", "models/base.out", "not/there"])
def test_an_output_next_to_an_input_is_accepted(tmp_path, base, name):
    check(tmp_path / name, base)


def test_a_relative_output_is_compared_from_the_working_directory(base, monkeypatch):
    monkeypatch.chdir(base)
    with pytest.raises(UserError, match="is the base"):
        check(".", base)
    with pytest.raises(UserError, match="contains the base"):
        check("..", base)


def test_a_folder_of_rows_may_contain_the_output_but_not_be_it(tmp_path, base):
    check(base / "prepared", base, may_contain_output=True)
    for output in (base, base.parent):
        with pytest.raises(UserError, match="Nothing was written"):
            check(output, base, may_contain_output=True)


def test_two_names_of_one_folder_are_recognised_by_what_is_on_the_disk(tmp_path, base, monkeypatch):
    """As on a file system that ignores case, where no link resolves one name to the other."""
    other = tmp_path / "models" / "BASE"
    other.mkdir()
    stat = os.stat

    def ignore_case(path, *arguments, **options):
        return stat(str(path).replace("BASE", "base"), *arguments, **options)

    monkeypatch.setattr(os, "stat", ignore_case)
    for output, relation in ((other, "is the base"), (other / "new", "lies in the base")):
        with pytest.raises(UserError, match=relation):
            check(output, base)


def test_a_hard_link_to_an_input_file_is_that_input(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    os.link(tmp_path / "rows.jsonl", tmp_path / "other.jsonl")
    with pytest.raises(UserError, match="is the data"):
        check_apart("--output", tmp_path / "other.jsonl", [Input("the data", tmp_path / "rows.jsonl")])


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_link_in_the_output_to_a_file_of_an_input_is_refused(tmp_path, base, link):
    out = tmp_path / "out" / "deep"
    out.mkdir(parents=True)
    (out / "own").write_text("own")
    os.link(out / "own", tmp_path / "out" / "own too")
    check(tmp_path / "out", base)
    link(base / "codec" / "weights", out / "model.safetensors")
    with pytest.raises(UserError, match=r"deep/model.safetensors is a link to the base"):
        check(tmp_path / "out", base)


def test_a_link_in_the_output_to_an_input_folder_is_refused(tmp_path, base):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "samples").symlink_to(base.parent)
    with pytest.raises(UserError, match=r"samples is a link to the base"):
        check(tmp_path / "out", base)


def test_a_page_replaces_a_page_and_nothing_else(tmp_path):
    page = tmp_path / "page.html"
    check_page("--report", page)
    for content in ("", "<!doctype html>\n<html>", "\n<!DOCTYPE HTML>"):
        page.write_text(content)
        check_page("--report", page)
    page.write_text("training: {}")
    with pytest.raises(UserError, match=r"--report: .*page.html exists and is not an HTML page"):
        check_page("--report", page)
    with pytest.raises(UserError, match="is a folder; give a file"):
        check_page("--report", tmp_path)


class KeptLock(FileLock):
    """A lock that is held until it is released, also when nothing refers to it any more."""

    def __del__(self) -> None:
        pass


class DeletingLock(FileLock):
    """A lock that deletes its file when it is released, as some versions of filelock do."""

    def release(self, force: bool = False) -> None:
        if self.is_locked:
            Path(self.lock_file).unlink()
        super().release(force)


def fill(output: Path, *, fails: bool = False, content: str = "clip") -> None:
    with fill_folder(output):
        assert is_unfinished(output)
        (output / "index").write_text("")
        if content:
            (output / "clip").write_text(content)
        if fails:
            raise KeyboardInterrupt


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_filled_folder_has_no_mark(tmp_path):
    fill(tmp_path / "a" / "out")
    assert list_names(tmp_path / "a") == ["out"]
    assert list_names(tmp_path / "a" / "out") == ["clip", "index"]
    with pytest.raises(UserError, match="not empty"):
        fill(tmp_path / "a" / "out")


def test_a_command_that_fails_before_its_first_content_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "out", fails=True, content="")
    assert list_names(tmp_path) == []


def test_what_a_failed_command_leaves_is_kept_and_does_not_block_the_corrected_one(tmp_path, capsys):
    out = tmp_path / "out"
    for number in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            fill(out, fails=True, content=f"clip of {number}")
        check_can_fill(out)
    fill(out, content="clip of 3")
    assert list_names(tmp_path) == ["out", "out.unfinished-1", "out.unfinished-2"]
    contents = [(tmp_path / name / "clip").read_text() for name in list_names(tmp_path)]
    assert contents == ["clip of 3", "clip of 1", "clip of 2"]
    assert f"It is now {out}.unfinished-1" in capsys.readouterr().err
    assert not is_unfinished(tmp_path / "out.unfinished-1")


def test_a_killed_command_leaves_the_mark_alone_and_blocks_nothing(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / IN_PROGRESS).touch()
    fill(out)
    assert (list_names(tmp_path), list_names(out)) == (["out"], ["clip", "index"])


def test_a_failed_command_frees_the_folder_without_the_garbage_collector(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "FileLock", KeptLock)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "out", fails=True)
    monkeypatch.undo()
    check_can_fill(tmp_path / "out")


def test_a_folder_stays_marked_when_filelock_deletes_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "FileLock", DeletingLock)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "out", fails=True)
    check_can_fill(tmp_path / "out")
    assert is_unfinished(tmp_path / "out")


def test_a_second_command_does_not_disturb_the_first(tmp_path):
    with fill_folder(tmp_path / "out") as out:
        (out / "clip").write_text("first")
        for attempt in (check_can_fill, fill):
            with pytest.raises(UserError, match=f"another command is writing to {out}. Wait for it"):
                attempt(out)
    assert list_names(out) == ["clip"]


def test_no_two_commands_hold_a_folder(tmp_path):
    (tmp_path / "link").symlink_to("out")
    with hold_folder(tmp_path / "out"):
        assert list_names(tmp_path) == [".out.lock", "link"]
        second = hold_folder(tmp_path / "link")
        with pytest.raises(UserError, match=f"another command is writing to {tmp_path}/out"):
            second.__enter__()
    with hold_folder(tmp_path / "new" / "out"):
        pass
    assert list_names(tmp_path) == ["link", "new"]


def test_a_folder_in_a_read_only_one_is_used_without_a_lock(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("higgs_trainer.outputs.FileLock.acquire", refuse)
    with hold_folder(tmp_path / "out"):
        pass
    assert list_names(tmp_path) == []


def test_a_free_name_is_one_that_nothing_has(tmp_path):
    (tmp_path / "run.replaced-1").symlink_to("nowhere")
    assert find_free_name(tmp_path / "run", "replaced") == tmp_path / "run.replaced-2"


def test_an_error_under_a_parent_that_cannot_be_written_is_not_blamed_on_the_lock(tmp_path, monkeypatch):
    def refuse(marker, folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(marker))

    monkeypatch.setattr(outputs, "_lock", refuse)
    with pytest.raises(ValueError, match="a bug") as raised, hold_folder(tmp_path / "out"):
        raise ValueError("a bug")
    assert raised.value.__context__ is None
