"""Documents are tested: what they name exists, and both READMEs say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest

from hongyan import errors

ROOT = Path(__file__).parents[2]
README, README_ZH = ROOT / "README.md", ROOT / "README.zh-CN.md"
DOCUMENTS = [
    README,
    README_ZH,
    ROOT / "ARCHITECTURE.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(document: Path) -> list[str]:
    """The lines of a document's `sh` blocks."""
    blocks = [body for language, body in FENCE.findall(document.read_text()) if language == "sh"]
    return [line for body in blocks for line in body.splitlines() if line.strip()]


def heading_levels(document: Path) -> list[int]:
    text = FENCE.sub("", document.read_text())
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]


def slug(heading: str) -> str:
    """The anchor that a heading gets on the usual forges."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(document: Path) -> set[str]:
    text = FENCE.sub("", document.read_text())
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), f"{document.name} links to {target}, which is not there"
        assert found.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(found), f"{document.name} links to {target}: no such heading"


def test_every_error_code_is_documented_with_its_retry() -> None:
    rows = (ROOT / "docs/api/errors.md").read_text().splitlines()
    for code, retry in errors.RETRY.items():
        assert any(f"`{code}`" in row and retry in row for row in rows), f"no row for {code}, {retry}"


def test_errors_md_names_no_code_that_does_not_exist() -> None:
    table = re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "docs/api/errors.md").read_text(), re.MULTILINE)
    assert set(table) <= set(errors.RETRY)


def test_both_readmes_have_the_same_commands_and_headings() -> None:
    assert commands(README) == commands(README_ZH)
    assert heading_levels(README) == heading_levels(README_ZH)


def test_readme_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)\b", "\n".join(commands(README))))
    assert named
    assert named <= targets


def cli_calls() -> list[list[str]]:
    """The arguments of each `.venv/bin/hongyan …` that a reader is told to type."""
    calls = re.findall(r"\.venv/bin/hongyan ([^`|\n]+)", README.read_text())
    return [call.split() for call in calls]


def test_readme_commands_are_commands_with_such_options() -> None:
    from hongyan.cli.main import main

    assert isinstance(main, click.Group)
    calls = [call for call in cli_calls() if not call[0].startswith("-")]
    assert calls
    for name, *arguments in calls:
        command = main.get_command(click.Context(main), name)
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), arguments[0])
        assert command is not None, f"README: no command `hongyan {name}`"
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} <= known, f"README: hongyan {name}"


def test_architecture_names_rooms_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert rooms
    for room in rooms:
        assert (ROOT / "src/hongyan" / room).exists(), f"ARCHITECTURE.md: no room {room}"
    packages = {path.parent.name for path in (ROOT / "src/hongyan").glob("*/__init__.py")}
    assert packages <= {room.rstrip("/") for room in rooms}, "a package that ARCHITECTURE.md does not name"


def test_documents_state_the_version_being_built() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    from hongyan import __version__

    assert __version__ == version


def test_locks_pin_hashes_and_name_no_registry() -> None:
    for name in ("lock.txt", "dev-lock.txt"):
        text = (ROOT / "requirements" / name).read_text()
        assert "://" not in text
        assert not re.search(r"^\s*(-i|--index|--extra-index|--find-links)", text, re.MULTILINE)
        pins = re.findall(r"^([a-z0-9._-]+)==", text, re.MULTILINE)
        assert pins
        blocks = re.split(r"^(?=[a-z0-9._-]+==)", text, flags=re.MULTILINE)[1:]
        assert all("--hash=sha256:" in block for block in blocks)
