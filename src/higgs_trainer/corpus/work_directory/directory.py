"""The work directory of one output: its paths, its lock, and its SQLite files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from higgs_trainer.corpus.work_directory.code_store import CodeStore, find_code_files
from higgs_trainer.corpus.work_directory.corpus_tables import CorpusTables
from higgs_trainer.errors import UserError
from higgs_trainer.files import move_into_place


class WorkDirectory:
    """The folder `.NAME.unfinished` in which the dataset ``output`` is built."""

    def __init__(self, output: Path) -> None:
        self.output = output.resolve()
        self.folder = self.output.parent / f".{self.output.name}.unfinished"
        self.dataset = self.folder / "dataset"
        self.audio_folder = self.folder / "recordings"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder and lock it. At the end it is deleted unless it has codes that a later run can reuse.

        Raises:
            UserError: another run holds the lock, or the folder cannot be created.
        """
        from filelock import FileLock, Timeout

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be created ({error.strerror}). Give another --output."
            ) from error
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise UserError(
                f"another run is preparing {self.output}. Wait for it, or give another --output."
            ) from error
        try:
            # Another run may have finished, and deleted the folder, before this run took the lock.
            if not (self.folder / "lock").exists():
                raise UserError(
                    f"another run has just prepared {self.output}. Use it, or run again with --overwrite."
                )
            yield
        finally:
            if not find_code_files(self.folder):
                shutil.rmtree(self.folder, ignore_errors=True)
            lock.release()

    def create_tables(self) -> CorpusTables:
        """Create the tables of the corpus, without what an earlier run left."""
        return CorpusTables(self.folder / "rows.sqlite", new=True)

    def open_tables(self) -> CorpusTables:
        """Open the tables of the corpus."""
        return CorpusTables(self.folder / "rows.sqlite")

    def create_measurements(self, process_index: int) -> CorpusTables:
        """Create the tables of one process's measurements, without what an earlier run left."""
        return CorpusTables(self._find_measurements(process_index), new=True)

    def open_measurements(self, process_index: int) -> CorpusTables:
        """Open the tables of one process's measurements."""
        return CorpusTables(self._find_measurements(process_index))

    def _find_measurements(self, process_index: int) -> Path:
        return self.folder / f"recordings-{process_index:05d}.sqlite"

    def open_codes(self, settings: str, num_codebooks: int, process_index: int) -> CodeStore:
        """Open the codes of all processes that were made under ``settings``. This process adds to its own file."""
        return CodeStore(self.folder, settings, num_codebooks, process_index)

    def publish_dataset(self) -> None:
        """Rename the complete dataset to the output, and delete the codes that a resumed run would need."""
        move_into_place(self.dataset, self.output)
        for path in find_code_files(self.folder):
            path.unlink()
