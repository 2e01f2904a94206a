"""Whether a server can be reached, asked before what would take minutes to fail."""

import socket
import threading
import urllib.request


def check_reachable(url: str, seconds: float = 12) -> None:
    """Raise OSError unless the server of `url` answers, with whatever status, within `seconds`.

    Without network a download would take minutes to fail: name look-ups, which no socket timeout
    covers, and the libraries' retries.
    """
    problems: list[Exception] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(
                urllib.request.Request(url, method="HEAD"), timeout=seconds
            ).close()
        except urllib.request.HTTPError:
            # An error of HTTP is an answer too.
            pass
        except Exception as problem:
            problems.append(problem)

    # A daemon does not keep the program from ending while a look-up hangs.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise OSError(f"{url} does not answer")
    if problems:
        raise OSError(f"{url}: {getattr(problems[0], 'reason', problems[0])}")


def check_listening(address: str, seconds: float = 12) -> None:
    """Raise OSError unless a server takes connections at `HOST:PORT` within `seconds`.

    Any other address, such as `auto`, passes unchecked.
    """
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.rpartition("/")[2], int(port)), seconds).close()
