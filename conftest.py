"""Fail a CI run in which a test was skipped: a skipped test proves nothing."""

import os

import pytest

# The reasons for which a test may be skipped in CI. Each occurs only with libraries that are older or newer than those
# of `make test`, which runs the same tests.
ALLOWED_REASONS = (
    "transformers 4.46 looks at its own models only",
    "the Trainer of 4.46 counts no targets",
    "GPT2Model of transformers 4.46 takes no other keys",
    "peft 0.13 cannot build this model",
    "transformers requires a newer peft to add an adapter",
)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where ``CI`` is set, turn every skip whose reason is not allowed into a failure of the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    # The workers of pytest-xdist have no reporter: their skips are counted by the process that started them.
    if not os.environ.get("CI") or reporter is None or hasattr(session.config, "workerinput"):
        return
    reports = reporter.stats.get("skipped", [])
    unexpected = [
        report for report in reports if not any(reason in str(report.longrepr) for reason in ALLOWED_REASONS)
    ]
    for report in unexpected:
        reporter.write_line(f"ERROR: skipped in CI: {report.nodeid}: {report.longrepr[-1]}", red=True)
    if unexpected and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
