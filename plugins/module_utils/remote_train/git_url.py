"""The URL of a git repository: what may be asked for, what a person sees, and its secrets apart."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from .errors import TrainError
from .file_names import shown

SCHEMES = ("https", "ssh", "git+ssh", "ssh+git", "file", "http", "git")
"""What git may speak here. ``ext::`` and other helpers run programs, so they are left out."""

UNPROTECTED = ("http", "git")
"""Schemes under which anybody on the way can change what comes."""

_WEB = ("https", "http")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCP_LIKE = re.compile(r"(?:[^-/:@][^/:@]*@)?(?:\[[0-9A-Fa-f:.]+\]|[^-/:@\[][^/:@]*):(?!:).+")
_WITH_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^/\s'\"]*)@")


class Remote(NamedTuple):
    """Where to pull from.

    :param url: without name and password, where it is one of the web.
    :param user: the name that stood in it; empty where none did.
    :param password: the same of the password.
    """

    url: str
    user: str = ""
    password: str = ""

    @property
    def has_login(self) -> bool:
        """Whether a name or a password stood in it."""
        return bool(self.user or self.password)

    @property
    def site(self) -> str:
        """Scheme, host and port: what name and password are for."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def protected(self) -> bool:
        """Whether the way there is protected from those who are on it."""
        return scheme_of(self.url) not in UNPROTECTED


def scheme_of(url: str) -> str:
    """The scheme in lower case; ``ssh`` for ``host:path``, ``file`` for a path."""
    found = _URL.match(url)
    if found:
        return found[1].lower()
    return "file" if url.startswith("/") else "ssh"


def without_secrets(text: str) -> str:
    """``text`` with names and passwords taken out of all URLs; the user of ssh alone stays."""

    def cut(found: re.Match[str]) -> str:
        scheme, user = found[1], found[2]
        plain = scheme.lower().startswith(("ssh:", "git+ssh:", "ssh+git:")) and ":" not in user
        return f"{scheme}{user}@" if plain else scheme

    return _WITH_USER.sub(cut, text)


def without_login(url: str) -> str:
    """A URL to pull from, as :func:`parse` has it: for the web without name and password.

    What is none is only stripped as :func:`without_secrets` does.
    """
    try:
        return parse(url).url
    except TrainError:
        return without_secrets(url)


def parse(url: str) -> Remote:
    """What may be pulled from.

    :raises TrainError: for what is no URL of a repository, or one that would run a program.
    """
    seen = shown(without_secrets(url))
    if not url:
        raise TrainError(
            "No git repository is named to pull from.",
            "Set sync_git_url, or give the project an origin with `git remote add origin URL`.",
        )
    if not url.isprintable() or " " in url:
        raise TrainError(
            f"The git URL {seen} holds blanks or control characters.",
            "Write a blank as %20.",
        )
    scheme = scheme_of(url)
    plain = url.startswith("/") or (not _URL.match(url) and _SCP_LIKE.fullmatch(url))
    if url.startswith("-") or not (plain or (_URL.match(url) and scheme in SCHEMES)):
        raise TrainError(
            f"{seen} is not a git URL that can be pulled from.",
            "Give https://, ssh://, user@host:path, file:// or an absolute path on the host.",
        )
    return Remote(url) if plain else _split(url, seen)


def _split(url: str, seen: str) -> Remote:
    """A URL with a scheme, and the login that stands in it apart.

    :param seen: the URL for a person.
    """
    scheme = scheme_of(url)
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _port = parts.port  # one that is none is an error here
    except ValueError:
        host = "-"
    if host.startswith("-") or not (host or scheme == "file"):
        raise TrainError(f"The git URL {seen} names no host that there can be.", "Correct it.")
    if "@" not in parts.netloc:
        return Remote(url)
    login, _, place = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    if scheme in _WEB:
        clean = parts._replace(netloc=place).geturl()
        return Remote(clean, unquote(user), unquote(password))
    if user.startswith("-"):
        raise TrainError(f"The git URL {seen} names no user that there can be.", "Correct it.")
    if password:
        raise TrainError(
            f"The git URL {seen} holds a password, and ssh takes none from there.",
            "Take it out; let the host log in with a key.",
        )
    return Remote(url)


def same(one: str, other: str) -> bool:
    """Whether two URLs name one repository: credentials, a last slash and ``.git`` aside."""
    return _bare(one) == _bare(other)


def _bare(url: str) -> str:
    if scheme_of(url) in _WEB:
        url = without_secrets(url)
    return url.rstrip("/").removesuffix(".git").rstrip("/")
