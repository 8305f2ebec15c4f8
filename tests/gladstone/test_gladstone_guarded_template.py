import gc
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gladstone.chat.guarded_template import GuardedTemplate, TemplateProcess
from gladstone.chat.guarded_template_child import TemplateLimits
from gladstone.chat.messages import Message
from gladstone.chat.template import ChatTemplate
from gladstone.errors import DataError, ToolError
from gladstone.machine.host import peak_memory_bytes
from gladstone.report.terminal import visible
from tests.gladstone.chat_templates import CHATML, TEMPLATES
from tests.gladstone.hostile_templates import ESCAPES, GIANTS, LOOPS
from tests.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[2]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
SYSTEM = Message("system", "Be brief.")
ONE = (Message("user", 'Is "5 < 6" & ünïcode 😀 fine?\n'), Message("assistant", "Yes: <b>5</b> < 6."))
TWO = (*ONE, Message("user", "Sure?"), Message("assistant", "Quite sure.", "Think: 5 < 6."))
THOUGHTFUL = (SYSTEM, ONE[0], Message("assistant", "Yes.", "First."), *TWO[2:])
CONVERSATIONS = (ONE, (SYSTEM, *ONE), TWO, (SYSTEM, *TWO), THOUGHTFUL, ONE[:1], (SYSTEM, *TWO[:3]), ())
ATTACK = (Message("user", "attack"),)
LIMITS = TemplateLimits(time_s=0.25)  # for what uses it up
ENOUGH = TemplateLimits(time_s=1.0)  # for what fails for another reason, on a busy machine
MAX_GROWTH_BYTES = 50_000_000
T = TypeVar("T")
SECRET = "heliotrope-4711"


@pytest.fixture(scope="module")
def chatml() -> Iterator[GuardedTemplate]:
    with GuardedTemplate(CHATML, SPECIAL) as template:
        yield template


