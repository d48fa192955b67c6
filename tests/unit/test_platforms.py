"""Nothing in the source needs a name at import that only POSIX has. Windows and macOS themselves are not tested."""

import ast
import importlib
import importlib.util
import signal
import sys
from pathlib import Path

import pytest
import torch

from higgs_trainer.model import template_process
from higgs_trainer.training.metrics import choose_sum_dtype

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "src/higgs_trainer", ROOT / "packages/label-guard/src/label_guard"]
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {
    "os": {
        *("O_DIRECTORY", "O_NOFOLLOW", "fork", "geteuid", "getpgid", "getuid", "killpg", "nice", "mkfifo"),
        *("sched_getaffinity", "sched_setaffinity", "setsid", "setpgid", "statvfs", "uname", "wait", "waitpid"),
    },
    "signal": {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"},
    "time": {"tzset"},
}  # fmt: skip


def list_sources():
    return [path for folder in SOURCES for path in sorted(folder.rglob("*.py"))]


def is_about_windows(node):
    return 'sys.platform != "win32"' in (text := ast.unparse(node).replace("'", '"')) or (
        'sys.platform == "win32"' in text
    )


def find_posix_names(tree):
    """List the names that Windows lacks, outside statements that ask for the platform."""
    pending, found = [tree], []
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If | ast.IfExp | ast.BoolOp) and is_about_windows(
            getattr(node, "test", node)
        ):
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in POSIX_MODULES]
        if isinstance(node, ast.ImportFrom) and node.module in POSIX_MODULES:
            found.append(node.module)
        if isinstance(node, ast.Attribute) and node.attr in POSIX_NAMES.get(ast.unparse(node.value), ()):
            found.append(ast.unparse(node))
        pending += ast.iter_child_nodes(node)
    return found


def test_names_that_windows_lacks_are_used_only_after_a_look_at_the_platform():
    """Write `if sys.platform != "win32":` around them, and give Windows a way of its own."""
    sources = list_sources()
    assert len(sources) > 100
    found = {str(path): find_posix_names(ast.parse(path.read_text("utf-8"))) for path in sources}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import fcntl", ["fcntl"]),
        ("if sys.platform != 'win32':\n    import fcntl", []),
        ("def f():\n    from resource import setrlimit", ["resource"]),
        ("x = os.sched_getaffinity(0)", ["os.sched_getaffinity"]),
        ("x = 1 if sys.platform == 'win32' else signal.SIGHUP", []),
        ("if x:\n    signal.SIGHUP", ["signal.SIGHUP"]),
    ],
)
def test_the_check_finds_names_that_windows_lacks(source, found):
    assert find_posix_names(ast.parse(source)) == found


def import_on_windows(monkeypatch, name):
    """Execute a module of higgs_trainer again, without the modules and signals that Windows lacks.

    The libraries that it imports are loaded before, because they look at the platform too.
    """
    importlib.import_module(name)
    monkeypatch.setattr(sys, "platform", "win32")
    for module in POSIX_MODULES:
        monkeypatch.setitem(sys.modules, module, None)
    for signal_name in POSIX_NAMES["signal"]:
        monkeypatch.delattr(signal, signal_name, raising=False)
    spec = importlib.util.spec_from_file_location(name, ROOT / "src" / f"{name.replace('.', '/')}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["files", "cli.signals", "model.template_process", "model.chat_template"])
def test_modules_that_use_what_windows_lacks_are_imported_there(monkeypatch, name):
    import_on_windows(monkeypatch, f"higgs_trainer.{name}")


def test_folders_are_written_whole_without_the_locks_that_windows_lacks(monkeypatch, tmp_path):
    files = import_on_windows(monkeypatch, "higgs_trainer.files")
    with files.new_folder(tmp_path / "output") as unfinished:
        (unfinished / "a.txt").write_text("a")
        files.flush_to_disk(unfinished)
    assert (tmp_path / "output/a.txt").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_only_the_signals_that_windows_has_end_a_command_there(monkeypatch):
    assert import_on_windows(monkeypatch, "higgs_trainer.cli.signals").TERMINATING == (signal.SIGTERM,)


@pytest.mark.parametrize(
    ("platform", "limits"),
    [
        ("linux", ["RLIMIT_CPU", "RLIMIT_CORE", "RLIMIT_AS"]),
        ("darwin", ["RLIMIT_CPU", "RLIMIT_CORE"]),
        ("win32", []),
    ],
)
def test_a_chat_template_gets_the_limits_that_the_platform_has(monkeypatch, platform, limits):
    names = ("RLIMIT_CPU", "RLIMIT_CORE", "RLIMIT_AS")
    named = {getattr(template_process.resource, name): name for name in names}
    seen = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(
        template_process.resource, "setrlimit", lambda number, limit: seen.append(named[number])
    )
    template_process.limit(1, 10**9)
    assert seen == limits


def test_sums_are_float64_where_the_device_has_it():
    assert choose_sum_dtype(torch.device("cpu")) is torch.float64
    assert choose_sum_dtype(torch.device("mps")) is torch.float32
