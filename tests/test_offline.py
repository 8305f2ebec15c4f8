import os
import socket

import pytest

from tests.conftest import NetworkError


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_no_test_connects_to_another_machine(family: socket.AddressFamily) -> None:
    address = "192.0.2.1" if family == socket.AF_INET else "2001:db8::1"
    with socket.socket(family) as own:
        for connect in (own.connect, own.connect_ex):
            with pytest.raises(NetworkError, match=address):
                connect((address, 80))


def test_no_test_sends_a_datagram_to_another_machine() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own, pytest.raises(NetworkError, match=r"192\.0\.2\.1"):
        own.sendto(b"hello", ("192.0.2.1", 53))


def test_no_test_looks_up_a_name() -> None:
    with pytest.raises(NetworkError, match=r"huggingface\.co"):
        socket.create_connection(("huggingface.co", 443), timeout=1)


def test_loopback_and_unix_sockets_work() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"hello")
        with server.accept()[0] as accepted:
            assert accepted.recv(5) == b"hello"
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"hello")
        assert right.recv(5) == b"hello"


def test_the_hub_is_told_to_stay_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
