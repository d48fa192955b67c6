"""What a package index shows of the three packages, and the ranges of their dependencies."""

import contextlib
import re
import runpy
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT, ROOT / "packages/label-guard", ROOT / "packages/higgs-trainer-demo")
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")

script = runpy.run_path(str(ROOT / "scripts" / "library_versions.py"))


@pytest.fixture(scope="module")
def metadata():
    """The metadata of each package, by its name."""
    found = {}
    for folder in PACKAGES:
        # The plugin reads the readme from the working directory, which is the package's folder in a build.
        with contextlib.chdir(folder):
            project = ProjectMetadata(str(folder), PluginManager()).core
        found[project.name] = project
    return found


def test_every_link_of_a_description_works_outside_the_repository(metadata):
    for name, project in metadata.items():
        links = [first or second for first, second in LINK.findall(project.readme)]
        assert links or name == "higgs-trainer-demo"
        assert not [link for link in links if not re.match(r"https://|#", link)], name


def test_a_link_to_a_page_of_the_docs_leads_to_the_site_and_one_to_a_file_to_the_source(metadata):
    readme = (ROOT / "README.md").read_text("utf-8")
    page = re.search(r"\]\(docs/([\w/]+)\.md\)", readme)[1]
    urls = metadata["higgs-trainer"].urls
    described = metadata["higgs-trainer"].readme
    assert f"]({urls['Documentation']}{page}.html)" in described
    assert f"]({urls['Source']}CONTRIBUTING.md)" in described
    assert (
        f"]({metadata['label-guard'].urls['Source']}/tests/routes/ROUTES.md)"
        in metadata["label-guard"].readme
    )


def test_the_addresses_of_all_packages_begin_alike(metadata):
    source = metadata["higgs-trainer"].urls["Source"].removesuffix("source/")
    for project in metadata.values():
        assert {"Documentation", "Source"} <= project.urls.keys()
        assert all(url.startswith(source) for url in project.urls.values())


def test_the_packages_say_which_versions_of_python_they_are_for(metadata):
    for project in metadata.values():
        for minor in (11, 12, 13):
            assert f"Programming Language :: Python :: 3.{minor}" in project.classifiers
        assert project.authors
        assert project.keywords


@pytest.mark.parametrize(
    ("version", "bound"),
    [("2.14.3", "3"), ("26.0.1", "27"), ("0.8.0", "0.9"), ("0.29.2", "0.30"), ("0.0.1.1", "0.1")],
)
def test_a_range_ends_at_the_next_version_that_may_break_its_users(version, bound):
    assert script["find_bound"]("other", Version(version)) == bound


def test_a_library_whose_internals_are_used_ends_at_its_next_minor_version():
    assert script["find_bound"]("transformers", Version("5.24.1")) == "5.25"


def test_every_range_ends_where_the_tests_ended():
    """The rule of docs/decisions/dependencies.md. A wider range needs a test with the newer version."""
    pins = {name: Version(pin) for name, pin in script["read_pins"]().items()}
    ranges = script["read_ranges"]()
    assert {"torch", "transformers", "faster-whisper"} <= ranges.keys()
    for name, requirement in ranges.items():
        bounds = [part.version for part in requirement.specifier if part.operator == "<"]
        pin = pins[name]
        tested = max(pin, Version(script["TESTED"].get(name, "0")))
        assert bounds == [script["find_bound"](name, tested)], f"{name}: {tested} was tested"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow {pin}"


def test_the_guard_is_not_bound_to_one_version_of_torch(metadata):
    (torch,) = metadata["label-guard"].dependencies
    assert Requirement(torch).specifier.contains("2.99")
    assert not Requirement(torch).specifier.contains("3.0")


RANGES = {"typer": Requirement("typer>=0.20,<0.30"), "rich": Requirement("rich>=13,<16")}
PINS = {"typer": "0.29.2", "rich": "15.0.0"}


def test_the_newest_run_says_when_to_raise_a_pin_and_when_a_bound():
    allowed, released = {"typer": "0.29.2", "rich": "15.1.0"}, {"typer": "0.31.0", "rich": "15.1.0"}
    bound, pin = sorted(script["list_newer"](RANGES, PINS, allowed, released), reverse=True)
    assert "typer 0.31.0 is outside typer<0.30,>=0.20. To allow it, set the bound <0.32" in bound
    assert (
        pin
        == "rich 15.1.0 is newer than the pin 15.0.0. If `make test-newest` passes, run make constraints and make test."
    )


def test_a_pin_that_is_kept_on_purpose_says_until_when():
    wanted, newer = {"transformers": Requirement("transformers<5.25")}, {"transformers": "5.24.0"}
    (line,) = script["list_newer"](wanted, {"transformers": "5.23.0"}, newer, newer)
    assert line.endswith("The pin stays until peft 0.22 is released (docs/decisions/versions.md).")


def test_the_newest_run_says_when_nothing_is_behind():
    assert script["list_newer"](RANGES, PINS, PINS, PINS) == [
        "Every pin and every bound is at the newest release."
    ]


def test_messages_and_pages_quote_extras_and_name_existing_ones(metadata):
    """Without quotes, zsh takes the brackets for a pattern."""
    files = [
        *ROOT.glob("src/**/*.py"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
    ]
    commands = [
        (quote, extras)
        for file in files
        for quote, extras in re.findall(
            r"pip install[^\n]*?('?)(?:higgs-trainer|\.)\[([\w,-]+)\]", file.read_text("utf-8")
        )
    ]
    assert len(commands) > 8
    assert all(quote for quote, _ in commands)
    named = {extra for _, extras in commands for extra in extras.split(",")}
    assert named <= metadata["higgs-trainer"].optional_dependencies.keys()
