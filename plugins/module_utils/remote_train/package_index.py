"""Whether a package index answers at all, before pip or uv try it for minutes.

pip tries an index that gives no answer again and again, with each package anew. A look at it from
the host, through the proxy that would be used, says in seconds what is wrong. Whatever answers is
an index that can be reached: what it says of a package, a password or a certificate is left to
whoever installs.
"""

from __future__ import annotations

import configparser
import functools
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit, urlunsplit

from .errors import TrainError
from .killable import DONE, HANGS, Job, run

ANSWER_SECONDS, TRIES, PAUSE = 10.0, 3, 1.0
"""Seconds that an index gets for an answer, how often it is asked, and the seconds in between."""

LIMIT = 40.0
"""Seconds after which it is given up whatever hangs, a name server among it."""

_LATE = (TimeoutError, socket.timeout)  # one and the same from Python 3.10 on


def shown(url: str) -> str:
    """An index's address as a person may see it: without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def check(
    urls: Sequence[str], package: str, all_of_them: bool, proxies: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Ask every index for a package; why the ones don't answer that can be left out, by address.

    :param package: the name that is asked for.
    :param all_of_them: whether none can be left out: for uv, an index that is named first is the
        only one for what it has.
    :param proxies: by scheme; None for those of the environment.
    :raises TrainError: category ``infra``, which names the index and why it can't be reached.
    """
    asked = [url for url in dict.fromkeys(urls) if urlsplit(url).scheme in ("http", "https")]
    page = re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", package)[0]).lower()
    ended = run({url: Job(functools.partial(why, url, page, proxies), LIMIT) for url in asked})
    silent = {}
    for url, one in ended.items():
        if one.state == HANGS:
            silent[url] = f"no answer within {LIMIT:.0f} s"
        elif one.state == DONE and one.value:
            silent[url] = one.value
    if silent and (all_of_them or len(silent) == len(asked)):
        url, reason = next(iter(silent.items()))
        raise TrainError(
            f"The package index {shown(url)} can't be reached from the host: {reason}.",
            "Name one that the host reaches with provision_index_url, such as a mirror, or carry "
            "the packages over in a folder of wheels (provision_wheels).",
            "infra",
        )
    return silent


def why(url: str, page: str, proxies: Mapping[str, str] | None = None) -> str:
    """Why an index doesn't answer, empty where it does; asked a few times."""
    found = ""
    for turn in range(TRIES):
        if turn:
            time.sleep(PAUSE)
        found = _why(f"{shown(url).rstrip('/')}/{page}/", proxies)
        if not found:
            break
    return found


def _why(url: str, proxies: Mapping[str, str] | None) -> str:
    # Not at the top: the plan and the gates import this file, and never get here.
    from http.client import HTTPException  # noqa: PLC0415
    from ssl import SSLError  # noqa: PLC0415
    from urllib import error, request  # noqa: PLC0415

    used = dict(proxies) if proxies else request.getproxies()
    for scheme in ("http", "https"):
        # For urllib alone a proxy for all schemes is for none.
        used.setdefault(scheme, used.get("all", ""))
    used = {scheme: proxy for scheme, proxy in used.items() if proxy}
    parts = urlsplit(url)
    proxy = "" if request.proxy_bypass(parts.netloc) else used.get(parts.scheme, "")
    if proxy.startswith("socks"):
        return ""  # that can't be looked through with the standard library
    bare = proxy.rpartition("@")[2].rpartition("//")[2]
    through = f" (through the proxy {bare})" if bare else ""
    opener = request.build_opener(request.ProxyHandler(used))
    asked = request.Request(url, method="HEAD")  # noqa: S310 - http or https, see check()
    try:
        opener.open(asked, timeout=ANSWER_SECONDS).close()
    except (error.HTTPError, HTTPException):
        return ""
    except error.URLError as found:
        reason = found.reason
    except OSError as found:
        reason = found
    else:
        return ""
    if isinstance(reason, SSLError) and not isinstance(reason, _LATE):
        return ""
    return _words(reason, bare.rpartition(":")[0] or parts.hostname or url) + through


def _words(reason: object, host: str) -> str:
    if isinstance(reason, socket.gaierror):
        return f"the name {host} can't be resolved ({str(reason.strerror).lower()})"
    if isinstance(reason, _LATE):
        return f"no answer within {ANSWER_SECONDS:.0f} s, {TRIES} times"
    if isinstance(reason, OSError) and reason.errno:
        return os.strerror(reason.errno).lower()
    return str(reason).strip().rstrip(".") or type(reason).__name__


def pip_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What pip is set up with on this host, of what concerns an index; empty where it isn't.

    :returns: ``index-url``, ``extra-index-url``, ``proxy`` and ``no-index``.
    """
    found = dict.fromkeys(("index-url", "extra-index-url", "proxy", "no-index"), "")
    user = environment.get("XDG_CONFIG_HOME") or "~/.config"
    files = ["/etc/xdg/pip/pip.conf", "/etc/pip.conf", "~/.pip/pip.conf", f"{user}/pip/pip.conf"]
    named = environment.get("PIP_CONFIG_FILE")
    for path in [*files, *([named] if named else [])] if named != os.devnull else []:
        parser = configparser.RawConfigParser()
        try:
            parser.read(os.path.expanduser(path), encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue
        for section in ("global", "install"):
            for name, value in found.items():
                found[name] = parser.get(section, name, fallback=value)
    for name, value in found.items():
        variable = "PIP_" + name.upper().replace("-", "_")
        found[name] = " ".join((environment.get(variable) or value).split())
    return found
