"""The work directory: its queries, its lock, and the only place with SQL."""

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import higgs_trainer
from higgs_trainer.corpus.measurements import Measurement
from higgs_trainer.corpus.work_directory.code_store import CodeStore
from higgs_trainer.corpus.work_directory.corpus_tables import CorpusTables
from higgs_trainer.corpus.work_directory.directory import WorkDirectory
from higgs_trainer.errors import DamageError, Problem, UserError
from higgs_trainer.manifest.utterance import Clip, Utterance

SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|PRAGMA|CREATE TABLE)\b|sqlite3\.connect|\.execute\w*\(")


def test_only_the_work_directory_contains_sql() -> None:
    package = Path(higgs_trainer.__file__).parent
    files = {path for path in package.rglob("*.py") if SQL.search(path.read_text(encoding="utf-8"))}
    assert files == {
        package / "corpus" / "work_directory" / name for name in ("code_store.py", "corpus_tables.py")
    }


SECONDS = (1.0, 2.0, 1.0, 3.0, 2.5)


def measure(content_hash: str, seconds: float = 1.0, **values: object) -> Measurement:
    plain = {"sample_rate_hz": 24_000, "channels": 1, "peak_dbfs": -6.0, "loudness_dbfs": -20.0}
    plain |= {"clipped_percent": 0.0, "cancelled": False, "speech_seconds": seconds}
    return Measurement(content_hash, seconds, **(plain | values))  # type: ignore[arg-type]


@pytest.fixture
def tables(tmp_path: Path) -> CorpusTables:
    """Five rows. Row 3 has a problem, row 4 has a reference, and row 2 has the recording of row 0."""
    tables = CorpusTables(tmp_path / "rows.sqlite", new=True)
    reference = Clip(Path("r.wav"), "reference")
    for number in range(5):
        references = (reference,) if number == 4 else ()
        row = Utterance(
            f"row {number}", Path(f"{number}.wav"), references=references, file=Path("m"), line=number
        )
        tables.add_row(number, row)
        measured = measure("same" if number in (0, 2) else f"hash {number}", seconds=SECONDS[number])
        tables.add_recording(number, 0, row, row.recording, row.text, measured)
        if references:
            tables.add_recording(
                number, 1, row, reference.audio, reference.text, measure("r", 9.0, channels=2)
            )
    tables.add_problems(
        3, [Problem(Path("m"), 3, "bad", "Fix it."), Problem(Path("m"), 3, "odd", "Check it.")]
    )
    return tables


def test_each_process_gets_its_share_of_the_rows(tables: CorpusTables) -> None:
    shares = [[number for number, _ in tables.iterate_rows(index, 2)] for index in (0, 1)]
    assert shares == [[0, 2, 4], [1, 3]]
    assert [tables.count_rows(index, 2) for index in (0, 1)] == [3, 2]


def test_a_row_with_problems_is_rejected(tables: CorpusTables) -> None:
    assert [number for number, _ in tables.iterate_accepted()] == [0, 1, 2, 4]
    assert (tables.count_accepted(), tables.count_rejected(), tables.count_problems()) == (4, 1, 2)
    (problems,) = tables.group_problems()
    assert [problem.what for problem in problems] == ["bad", "odd"]


def test_the_recordings_of_accepted_rows_are_listed_once_the_longest_first(tables: CorpusTables) -> None:
    assert list(tables.iterate_accepted_contents()) == [
        ("r", "r.wav", 9.0),
        ("hash 4", "4.wav", 2.5),
        ("hash 1", "1.wav", 2.0),
        ("same", "0.wav", 1.0),
    ]


def test_a_drawn_reference_is_the_target_of_another_row(tables: CorpusTables) -> None:
    tables.add_reference(1, from_number=0)
    target, reference = tables.read_recordings(1)
    assert (target.content_hash, reference.content_hash) == ("hash 1", "same")
    assert (reference.path, reference.text, reference.place) == ("0.wav", "row 0", 1)
    assert len(list(tables.iterate_audible(-50.0))) == 6  # its pace was judged in row 0


def test_the_tables_of_another_process_are_added(tables: CorpusTables, tmp_path: Path) -> None:
    with CorpusTables(tmp_path / "all.sqlite", new=True) as gathered:
        gathered.add_all_from(tables)
        assert gathered.count_targets() == (5, sum(SECONDS))
        assert gathered.count_problems() == 2
    with CorpusTables(tmp_path / "all.sqlite") as again:
        assert again.count_audio_formats() == [(24_000, 1, 5)]
        assert again.find_averaged() == (0, None)  # only the reference has two channels


def test_changes_are_discarded_if_the_block_raises(tmp_path: Path) -> None:
    def add_and_fail() -> None:
        with CorpusTables(tmp_path / "rows.sqlite", new=True) as tables:
            tables.add_row(0, Utterance("one"))
            raise KeyError

    with pytest.raises(KeyError):
        add_and_fail()
    with CorpusTables(tmp_path / "rows.sqlite") as tables:
        assert tables.count_rows(0, 1) == 0


def test_codes_are_found_by_their_settings_and_in_the_files_of_all_processes(tmp_path: Path) -> None:
    codes_FK = np.arange(6, dtype=np.uint16).reshape(2, 3)
    with CodeStore(tmp_path, "a", 3, process_index=0) as first, CodeStore(tmp_path, "a", 3, 1) as second:
        first.add(["x"], [codes_FK])
        assert "x" not in second
        second.refresh()
        assert second.get("x").tolist() == codes_FK.tolist()
        with pytest.raises(KeyError, match="no codes of the recording y"):
            second.get("y")
    with CodeStore(tmp_path, "b", 3, 0) as other:
        assert "x" not in other
        assert other.count() == 1


def test_the_folder_stays_only_with_codes_to_resume_from(tmp_path: Path) -> None:
    work = WorkDirectory(tmp_path / "out")
    with work.lock():
        assert work.folder == tmp_path / ".out.unfinished"
        with (
            pytest.raises(UserError, match="another run is preparing"),
            WorkDirectory(tmp_path / "out").lock(),
        ):
            pass
    assert not work.folder.exists()
    with work.lock(), work.open_codes("a", 1, 0) as store:
        store.add(["x"], [np.zeros((1, 1), np.uint16)])
    assert work.folder.exists()


def write_codes(folder: Path) -> Path:
    with CodeStore(folder, "a", 3, 0) as store:
        numbers = np.arange(60, dtype=np.uint16).reshape(-1, 3)
        store.add(["one", "two"], [numbers[:7], numbers[7:]])
    return folder / "codes-00000.sqlite"


def run_sql(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


def flip_a_code(path: Path) -> None:
    content = path.read_bytes()
    codes = np.arange(21, dtype=np.uint16).tobytes()
    assert content.count(codes) == 1
    path.write_bytes(content.replace(codes, codes[:-1] + b"\1"))


STORE_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit flipped": (flip_a_code, "the codes of the recording one have changed since they were written"),
    "codes exchanged": (
        lambda path: run_sql(
            path, "UPDATE encoded SET codes = (SELECT codes FROM encoded WHERE content_hash = 'two')"
        ),
        "the codes of the recording one have changed",
    ),
    "codes and checksums exchanged": (
        lambda path: run_sql(
            path,
            "UPDATE encoded SET (codes, checksum) = "
            "(SELECT codes, checksum FROM encoded WHERE content_hash = 'two')",
        ),
        "the codes of the recording one have changed",
    ),
    "codes missing": (
        lambda path: run_sql(path, "UPDATE encoded SET codes = NULL"),
        "the codes of the recording one",
    ),
    "a text": (
        lambda path: run_sql(path, "UPDATE encoded SET codes = 'a'"),
        "the codes of the recording one",
    ),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:4096]), "codes-00000.sqlite is damaged"),
    "another file": (lambda path: path.write_text("hello " * 1000), "codes-00000.sqlite is damaged"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "codes-00000.sqlite is damaged"),
    "another table": (
        lambda path: run_sql(path, "ALTER TABLE encoded RENAME COLUMN checksum TO other"),
        "codes-00000.sqlite is damaged",
    ),
}


