"""Tests of what goes over the connections between processes."""

import socket
import sys

import pytest

from maxfdl.run.processes.wire import decode, encode, watch


def test_a_message_is_one_line():
    message = {"kind": "end", "text": "a\nb ä", "code": 2}
    line = encode(message)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert decode(line) == message


@pytest.mark.parametrize("line", [b"", b"HTTP/1.1 200", b"[1]", b"{}", b'{"kind": 1}'])
def test_what_is_no_message_is_refused(line):
    with pytest.raises(ValueError):
        decode(line)


@pytest.mark.skipif(sys.platform != "linux", reason="names of options are Linux's")
def test_the_kernel_gives_up_a_machine_that_is_silent_for_25_seconds():
    with socket.socket() as connection:
        watch(connection)

        def option(name):
            return connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))

        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        interval, count = option("TCP_KEEPINTVL"), option("TCP_KEEPCNT")
        assert option("TCP_KEEPIDLE") + interval * count == 25
        assert option("TCP_USER_TIMEOUT") == 25_000
