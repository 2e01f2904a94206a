import socket

import pytest

from hyperiqa.base.network import check_listening, check_reachable


def test_a_server_that_never_answers_is_noticed():
    """A socket that accepts and stays silent: the worst kind of network, for which one could wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth"
        with pytest.raises(OSError, match="does not answer|timed out"):
            check_reachable(url, seconds=1)
    with pytest.raises(OSError, match="refused"):
        check_reachable(url)


def test_an_address_where_nobody_listens_is_noticed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_listening(address)
        check_listening(f"ray://{address}")
    with pytest.raises(OSError, match="refused"):
        check_listening(address)
    # Not a host and a port: Ray knows what it means.
    check_listening("auto")