def outcome(act: Callable[[], T]) -> T | tuple[type[Exception], str]:
    """What comes of it, an error by its type and its text."""
    try:
        return act()
    except (DataError, ValueError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_honest_template_renders_as_it_does_within_the_process(name: str) -> None:
    plain = ChatTemplate(TEMPLATES[name], SPECIAL)
    with GuardedTemplate(TEMPLATES[name], SPECIAL) as guarded:
        for fact in ("source", "sha256", "special_tokens", "reasoning_field", "takes_content_parts", "markers"):
            assert getattr(guarded, fact) == getattr(plain, fact)
        for messages, prompt in itertools.product(CONVERSATIONS, (False, True)):
            expected = outcome(lambda: plain.render(messages, add_generation_prompt=prompt))  # noqa: B023
            assert outcome(lambda: guarded.render(messages, add_generation_prompt=prompt)) == expected  # noqa: B023
        for messages in CONVERSATIONS:
            cut = outcome(lambda: plain.segments(messages))  # noqa: B023
            assert outcome(lambda: guarded.segments(messages)) == cut  # noqa: B023


@given(content=st.text(st.characters(exclude_categories=())), reasoning=st.none() | st.text())
def test_any_text_that_python_holds_comes_through(content: str, reasoning: str | None, chatml: GuardedTemplate) -> None:
    messages = (ONE[0], Message("assistant", content, reasoning))
    assert chatml.render(messages) == ChatTemplate(CHATML, SPECIAL).render(messages)


@pytest.mark.parametrize("content", ["\ud83d\ude00", "\udcff", "\0", "😀" * 100_000, "x" * 3_000_000])
def test_halves_of_characters_and_long_turns_come_through_as_they_are(content: str, chatml: GuardedTemplate) -> None:
    assert content in chatml.render((Message("user", content),))


@pytest.mark.parametrize(
    "source",
    [
        "a\n{% if x %}\nb",
        "{{ x|no_such_filter }}",
        "{{ 1 // 0 }}",
        "{{ nothing.there.at_all }}",
        "{{ raise_exception('no ' ~ messages|length) }}",
        "{{ raise_exception('\x1b]0;title\x07\ud800') }}",
        "{{ raise_exception('x' * 99999) }}",
        "{{ 9**9**9 }}",
        "{{ 'x'.encode('no-such-codec') }}",
        "{{ 'é'.encode('cp1140') }}",
        "{{ 'x'.encode('utf-16') }}{{ '\\N{GREEK SMALL LETTER ALPHA}' }}{{ messages|pprint }}",
        "{{ '=' * 80 }}{{ [1] * 3 }}{{ 3 * 'ab' }}{{ 6 * 7 }}{{ 1.5 * 2 }}{{ -3 * 'x' }}{{ 'a\nb'|indent(2) }}",
        "{{ messages|tojson(indent=2) }}{{ messages|length }}{{ 'a b c'|wordwrap(1) }}",
    ],
)
def test_errors_and_rare_functions_are_those_of_the_template_within_the_process(source: str) -> None:
    def said(kind: type[ChatTemplate]) -> object:
        return outcome(lambda: kind(source, SPECIAL).render(ONE))

    guarded, plain = said(GuardedTemplate), said(ChatTemplate)
    if source.startswith("{{ 'é'.encode"):  # a codec in a file of its own: the child opens none
        assert str(plain) == r"b'Q'"
        assert "cannot render these turns" in str(guarded)
    else:
        assert guarded == plain


def test_what_a_template_says_cannot_steer_the_terminal() -> None:
    with pytest.raises(DataError) as caught:
        ChatTemplate("{{ raise_exception('\x1b]0;title\x07' ~ 'x' * 5000) }}").render(ONE)
    assert visible(str(caught.value)) == str(caught.value)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("source", ["{{ 'x' * 1000001 }}", "{{ 1000001 * [1] }}", "{{ (1, 2) * 500001 }}"])
def test_long_repetitions_are_refused_even_without_a_process_of_their_own(source: str) -> None:
    with pytest.raises(DataError, match="forbidden: a text or list is repeated to more than 1,000,000 elements"):
        ChatTemplate(source).render(ONE)
    assert ChatTemplate("{% if messages is string %}" + source + "{% endif %}ok").render(ONE) == "ok"


def test_long_products_are_refused_even_without_a_process_of_their_own() -> None:
    source = "{% set n = namespace(n=9) %}{% for i in range(40) %}{% set n.n = n.n * n.n %}{% endfor %}"
    with pytest.raises(DataError, match="a product has more than 100,000 bits"):
        ChatTemplate(source).render(ONE)


def test_the_time_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for zone in ("Asia/Kathmandu", "UTC", "EST5EDT"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            plain = ChatTemplate("{{ strftime_now('%d %b %Y %H') }}").render(ONE)
            with GuardedTemplate("{{ strftime_now('%d %b %Y %H') }}") as template:
                shown[zone] = (template.render(ONE), plain)
        finally:
            monkeypatch.undo()
            time.tzset()
    assert all(guarded == plain for guarded, plain in shown.values())
    assert len(set(shown.values())) == 3


# What an attacker gets


def spread(payloads: list[str], always: int) -> list[object]:
    """Every n-th of them always, all of them in the long run."""
    step = len(payloads) / always
    chosen = {int(place * step) for place in range(always)}
    return [
        pytest.param(each, marks=() if n in chosen else pytest.mark.long, id=str(n)) for n, each in enumerate(payloads)
    ]


@pytest.fixture(scope="module")
def idle() -> Iterator[list[TemplateProcess]]:
    """At most one process, left by an attack that it survived."""
    processes: list[TemplateProcess] = []
    yield processes
    for process in processes:
        process.close()


@pytest.mark.parametrize("payload", ESCAPES)
def test_an_escape_gets_nothing_out_and_changes_nothing(
    payload: str, idle: list[TemplateProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.setenv("GLADSTONE_SECRET", SECRET)
    source = payload.replace("SECRET_FILE", str(tmp_path / "secret")).replace("WRITTEN_FILE", str(tmp_path / "new"))
    messages = list(TWO)
    process = idle.pop() if idle else TemplateProcess()
    guarded = outcome(lambda: GuardedTemplate(source, SPECIAL, process).render(messages))
    for told in (guarded, outcome(lambda: ChatTemplate(source, SPECIAL).render(messages))):
        if isinstance(told, str):
            assert told in ("", "1", "[][Undefined]") or set(told.strip("[]").split(", ")) == {"Undefined"}
        else:
            assert told[0] is DataError
            assert not re.search(f"{SECRET}|<class|<module|environ\\(|root:", told[1])
    assert tuple(messages) == TWO
    assert not (tmp_path / "new").exists()
    if "does not compile" not in str(guarded):
        assert GuardedTemplate(CHATML, SPECIAL, process).render(messages) == ChatTemplate(CHATML).render(messages)
        idle.append(process)


class Attack:
    """A payload within an honest template, met by a conversation that sets it off.

    In the end an honest conversation renders: by the same template, unless it never compiled.
    """

    def __init__(self, payload: str, limits: TemplateLimits = LIMITS) -> None:
        self._limits = limits
        self._source = "{% if messages[0].content == 'attack' %}" + payload + "{% else %}" + CHATML + "{% endif %}"
        self._template: GuardedTemplate | None = None
        self.message, self.growth_bytes = "", 0

    def __enter__(self) -> "Attack":
        process = TemplateProcess(self._limits)
        forget_peak()
        before_bytes = psutil.Process().memory_info().rss
        try:
            self._template = GuardedTemplate(self._source, SPECIAL, process)
            self._template.render(ATTACK)
        except DataError as error:
            self.message = str(error)
        self.growth_bytes = peak_memory_bytes() - before_bytes
        return self

    def __exit__(self, *failure: object) -> None:
        with self._template or GuardedTemplate(CHATML, SPECIAL) as template:
            template.process.limits = TemplateLimits()
            assert template.render(TWO) == ChatTemplate(CHATML, SPECIAL).render(TWO)
        assert zombies() == []


def forget_peak() -> None:
    """Let Linux measure the highest resident size from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def zombies() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("payload", spread(LOOPS, 15))
def test_what_never_ends_is_ended(payload: str) -> None:
    with Attack(payload) as attack:
        assert f"takes longer than {LIMITS.time_s} s " in attack.message


@pytest.mark.parametrize("payload", spread(GIANTS, 15))
def test_what_fills_the_memory_does_not_fill_that_of_the_parent(payload: str) -> None:
    with Attack(payload) as attack:
        assert re.search("needs more than 512.0 MB|writes more than 4.0 MB|takes longer|forbidden", attack.message)
    assert attack.growth_bytes < MAX_GROWTH_BYTES


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("{{ 'x'|center(600000000) }}", "needs more than 512.0 MB of memory for these turns."),
        ("{{ 'x'|center(4010000) }}", "writes more than 4.0 MB for these turns."),
        ("{{ 'ü' * 999999 }}" * 3, "writes more than 4.0 MB for these turns."),
        (LOOPS[0], "takes longer than 1 s for these turns."),
        ("{{ 'x'|center(99999999)|length }}" * 999, "takes longer than 1 s to compile."),
    ],
)
def test_the_message_says_what_there_was_too_much_of(payload: str, message: str) -> None:
    with Attack(payload, ENOUGH) as attack:
        assert attack.message == f"the chat template {message}"


def test_long_turns_may_make_long_texts() -> None:
    turns = (Message("user", "x" * 900_000),)
    with GuardedTemplate("{% for n in range(messages|length * 7) %}{{ messages[0].content }}{% endfor %}") as template:
        assert len(template.render(turns)) == 6_300_000


# What becomes of the process


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def child_of(template: GuardedTemplate) -> int:
    pid = template.process.pid
    assert pid is not None
    assert psutil.Process(pid).ppid() == os.getpid()
    return pid


def test_closing_ends_the_process_and_nothing_renders_afterwards() -> None:
    with GuardedTemplate(CHATML) as template:
        pid = child_of(template)
        assert template.render(ONE)
    assert not psutil.pid_exists(pid)
    template.close()
    with pytest.raises(ValueError, match="closed"):
        template.render(ONE)


def test_a_collected_template_ends_its_process() -> None:
    template = GuardedTemplate(CHATML)
    pid = child_of(template)
    del template
    gc.collect()
    assert not psutil.pid_exists(pid)


def test_a_template_that_does_not_compile_leaves_no_process() -> None:
    process = TemplateProcess()
    pid = process.pid
    with pytest.raises(DataError, match="does not compile"):
        GuardedTemplate("{% if %}", process=process)
    assert pid is not None
    assert not psutil.pid_exists(pid)


def test_a_killed_process_is_replaced() -> None:
    with GuardedTemplate(CHATML) as template:
        first = child_of(template)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: ended(first), "the process ends")
        assert template.render(ONE) == ChatTemplate(CHATML).render(ONE)
        assert child_of(template) != first


def test_a_process_that_is_killed_at_work_is_named() -> None:
    with GuardedTemplate("{% if messages %}" + LOOPS[0] + "{% endif %}ok") as template:
        threading.Timer(0.2, os.kill, (child_of(template), signal.SIGKILL)).start()
        with pytest.raises(DataError, match=r"breaks the process that renders it \(ended by signal 9\)"):
            template.render(ONE)
        assert template.render(()) == "ok"


def test_ctrl_c_reaches_the_parent_alone_and_the_next_answer_is_the_right_one() -> None:
    with GuardedTemplate("{% if messages[0].content == 'attack' %}" + LOOPS[0] + "{% endif %}ok") as template:
        assert os.getpgid(child_of(template)) != os.getpgid(0)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            template.render(ATTACK)
        assert template.render(ONE) == "ok"


def test_threads_share_a_template(chatml: GuardedTemplate) -> None:
    turns = [(Message("user", f"number {n}"),) for n in range(200)]
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(chatml.render, turns))
    assert told == [ChatTemplate(CHATML, SPECIAL).render(each) for each in turns]


def counted(opened: Callable[[], object]) -> int:
    opened()
    gc.collect()
    return psutil.Process().num_fds() + len(psutil.Process().children())


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.long)])
def test_opening_and_closing_leaves_neither_descriptors_nor_processes(count: int) -> None:
    def opened() -> None:
        with GuardedTemplate("{% if messages|length == 1 %}{{ 'x'|center(10**9) }}{% endif %}ok") as template:
            assert template.render(()) == "ok"
            with pytest.raises(DataError):
                template.render(ATTACK)

    before = counted(opened)
    for _ in range(count):
        opened()
    assert counted(opened) == before


HOLDER = """
import os, sys, time
from gladstone.chat.messages import Message
from gladstone.chat.guarded_template import GuardedTemplate, TemplateProcess
from gladstone.chat.guarded_template_child import TemplateLimits
template = GuardedTemplate(sys.argv[1], process=TemplateProcess(TemplateLimits(time_s=0.5)))
print(template.process.pid, flush=True)
"""


def started(source: str, rest: str) -> tuple["subprocess.Popen[str]", int]:
    program = subprocess.Popen(
        [sys.executable, "-c", HOLDER + rest, source], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert program.stdout is not None
    return program, int(program.stdout.readline())


@pytest.mark.parametrize(
    ("source", "rest"), [(CHATML, "time.sleep(60)"), (LOOPS[0], "template.render([Message('user', 'x')])")]
)
def test_the_process_ends_with_a_parent_that_is_killed(source: str, rest: str) -> None:
    program, pid = started(source, rest)
    with program:
        assert psutil.pid_exists(pid)
        time.sleep(0.1)  # the loop has begun
        program.kill()
    wait_until(lambda: ended(pid), "the process ends")


@pytest.mark.parametrize("rest", ["", "sys.exit(3)", "raise RuntimeError", "del sys.modules['os']"])
def test_the_process_ends_with_the_program_that_forgot_to_close_it(rest: str) -> None:
    program, pid = started(CHATML, rest)
    with program:
        program.wait(PATIENCE_S)
    wait_until(lambda: ended(pid), "the process ends")


def test_an_answer_that_waits_while_the_program_is_stopped_is_taken() -> None:
    rest = """
for _ in range(2000):
    assert template.render([Message("user", "x" * 20_000)])
    print("rendered", flush=True)
"""
    program, _ = started(CHATML, rest)
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "rendered\n"
        program.send_signal(signal.SIGSTOP)  # in the middle of a request, nearly always
        time.sleep(0.7)
        program.send_signal(signal.SIGCONT)
        assert program.stdout.read() == "rendered\n" * 1999
    assert program.returncode == 0


def test_after_a_fork_each_process_has_a_child_of_its_own() -> None:
    rest = """
first = template.process.pid
forked = os.fork()
text = template.render([Message("user", "x")])
other = template.process.pid
if not forked:
    print("same" if other == first else "other", len(text), flush=True)
    sys.exit(0)
os.waitpid(forked, 0)
last = template.render([])  # by a process of its own still, or by one that was killed by the fork
print("same" if template.process.pid == first else "other", len(text), last == "", flush=True)
"""
    program, _ = started(CHATML, rest)
    with program:
        assert program.stdout is not None
        size = len(ChatTemplate(CHATML).render((Message("user", "x"),)))
        assert program.stdout.read().split("\n")[:2] == [f"other {size}", f"same {size} True"]
    assert program.returncode == 0


# What the process may do, should a template ever leave the sandbox

LIMITED = """
import os, sys
from gladstone.chat.guarded_template_child import limit_process
written = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
limit_process(100_000_000)
for act in (lambda: open(__file__), lambda: os.pipe(), lambda: os.write(written, b"x"), lambda: bytearray(200_000_000)):
    try:
        act()
    except (OSError, MemoryError) as error:
        print(type(error).__name__, getattr(error, "errno", ""))
print(len(bytearray(50_000_000)))
"""


def test_the_process_opens_and_writes_no_file_and_takes_little_memory(tmp_path: Path) -> None:
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "written"],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.split("\n") == ["OSError 24", "OSError 24", "OSError 27", "MemoryError ", "50000000", ""]


def test_the_process_knows_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLADSTONE_SECRET", SECRET)
    with GuardedTemplate(CHATML) as template:
        child = psutil.Process(child_of(template))
        assert set(child.environ()) <= {"TZ", "LD_LIBRARY_PATH", "LC_CTYPE"}
        assert child.cwd() == "/"
        assert {file.fd for file in child.open_files()} == set()
        assert child.num_fds() <= 3


# a process that somebody took over: what it answers is read only as far as it may be

IMPOSTOR = """#!{python} -S
import os, struct, time
def send(status, size, text): os.write(0, struct.pack(">cQ", status, size) + text)
send(b"R", 0, b"")
os.read(0, 100000)
{act}
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("act", "message"),
    [
        ("send(b'T', 1 << 60, b'')", "writes more than 4.0 MB to compile"),
        ("send(b'T', 5_000_000, b'')", "writes more than 4.0 MB to compile"),
        ("send(b'T', 10, b'x')", "takes longer than 1 s to compile"),
        ("send(b'?', 0, b'')", "its reply is malformed"),
        ("send(b'T', 2, bytes([255, 254]))", "its reply is malformed"),
        ("os.write(0, b'T'); os._exit(4)", "breaks the process that renders it .exit status 4."),
        ("[os.write(0, b'R' + bytes(8)) for _ in iter(int, 1)]", "its reply is malformed"),
    ],
)
def test_a_process_that_was_taken_over_cannot_take_its_parent_along(
    act: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor = tmp_path / "python"
    impostor.write_text(IMPOSTOR.format(python=sys.executable, act=act))
    impostor.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(impostor))
    with pytest.raises(DataError, match=message):
        GuardedTemplate(CHATML, process=TemplateProcess(ENOUGH))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "cannot be started: .*No such file"),
        ("#!/bin/sh\nexit 3\n", "did not start .exit status 3.: it printed nothing"),
        ("#!/bin/sh\necho no jinja >&2\nkill -9 $$\n", "did not start .ended by signal 9.: no jinja"),
        ("#!/bin/sh\nexec sleep 60\n", "did not start within 0.3 s"),
        ("#!/bin/sh\necho hello >&0\nsleep 60\n", "did not start"),
    ],
)
def test_where_no_process_can_be_started_nothing_is_rendered(
    script: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    if script:
        python.write_text(script)
        python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    files, children = psutil.Process().num_fds(), psutil.Process().children()
    with pytest.raises(ToolError, match=message):
        GuardedTemplate(
            CHATML, process=TemplateProcess(TemplateLimits(start_s=0.3 if script and "sleep" in script else 30.0))
        )
    gc.collect()
    assert psutil.Process().num_fds() == files
    assert psutil.Process().children() == children


def test_a_process_without_jinja_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import jinja2

    monkeypatch.setattr(jinja2, "__file__", "/nowhere/jinja2/__init__.py")
    monkeypatch.setattr("gladstone.chat.guarded_template._PACKAGES", ("jinja2",))
    with pytest.raises(ToolError, match="No module named 'gladstone'"):
        GuardedTemplate(CHATML)
