"""Which requests of ours go through a proxy of the environment: all but those to this machine."""

import os
import urllib.request
from functools import lru_cache
from urllib.parse import urlsplit

from tinkersmith.guards.hosts import LOOPBACK_NAMES, is_loopback


def opener(url: str, *handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """What opens `url` through the proxies of the environment as it is now.

    `urlopen` of urllib goes on with the proxies that it found at its first call in a process.
    """
    proxies = {} if is_on_this_machine(url) else urllib.request.getproxies()
    if handlers:
        return urllib.request.build_opener(urllib.request.ProxyHandler(proxies), *handlers)
    return _opener_through(frozenset(proxies.items()))


@lru_cache(maxsize=8)
def _opener_through(proxies: frozenset[tuple[str, str]]) -> urllib.request.OpenerDirector:
    """Kept, as a server is checked each second, and Python 3.12 loads all certificates for each."""
    return urllib.request.build_opener(urllib.request.ProxyHandler(dict(proxies)))


def is_on_this_machine(url: str) -> bool:
    """Whether the host of a URL is this machine; False for what is no URL."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return False
    return is_loopback(host or "")


def take_loopback_out_of_proxies() -> None:
    """Have libraries that read NO_PROXY reach this machine without a proxy."""
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, *sorted(LOOPBACK_NAMES)]))
