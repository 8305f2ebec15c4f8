import os
import signal

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from gladstone.report.terminal import visible
from runtime.commands.console import TypedLines, Waiting, cancel_on_interrupt
from runtime.commands.screen import AnswerScreen
from runtime.text.reasoning_splitter import Piece
from tests.waiting import wait_until

ANSWER = [Piece("Low", True), Piece(" iron.", True), Piece("Ana", False), Piece("emia\n\x1b[31m", False)]


def read_typed(keys: str, lines: int) -> list[str | None]:
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text(keys)
        source = TypedLines()
        return [source.read() for _ in range(lines)]


def test_control_characters_become_visible_and_text_stays() -> None:
    assert visible("a\x1b]0;x\x07\r\x7f\x9b2J") == "a␛]0;x␇␍␡\ufffd2J"
    assert visible("Zeile\n\tπ é 🩺 नमस्ते") == "Zeile\n\tπ é 🩺 नमस्ते"


def test_typed_lines_are_read_one_by_one() -> None:
    assert read_typed("What is iron?\rAnd zinc?\r", 2) == ["What is iron?", "And zinc?"]


def test_ctrl_d_leaves() -> None:
    assert read_typed("\x04", 1) == [None]


def test_ctrl_c_leaves_only_when_pressed_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_typed("half a line\x03\x03", 1) == [None]
    assert capsys.readouterr().out == "Ctrl-C again, Ctrl-D or /exit leaves.\n"
    assert read_typed("\x03iron\r\x03zinc\r", 2) == ["iron", "zinc"]


def test_reasoning_is_shown_on_lines_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    screen = AnswerScreen(show_reasoning=True)
    for piece in ANSWER:
        screen.piece(piece)
    screen.finish()
    assert capsys.readouterr().out == "Low iron.\nAnaemia\n␛[31m\n"


def test_hidden_reasoning_is_mentioned_once(capsys: pytest.CaptureFixture[str]) -> None:
    screen = AnswerScreen(show_reasoning=False)
    for piece in ANSWER:
        screen.piece(piece)
    screen.finish()
    assert capsys.readouterr().out == "(thinking)\nAnaemia\n␛[31m\n"


def test_waiting_is_shown_only_when_it_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    with Waiting("loading", patience_s=60):
        pass
    assert capsys.readouterr().err == ""
    with Waiting("loading", patience_s=0) as waiting:
        wait_until(lambda: waiting.shown, "the line about waiting")
    assert capsys.readouterr().err == "loading …\n"


def test_ctrl_c_is_remembered_inside_and_works_as_before_outside() -> None:
    before = signal.getsignal(signal.SIGINT)
    with cancel_on_interrupt() as cancelled:
        assert not cancelled()
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(cancelled, "Ctrl-C is noticed")
    assert signal.getsignal(signal.SIGINT) is before
