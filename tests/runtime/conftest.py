import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gladstone.gguf.header import read_header
from runtime.cli import main
from runtime.commands import console
from runtime.engine import Engine, EngineOptions

Rewrite = Callable[..., Path]
BOOL, STRING = 7, 8


@pytest.fixture(autouse=True)
def no_line_about_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command prints is the same on a machine that takes more than 2 s to load a model."""
    monkeypatch.setattr(console, "PATIENCE_S", 3600.0)


@pytest.fixture(scope="session")
def smollm(embedded_gguf: Path) -> Path:
    """SmolLM2-135M-Instruct, as its package ships it."""
    return embedded_gguf


@pytest.fixture(scope="module")
def engine(smollm: Path) -> Iterator[Engine]:
    with Engine(
        smollm, EngineOptions(context_tokens=2048, threads=1)
    ) as engine:  # two threads crawl when the cores are shared
        yield engine


@pytest.fixture
def runtime() -> Callable[..., Result]:
    """Run the command: `runtime("ask", path, "question", input=None)`."""

    def run(*arguments: Any, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin, catch_exceptions=False)

    return run


@pytest.fixture
def rewrite(smollm: Path, tmp_path: Path) -> Rewrite:
    """The embedded model with one key of its header set to a text or a truth value, or taken out (None)."""

    def make(key: str, value: str | bool | None, name: str = "rewritten.gguf") -> Path:
        header = read_header(smollm)
        data = smollm.read_bytes()
        first = header.tensors[0].name.encode()
        tensors_at = data.index(struct.pack("<Q", len(first)) + first)
        header_end = tensors_at + sum(8 + len(t.name.encode()) + 4 + 8 * len(t.shape) + 4 + 8 for t in header.tensors)
        head = bytearray(data[:header_end])
        _set_key(head, key, value)
        head += b"\0" * (-len(head) % 32)
        target = tmp_path / name
        target.write_bytes(head + data[header_end + -header_end % 32 :])
        return target

    return make


def _set_key(head: bytearray, key: str, value: str | bool | None) -> None:
    begin = head.index(struct.pack("<Q", len(key)) + key.encode())
    value_at = begin + 8 + len(key)
    kind = struct.unpack_from("<I", head, value_at)[0]
    assert kind in (BOOL, STRING)
    size = 1 if kind == BOOL else 8 + struct.unpack_from("<Q", head, value_at + 4)[0]
    if value is None:
        del head[begin : value_at + 4 + size]
        struct.pack_into("<Q", head, 16, struct.unpack_from("<Q", head, 16)[0] - 1)
        return
    head[value_at + 4 : value_at + 4 + size] = bytes([value]) if isinstance(value, bool) else _text(value)


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data
