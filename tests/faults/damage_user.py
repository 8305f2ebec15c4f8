"""The process that plays the user's in `damage_gguf`: opens what it is told to, as the engine does, and tells of it."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from gladstone.artifacts import MANIFEST_NAME
from gladstone.chat.messages import Message
from gladstone.chat.template import ChatTemplate
from gladstone.errors import DataError, GladstoneError
from gladstone.gguf.header import read_model
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.library import library
from gladstone.llamacpp.model import Model
from runtime.trust.provenance import verify

PROMPT = "The heart moves blood. Wo sitzt die Leber? 心臓は? 🫀 <|im_start|>"
ANSWER_TOKENS = 8
POLL_S = 0.005
OWN_BYTES = 60_000_000  # what the trial's child takes before it has seen a file


def serve() -> None:
    """Answer paths on stdin with results on stdout, each a line of JSON, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    library()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        begin_s = _processor_s()
        with _Peak() as peak:
            outcome, message = _open(Path(json.loads(line)))
        told: dict[str, Any] = {"outcome": outcome, "message": message, "peak_bytes": peak.bytes}
        told["processor_s"] = _processor_s() - begin_s
        print(json.dumps(told), file=answers, flush=True)


def _processor_s() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _open(path: Path) -> tuple[str, str]:
    try:
        verify(path)
    except GladstoneError as error:
        return _stage(path), str(error)
    try:
        with Model(path) as model:
            return _answer(model)
    except DataError as error:
        return "template", str(error)
    except GladstoneError as error:
        return "refused late", str(error)


def _stage(path: Path) -> str:
    """What refused the file."""
    try:
        read_model(path)
    except GladstoneError:
        return "guard"
    return "manifest" if (path.parent / MANIFEST_NAME).is_file() else "trial"


def _answer(model: Model) -> tuple[str, str]:
    source = library().llama_model_chat_template(model.handle, None)
    template = ChatTemplate(source.decode("utf-8", "surrogateescape")) if source else None
    text = template.render([Message("user", PROMPT)]) if template else PROMPT
    tokens = model.add_bos_eos(model.tokenize(text, parse_special=True))[:64]
    if not tokens:  # which the engine says, too
        return "loaded", "a vocabulary that has none of these words"
    with Context(model, 128, threads=1) as context:
        if not library().llama_get_memory(context.handle):
            return "loaded", "a model that makes vectors"
        if model.has_encoder:
            context.encode(tokens)
            tokens = [model.decoder_start]
        context.decode(tokens, 0)
        answer = b""
        for position in range(len(tokens), len(tokens) + ANSWER_TOKENS):
            token = int(context.logits().argmax())
            answer += model.piece(token)
            context.decode([token], position)
    return "loaded", repr(answer)


class _Peak:
    """The most memory that this process, or its child, has taken meanwhile, over what it had before."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._children = 0

    def __enter__(self) -> "_Peak":
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._before = _status(os.getpid(), "VmRSS:")
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(_status(os.getpid(), "VmHWM:") - self._before, self._children - OWN_BYTES, 0)

    def _watch(self) -> None:
        while not self._done.wait(POLL_S):
            for task in Path("/proc/self/task").iterdir():
                for child in _read(task / "children").split():
                    self._children = max(self._children, _status(int(child), "VmHWM:"))


def _status(process: int, name: str) -> int:
    lines = _read(Path(f"/proc/{process}/status")).splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # it is gone
        return ""
