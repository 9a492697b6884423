"""What people type and read in `hongyan chat`."""

from __future__ import annotations

import pytest

from hongyan.cli.chat_text import cleaned, shown, split_address, why_lost


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("@bob hello", ("@bob", "hello")),
        ("#team  hello", ("#team", " hello")),
        ("hello @bob", (None, "hello @bob")),
        ("@bob", (None, "@bob")),
        ("# a heading", (None, "# a heading")),
        ("", (None, "")),
    ],
)
def test_an_address_at_the_start(line: str, found: tuple[str | None, str]) -> None:
    assert split_address(line) == found


@pytest.mark.parametrize(
    "text",
    ["hello", "你好\u3000世界", "a\u00a0b", "👨\u200d👩\u200d👧", "می\u200cخواهم", "\U0001fadf", "a\tb"],
)
def test_text_of_any_script_is_shown_as_it_is(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize("text", ["\x1b[31m", "\r", "\n", "\x7f", "\x9b31m", "\u2028", "\ud800", "\u202e"])
def test_what_drives_a_terminal_is_spelled_out(text: str) -> None:
    assert shown(f"a{text}b").isascii()
    assert shown([text]).isascii()


def test_other_content_is_shown_as_json() -> None:
    assert shown({"a": [1, None, "é"]}) == '{"a": [1, null, "é"]}'


def test_what_was_typed_is_sent_without_controls() -> None:
    assert cleaned(" in \x1b[31mred\x00\x9b  ") == "in [31mred"
    assert cleaned("two\nlines\tand 👨\u200d👩") == "two\nlines\tand 👨\u200d👩"
    with pytest.raises(ValueError, match="UTF-8"):
        cleaned("a\udcffb")


@pytest.mark.parametrize(
    ("code", "reason", "said"),
    [
        (1012, "retry_after_ms=822", "the server restarts"),
        (1006, "", "the connection was lost"),
        (1006, "[Errno 111] refused", "[Errno 111] refused"),
        (4401, "bad_token", "bad_token"),
        (3000, "\x1b[31m", "\\x1b[31m"),
        (3000, "", "closed with 3000"),
    ],
)
def test_a_lost_connection_in_words(code: int, reason: str, said: str) -> None:
    assert why_lost(code, reason) == said
