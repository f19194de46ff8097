"""Tests of a connection that outlives its other end a little."""

import queue
import socket
import time

import pytest

from maxfdl.run.processes import relay
from maxfdl.run.processes.relay import Relay


@pytest.fixture
def target():
    with socket.create_server(("localhost", 0)) as server:
        yield server


def relay_to(address, timeout=60.0, give_up=pytest.fail) -> Relay:
    return Relay(address, timeout, give_up)


def connect(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=5)


def test_bytes_go_both_ways(target):
    with connect(relay_to(target.getsockname())) as near:
        far, _ = target.accept()
        with far:
            for source, goal in ((near, far), (far, near)):
                sent = bytes(range(256)) * 4000
                source.sendall(sent)
                received = b""
                while len(received) < len(sent):
                    received += goal.recv(2**16)
                assert received == sent


def test_the_target_may_start_later():
    with socket.create_server(("localhost", 0)) as server:
        address = server.getsockname()
    with connect(relay_to(address)) as near:
        near.sendall(b"early")
        time.sleep(0.2)
        with socket.create_server(address) as server:
            far, _ = server.accept()
            with far:
                assert far.recv(9) == b"early"


def test_the_end_of_the_target_shows_only_after_some_time(target, monkeypatch):
    monkeypatch.setattr(relay, "_GRACE_SECONDS", 1.0)
    with connect(relay_to(target.getsockname())) as near:
        far, _ = target.accept()
        far.close()
        near.settimeout(0.5)
        with pytest.raises(TimeoutError):
            near.recv(1)
        near.sendall(b"still there")
        near.settimeout(5)
        assert near.recv(1) == b""


def test_a_target_that_cannot_be_reached_is_given_up():
    with socket.create_server(("localhost", 0)) as server:
        address = server.getsockname()
    problems = queue.Queue()
    with connect(relay_to(address, timeout=0.2, give_up=problems.put)):
        assert problems.get(timeout=5) == "Connection refused"
