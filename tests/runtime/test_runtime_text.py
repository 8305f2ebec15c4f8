import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.text.detokenizer import Detokenizer, StopMatcher, Utf8Decoder
from runtime.text.reasoning_splitter import Piece, ReasoningSplitter

PLACES = st.lists(st.integers(0, 80), max_size=12)
MARKED = st.lists(
    st.sampled_from(["<think>", "</think>", "<think", "think>", "</", "<", "\n", "\n\n", " ", "a", "é", "🩺"]),
    max_size=14,
).map("".join)
CHARACTERS = [b"\xc3\xa9", b"\xe2\x82\xac", b"\xf0\x9f\xa9\xba", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"a"]
BROKEN_BYTES = st.lists(st.sampled_from(CHARACTERS) | st.binary(max_size=3), max_size=20).map(b"".join)


def bounds(length: int, places: list[int]) -> list[tuple[int, int]]:
    ends = [0, *sorted(min(place, length) for place in places), length]
    return list(itertools.pairwise(ends))


def join(pieces: list[Piece]) -> tuple[str, str]:
    reasoning = "".join(piece.text for piece in pieces if piece.reasoning)
    return reasoning, "".join(piece.text for piece in pieces if not piece.reasoning)


def split_whole(text: str, *, opened: bool) -> tuple[str, str]:
    """What the splitter should make of a text, said by regular expressions over the whole of it."""
    begin = re.match(r"\s*<think>", text)
    if not opened and not begin:
        return "", text
    rest = text if opened or not begin else text[begin.end() :]
    reasoning, marker, answer = rest.partition("</think>")
    return reasoning.strip("\n"), answer.lstrip("\n") if marker else ""


@given(BROKEN_BYTES, PLACES)
def test_any_split_of_the_bytes_decodes_to_the_same_text(data: bytes, places: list[int]) -> None:
    decoder = Utf8Decoder()
    text = "".join(decoder.feed(data[begin:end]) for begin, end in bounds(len(data), places)) + decoder.flush()
    assert text == data.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("fed", "shown"),
    [
        (b"\xff", "\ufffd"),
        (b"\xe2\x82", ""),
        (b"\xe2\x82\xac", "€"),
        (b"\xe2a", "\ufffda"),
        (b"\xf0\x9f\xa9", ""),
        (b"\xc0\x80", "\ufffd\ufffd"),
        (b"\xed\xa0", "\ufffd\ufffd"),
        (b"\xf4\x90", "\ufffd\ufffd"),
    ],
)
def test_a_byte_that_cannot_continue_is_replaced_at_once_and_a_beginning_is_waited_for(fed: bytes, shown: str) -> None:
    decoder = Utf8Decoder()
    assert "".join(decoder.feed(fed[index : index + 1]) for index in range(len(fed))) == shown


@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4),
    PLACES,
)
@example("abcd", ["bcx", "c"], [1, 2, 3])
def test_any_split_ends_before_the_earliest_stop_string(text: str, stops: list[str], places: list[int]) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.feed(text[begin:end]) for begin, end in bounds(len(text), places)) + matcher.flush()
    found = [text.find(stop) for stop in stops if stop in text]
    assert shown == (text[: min(found)] if found else text)
    assert matcher.stopped == bool(found)


def test_a_text_that_cannot_become_a_stop_string_is_not_held_back() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert [matcher.feed(text) for text in ("Iron", "\n", "Zinc", "\nUs", "er: hi")] == ["Iron", "", "\nZinc", "", ""]
    assert matcher.stopped


@given(MARKED, st.booleans(), PLACES)
@example("<think>\na\n\n</think>\n\nb</think>", False, [3, 9, 12, 20])
@example("\n</think>\n", True, [1, 2])
def test_any_split_parts_reasoning_and_answer_in_the_same_way(text: str, opened: bool, places: list[int]) -> None:
    splitter = ReasoningSplitter(opened=opened)
    pieces: list[Piece] = []
    for begin, end in bounds(len(text), places):
        pieces += splitter.feed(text[begin:end])
    pieces += splitter.flush()
    assert join(pieces) == split_whole(text, opened=opened)
    assert all(piece.text for piece in pieces)


def test_reasoning_is_shown_while_it_comes() -> None:
    splitter = ReasoningSplitter()
    shown = [splitter.feed(text) for text in ("<th", "ink>", "\nLow iron", ".\n", "</thi", "nk>\n\n", "Anaemia")]
    assert shown == [[], [], [Piece("Low iron", True)], [Piece(".", True)], [], [], [Piece("Anaemia", False)]]


def test_markers_inside_an_answer_are_text() -> None:
    assert ReasoningSplitter().feed("Write <think> and </think>.") == [Piece("Write <think> and </think>.", False)]


@given(MARKED, st.lists(st.sampled_from(["a", "think", "é🩺", "</"]), max_size=2), PLACES)
def test_a_stream_keeps_exactly_what_it_showed(text: str, stops: list[str], places: list[int]) -> None:
    data, shown = text.encode(), []
    stream = Detokenizer(stops)
    for begin, end in bounds(len(data), places):
        shown += stream.feed(data[begin:end])
    shown += stream.flush()
    assert join(shown) == (stream.reasoning or "", stream.text)
    whole = Detokenizer(stops)
    whole.feed(data)
    whole.flush()
    assert (whole.reasoning, whole.text, whole.stopped) == (stream.reasoning, stream.text, stream.stopped)
