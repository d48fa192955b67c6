"""The folder in which `prepare` builds a dataset: `.NAME.unfinished` next to the output.

    lock                     held by the run that works here; the operating system releases it with the process
    rows.sqlite              written by process 0: rows, problems and finally the recordings of all processes
    recordings-00000.sqlite  measured by process 0, and so on for each process
    codes-00000.sqlite       encoded by process 0, and so on; the only files that a resumed run reuses
    dataset/                 the dataset, renamed to the output when it is complete

This package contains every SQL statement of `prepare`. SQLite is used because a commit is atomic even if the process is
killed, and because a million rows then need little memory (docs/decisions/unfinished-work.md).
"""
