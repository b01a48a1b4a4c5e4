"""Install packages into a venv of this project's: with uv where it is there, with pip otherwise.

A torch that is there is never replaced. pip sees it through the venv, and a constraint holds it;
uv looks into the venv alone, so there torch is left out of what it resolves.
"""

from __future__ import annotations

import configparser
import glob
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from . import programs
from .errors import TrainError

UV_FOLDERS = ("~/.local/bin", "~/.cargo/bin", "/usr/local/bin", "/opt/uv")
"""Where uv's own installer and images put it; a non-login shell's PATH lacks the first two."""

_HAS = """
import importlib.util, sys
print(" ".join(name for name in sys.argv[1:] if importlib.util.find_spec(name)))
"""

_VENV_PACKAGES = """
import sys, sysconfig
print(sysconfig.get_path("purelib") if sys.prefix != sys.base_prefix else "")
"""


@dataclass(frozen=True)
class Source:
    """Where packages come from.

    ``index_url`` is empty for whatever index the host's pip is set up with; ``wheels`` is a
    folder of wheels on the host, or empty. With ``wheels`` and no index, no index is asked.
    """

    index_url: str = ""
    wheels: str = ""


def modules_of(python: str, *names: str) -> list[str]:
    """Those of ``names`` that can be imported in ``python``."""
    return _answer([python, "-c", _HAS, *names]).split()


def find_uv(base: str) -> str:
    """The path of uv on this host, empty where there is none."""
    folders = [os.path.dirname(base), *map(os.path.expanduser, UV_FOLDERS)]
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])
    return shutil.which("uv", path=search) or ""


def pip_wheel(wheels: str) -> str:
    """The newest pip among the carried wheels, empty where there is none."""
    found = glob.glob(os.path.join(glob.escape(wheels), "pip-*.whl")) if wheels else []
    return max(found, key=_version, default="")


def _version(wheel: str) -> tuple[int, ...]:
    """What a wheel's name says, as numbers: as text, 9 comes after 25."""
    return tuple(map(int, re.findall(r"\d+", os.path.basename(wheel).split("-")[1])))


def lacks_installer(base: str, wheels: str) -> bool:
    """Whether nothing on the host can install a package for ``base``."""
    if find_uv(base) or pip_wheel(wheels):
        return False
    return not modules_of(base, "pip", "ensurepip")


def make_venv(base: str, folder: str) -> str:
    """Make a venv that sees the packages of ``base``; the path of its Python.

    Without pip of its own, since Debian splits what that needs off from Python.

    :raises TrainError: where ``base`` can't make one.
    """
    programs.run(
        [base, "-m", "venv", "--system-site-packages", "--without-pip", "--clear", folder],
        f"The venv for the training can't be made with {base}",
        "Name a Python that has the module venv with provision_python.",
    )
    python = os.path.join(folder, "bin", "python")
    _see_packages_of(base, python)
    return python


def sees(base: str, python: str) -> bool:
    """Whether the venv of ``python`` was made from ``base``, and still runs."""
    config = os.path.join(os.path.dirname(os.path.dirname(python)), "pyvenv.cfg")
    try:
        with open(config, encoding="utf-8", errors="replace") as stream:
            pairs = [line.partition("=") for line in stream]
    except OSError:
        return False
    lines = {name.strip(): value.strip() for name, _, value in pairs}
    same = os.path.realpath(lines.get("home", "")) == os.path.realpath(
        os.path.dirname(os.path.realpath(base))
    )
    if not same or lines.get("include-system-site-packages") != "true":
        return False
    theirs = _answer([base, "-c", _VENV_PACKAGES])
    line = _answer([python, "-c", f"import sys; print({theirs!r} in sys.path)"])
    return line == "True" if theirs else line != ""


def _see_packages_of(base: str, python: str) -> None:
    """Let a venv that was made from a venv see the packages of that one, not only of its base."""
    theirs, ours = (_answer([path, "-c", _VENV_PACKAGES]) for path in (base, python))
    if theirs and ours:
        # A .pth file's line that begins with "import" is run (the module site), so that their
        # own .pth files count as well.
        line = f"import site; site.addsitedir({theirs!r})\n"
        with open(os.path.join(ours, "packages_of_base.pth"), "w", encoding="utf-8") as stream:
            stream.write(line)