@pytest.mark.parametrize("damage", STORE_DAMAGES)
def test_damaged_codes_are_not_used_and_the_folder_to_remove_is_named(tmp_path: Path, damage: str) -> None:
    change, message = STORE_DAMAGES[damage]
    change(write_codes(tmp_path))
    with pytest.raises(DamageError, match=message) as raised, CodeStore(tmp_path, "a", 3, 0) as store:
        store.get("one")
    assert f"Remove the folder {tmp_path} and run the command again." in str(raised.value)


@pytest.mark.parametrize("message", ["unable to open database file", "disk I/O error", "database is locked"])
def test_codes_that_cannot_be_reached_are_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    """Otherwise the user would be told to remove codes that are whole."""
    write_codes(tmp_path)

    def refuse(_: Path) -> None:
        raise sqlite3.OperationalError(message)

    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(sqlite3.OperationalError, match=message):
        CodeStore(tmp_path, "a", 3, 0)


def test_codes_of_an_earlier_version_are_encoded_again(tmp_path: Path) -> None:
    path = write_codes(tmp_path)
    run_sql(path, "DROP TABLE encoded")
    run_sql(path, "CREATE TABLE codes (settings TEXT, content_hash TEXT, codes BLOB)")
    run_sql(path, "INSERT INTO codes VALUES ('a', 'one', x'0000')")
    with CodeStore(tmp_path, "a", 3, 0) as store:
        assert "one" not in store
        store.add(["one"], [np.zeros((1, 3), np.uint16)])
        store.refresh()
        assert "one" in store
