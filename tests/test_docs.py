"""The documentation is kept true: what it shows is what is printed, its pages agree with the code, its site builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer.main
import yaml
from scale_tables import tables

from belay_cli import __version__
from belay_cli.cli import build
from belay_cli.engine.arithmetic import chosen_engine
from docs import reference, transcripts

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PAGES = {str(page.relative_to(ROOT)): page for page in transcripts.PAGES}
TEXTS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (*PAGES, "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
}


def steps_of(name: str) -> list[transcripts.Step]:
    return list(transcripts.steps(TEXTS[name].split("\n")))


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in PAGES if any(map(transcripts.is_run, steps_of(name)))])
def test_what_a_page_shows_is_what_is_printed(name: str) -> None:
    lines = TEXTS[name].split("\n")
    with transcripts.session() as here:
        for step in filter(transcripts.is_run, steps_of(name)):
            ran = here.run(step)
            if step.shown is None:
                assert ran.code == 0, (step.text, ran.text)
                continue
            shown = "\n".join(lines[step.shown])
            assert transcripts.same(ran.text, shown), (
                f"{step.text}\n{ran.text}\nmake transcripts writes it into the page"
            )
            assert bool(ran.code) == ran.failed, step.text


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_not_run_is_there(name: str) -> None:
    """Targets of make, extras of pip: they are looked up, since they set a machine up."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = re.findall(r"^(\w+) = \[", PYPROJECT.partition("[project.optional-dependencies]")[2], re.MULTILINE)
    code = "\n".join(re.findall(r"`[^`\n]+`", TEXTS[name]) + [step.text for step in steps_of(name)])
    assert set(re.findall(r"\bmake ([a-z]+)", code)) <= targets
    asked = re.findall(r"(?:belay|belay-cli|\.)\[([a-z,]+)\]", code)
    assert {extra for names in asked for extra in names.split(",")} <= set(extras)


def test_there_are_commands() -> None:
    assert sum(transcripts.is_run(step) for name in PAGES for step in steps_of(name)) >= 30
    assert [step.text for step in steps_of("README.md") if step.text.startswith("belay average ")]


def test_a_page_that_is_not_true_is_written_anew(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    shown = "```console\n$ belay plan nowhere\nall is well\n\n$ belay --version\n```\n"
    page.write_text(shown)
    anew = transcripts.updated(page)
    assert "all is well" not in anew
    expected = "```console\n$ belay plan nowhere\nbelay: nowhere: does not exist\n\n$ belay --version\nbelay "
    assert anew == f"{expected}{__version__} (engine: {chosen_engine()})\n```\n"
    page.write_text(anew)
    assert transcripts.updated(page) == anew


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("in 2.6 s", "in 11 s", True),
        ("cpu with 2 threads", "cpu with 16 threads", True),
        ("cpu with 2 threads, about 0.1 s here", "cpu with 16 threads, about 2 min here", True),
        ("cpu with 2 threads, about 0.1 s here", "cpu with 1 thread", True),
        ("3.35 MB of buffers", "150 MB of buffers", True),
        ("loss 0.1327", "loss 0.1328", True),
        ("reads 1.37 MB", "reads 1.38 MB", False),
        ("weight 9.0%", "weight 9.1%", False),
        ("loss 0.1327", "loss 0.1337", False),
    ],
)
def test_only_what_is_of_the_machine_may_differ(one: str, other: str, same: bool) -> None:
    assert transcripts.same(one, other) is same


def test_the_tables_of_other_machines_are_what_the_model_says() -> None:
    for table in tables():
        assert table in TEXTS["docs/scale.md"], "python benchmarks/scale.py --table"


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].split()) < 900


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", TEXTS[name]):
        there = page.parent / target if target else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_the_picture_is_what_its_script_draws() -> None:
    before = (ROOT / "docs/dynamics.svg").read_bytes()
    subprocess.run([sys.executable, ROOT / "docs/draw_dynamics.py"], check=True)
    assert (ROOT / "docs/dynamics.svg").read_bytes() == before


def options() -> Iterator[tuple[str, str]]:
    for command, made in typer.main.get_command(build()).commands.items():  # type: ignore[attr-defined]
        for parameter in made.params:
            if not parameter.hidden:
                yield command, max(parameter.opts, key=len)


def test_the_reference_has_every_option_of_every_command() -> None:
    parts = re.split(r"^## belay (\w+)$", reference.reference(), flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert {command for command, _ in options()} == set(sections)
    for command, option in options():
        if option.startswith("-"):
            assert re.search(rf"^\| .*`{option}[ `]", sections[command], re.MULTILINE), (command, option)


class References(HTMLParser):
    """What a browser fetches for a page without being asked."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.fetched += [found["src"] or ""] if "src" in found else []
        if tag == "link" and found.get("rel") in ("stylesheet", "preload", "preconnect", "icon"):
            self.fetched.append(found["href"] or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does; a warning of the builder is an error."""
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(directory)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return directory


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(list((ROOT / "docs").glob("*.md")))
    for page in pages:
        seen = References()
        seen.feed(page.read_text(encoding="utf-8"))
        assert [address for address in seen.fetched if re.match(r"(https?:)?//", address)] == []


def test_the_site_has_every_option_and_every_public_name(site: Path) -> None:
    import belay_cli

    commands = (site / "commands/index.html").read_text(encoding="utf-8")
    assert all(option in commands for _, option in options() if option.startswith("-"))
    api = (site / "api/index.html").read_text(encoding="utf-8")
    assert all(f'id="belay_cli.{name}"' in api for name in belay_cli.__all__ if not name.startswith("_"))


def test_the_files_to_read_first_are_there() -> None:
    listed = re.findall(r"^\d+\. `(belay_cli/[\w/]+\.py)`", TEXTS["CONTRIBUTING.md"], re.MULTILINE)
    assert len(listed) == 11
    assert [path for path in listed if not (ROOT / path).exists()] == []


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    (paper,) = citation["references"]
    assert paper["url"].rpartition("/")[2] in TEXTS["README.md"]
    assert [author["family-names"] for author in paper["authors"]] == ["Patsenker", "Li", "Kluger"]


@pytest.mark.parametrize(
    "name", [".github/workflows/ci.yml", ".github/workflows/release.yml", ".pre-commit-config.yaml", "mkdocs.yml"]
)
def test_files_of_other_programs_are_yaml(name: str) -> None:
    assert yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_versions_of_python_are_those_of_the_package() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert f'requires-python = ">={jobs["test"]["strategy"]["matrix"]["python"][0]}"\n' in PYPROJECT