def _answer(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def install(
    base: str,
    python: str,
    wanted: Sequence[str],
    torch: str,
    source: Source,
    pip: str = "",
    cache: str = "",
    on_line: Callable[[str], None] = lambda _line: None,
) -> str:
    """Install ``wanted`` for ``python``; the name of the program that did it.

    :param torch: the version of the torch that is there and stays, or empty.
    :param pip: a wheel of pip, for a host that has none.
    :param cache: the folder for downloads, or empty for the program's own.
    :raises TrainError: category ``infra``, with the program's reason.
    """
    uv = find_uv(base)
    failure = f"Installing {', '.join(wanted)} failed"
    hint = (
        "Check the host's way to a package index: provision_index_url names a mirror, and "
        "provision_wheels a folder of wheels for a host without internet."
    )
    with _requirement_file(torch, left_out=bool(uv)) as held:
        if uv:
            command = [
                uv,
                "pip",
                "install",
                "--python",
                python,
                "--no-progress",
                "--color",
                "never",
            ]
            command += ["--override", held] if held else []
            environment = uv_environment(source, cache)
        else:
            command = [*_pip(base, python, source.wheels, pip), "install", "--no-input"]
            command += ["--disable-pip-version-check", "--progress-bar", "off"]
            command += ["--constraint", held] if held else []
            environment = pip_environment(source, cache)
        if source.wheels:
            command += ["--find-links", source.wheels]
            command += [] if source.index_url else ["--no-index"]
        programs.run([*command, *wanted], failure, hint, environment, on_line)
    return "uv" if uv else "pip"


def _pip(base: str, python: str, wheels: str, carried: str) -> list[str]:
    """The command line that pip begins with: the one that the venv sees, else one from a wheel."""
    if "pip" in modules_of(python, "pip"):
        return [python, "-m", "pip"]
    wheel = pip_wheel(wheels) or carried
    if wheel:
        # A wheel is a zip file, and Python runs what is in one.
        return [python, os.path.join(wheel, "pip")]
    programs.run(
        [python, "-m", "ensurepip"],
        f"There is neither uv nor pip for {base} on the host",
        "Install one of them there; on Debian and Ubuntu that is the package python3-pip.",
    )
    return [python, "-m", "pip"]


@contextmanager
def _requirement_file(torch: str, left_out: bool) -> Iterator[str]:
    """A file that holds torch at its version, or that takes it out of what uv resolves."""
    if not torch:
        yield ""
        return
    # An override replaces what any package asks of torch; one whose marker never holds, by nothing.
    line = "torch ; python_version < '3'" if left_out else f"torch=={torch}"
    with tempfile.TemporaryDirectory(prefix="remote-train-") as folder:
        path = os.path.join(folder, "torch.txt")
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(line + "\n")
        yield path


def pip_environment(source: Source, cache: str) -> dict[str, str]:
    """What pip gets in its environment, and not on its command line, which all users can read.

    An index's address may hold a password.
    """
    found = {"PIP_USER": "0", "PIP_RETRIES": "8", "PIP_RESUME_RETRIES": "20"}
    if source.index_url:
        found["PIP_INDEX_URL"] = source.index_url
        found.update(_plain("PIP_TRUSTED_HOST", source.index_url))
    if cache:
        found["PIP_CACHE_DIR"] = os.path.join(cache, "pip")
    return found


def uv_environment(source: Source, cache: str) -> dict[str, str]:
    """The same for uv, which doesn't read what pip is set up with: that is handed on."""
    found = {"UV_HTTP_TIMEOUT": "120", "UV_PYTHON_DOWNLOADS": "never", "UV_NO_CONFIG": "1"}
    found["UV_LINK_MODE"] = "copy"  # its cache often lies on another disk; then links only warn
    index, extra = pip_indexes(os.environ)
    if "UV_DEFAULT_INDEX" in os.environ or "UV_INDEX_URL" in os.environ:
        index = ""
    index = source.index_url or index
    if index:
        found["UV_DEFAULT_INDEX"] = index
        found.update(_plain("UV_INSECURE_HOST", index))
    if extra:
        found["UV_INDEX"] = extra
    if cache:
        found["UV_CACHE_DIR"] = os.path.join(cache, "uv")
    return found


def _plain(name: str, index_url: str) -> dict[str, str]:
    """Who names an index without TLS means it; both programs want its host once more."""
    parts = urlsplit(index_url)
    host = parts.netloc.rpartition("@")[2]
    return {name: host} if parts.scheme == "http" else {}


def pip_indexes(environment: Mapping[str, str]) -> tuple[str, str]:
    """The index and the further ones that pip is set up with on this host; empty where it isn't."""
    index, extra = "", ""
    files = ["/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf"]
    named = environment.get("PIP_CONFIG_FILE")
    for path in [*files, *([named] if named else [])] if named != os.devnull else []:
        parser = configparser.RawConfigParser()
        try:
            parser.read(os.path.expanduser(path), encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue
        for section in ("global", "install"):
            index = parser.get(section, "index-url", fallback=index)
            extra = parser.get(section, "extra-index-url", fallback=extra)
    index = environment.get("PIP_INDEX_URL") or index
    extra = environment.get("PIP_EXTRA_INDEX_URL") or extra
    return index, " ".join(extra.split())


def check_wheels(folder: str) -> None:
    """Refuse a folder of wheels that isn't one, before anything is changed.

    :raises TrainError: category ``ops``.
    """
    if not glob.glob(os.path.join(glob.escape(folder), "*.whl")):
        there = "holds no *.whl" if os.path.isdir(folder) else "is no folder on the host"
        raise TrainError(
            f"provision_wheels is {folder}, which {there}.",
            "Fill it with `pip download` on a machine of the host's kind, with its Python.",
            "ops",
        )
