"""Install packages into a venv of this project's: with uv where it is there, with pip otherwise.

A torch that is there is never replaced. pip sees it through the venv, and a constraint holds it;
uv looks into the venv alone, so there it is resolved with a stand-in, and then left out.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from . import install_failures, package_index, programs, pythons
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
    try:
        programs.run(
            [base, "-m", "venv", "--system-site-packages", "--without-pip", "--clear", folder],
            f"The venv for the training can't be made with {base}",
            "Name a Python that has the module venv with provision_python.",
        )
    except TrainError as error:
        raise install_failures.explained(error, [], base, _written(folder, "")) from error
    python = os.path.join(folder, "bin", "python")
    _see_packages_of(base, python)
    return python


def _written(venv: str, cache: str) -> dict[str, str]:
    """The folders that an installation writes to, with what helps where one of them is full."""
    return {
        venv: "choose another project_root",
        cache or os.path.expanduser("~/.cache"): "set runtime_base to another disk",
        os.environ.get("TMPDIR")
        or os.path.join(os.sep, "tmp"): "set TMPDIR on the host to another disk's folder",
    }


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


def _answer(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    ended = programs.ask(command, 60, environment)
    return ended.text if ended.state == programs.ENDED else ""


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
    with tempfile.TemporaryDirectory(prefix="remote-train-") as folder:
        if uv:
            commands = _with_uv(uv, python, wanted, torch, _from(source), folder)
            environment = uv_environment(source, cache)
        else:
            command = _pip(base, python, source.wheels, pip)
            commands = [_with_pip(command, wanted, torch, _from(source), folder)]
            environment = pip_environment(source, cache)
        if source.index_url or not source.wheels:
            program = commands[-1][: commands[-1].index("install") + 1]
            environment.update(_ask_index(program, environment, wanted[0], on_line))
        lines: list[str] = []

        def note(line: str) -> None:
            lines.append(line)
            on_line(line)

        try:
            for command in commands:
                programs.run(command, failure, hint, environment, note)
        except TrainError as error:
            wheels = "" if source.index_url else source.wheels
            venv = os.path.dirname(os.path.dirname(python))
            raise install_failures.explained(
                error, lines, python, _written(venv, cache), wanted, wheels, torch
            ) from error
    return "uv" if uv else "pip"


def _from(source: Source) -> list[str]:
    """The options that say where packages come from; an index is in the environment."""
    if not source.wheels:
        return []
    return ["--find-links", source.wheels, *([] if source.index_url else ["--no-index"])]


def _with_uv(
    uv: str, python: str, wanted: Sequence[str], torch: str, options: list[str], folder: str
) -> list[list[str]]:
    """The commands that uv installs with.

    It looks into the venv alone, and so would add a torch beside the one that is there. First it
    resolves with a stand-in for that one, so that what it chooses fits it, or nothing does; then
    it installs that, with torch taken out.

    :param folder: where files for it may lie.
    """
    common = ["--python", python, "--no-progress", "--color", "never", *options]
    install = [uv, "pip", "install", *common]
    if not torch:
        return [[*install, *wanted]]
    asked, chosen = os.path.join(folder, "asked.in"), os.path.join(folder, "chosen.txt")
    without = os.path.join(folder, "without.txt")
    version = _stand_in(folder, torch)
    _write(asked, [*wanted, f"torch=={version}"])
    # An override replaces what any package asks of torch; one whose marker never holds, by nothing.
    _write(without, ["torch ; python_version < '3'"])
    resolve = [uv, "pip", "compile", *common, "--find-links", folder, "--no-header", "--quiet"]
    resolve += ["--no-annotate", asked, "--output-file", chosen]
    return [resolve, [*install, "--override", without, "--constraint", chosen, *wanted]]


def _with_pip(
    pip: list[str], wanted: Sequence[str], torch: str, options: list[str], folder: str
) -> list[str]:
    """The command that pip installs with: it sees the torch that is there, and has to keep it."""
    command = [*pip, "install", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", *options]
    if torch:
        held = os.path.join(folder, "torch.txt")
        _write(held, [f"torch=={torch}"])
        command += ["--constraint", held]
    return [*command, *wanted]


def _stand_in(folder: str, torch: str) -> str:
    """Write a wheel with nothing in it that passes for a torch; the version that it has.

    Only the numbers: an image's own build counts as the release that it was made from.
    """
    version = ".".join(map(str, pythons.numbers(torch)))
    info = f"torch-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
    kind = "Wheel-Version: 1.0\nGenerator: none\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {f"{info}/METADATA": metadata, f"{info}/WHEEL": kind, f"{info}/RECORD": ""}
    with zipfile.ZipFile(os.path.join(folder, f"torch-{version}-py3-none-any.whl"), "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    return version


def _write(path: str, lines: Sequence[str]) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)


def _ask_index(
    command: Sequence[str],
    environment: Mapping[str, str],
    package: str,
    on_line: Callable[[str], None],
) -> dict[str, str]:
    """Look whether an index answers before one is asked for all of it.

    What it returns is for the environment, where pip is to leave one out that doesn't.

    :param command: what installs, up to its word ``install``.
    :raises TrainError: where none does.
    """
    whole = {**os.environ, **environment}
    pips = package_index.pip_settings(whole)
    uv = os.path.basename(command[0]) == "uv"
    # Which index is asked where none is named is told by the program's own help.
    told = _answer([*command, "--help"], {**whole, "COLUMNS": "1000"})
    default = re.search(r"\(.*default:? <?(https?://[^\s>)]+)", told)
    if uv:
        first = whole.get("UV_DEFAULT_INDEX") or whole.get("UV_INDEX_URL")
        more = f"{whole.get('UV_INDEX', '')} {whole.get('UV_EXTRA_INDEX_URL', '')}".split()
        more = [re.sub(r"^[\w.-]+=(?=https?://)", "", one) for one in more]
    else:
        first = pips["index-url"]
        more = pips["extra-index-url"].split()
        if pips["no-index"].lower() in ("1", "true", "yes", "on"):
            return {}
    urls = [*([first] if first else default.groups() if default else ()), *more]
    proxy = environment.get("HTTP_PROXY", "") if uv else pips["proxy"]
    proxies = {"http": proxy, "https": proxy} if proxy else None
    silent = package_index.check(urls, package, uv, proxies)
    for url, why in silent.items():
        on_line(f"left out the index {package_index.shown(url)}: {why}")
    live = [url for url in urls if url not in silent]
    if not silent:
        return {}
    # pip would try each package there for a minute. What is empty counts as not set.
    return {"PIP_INDEX_URL": live[0], "PIP_EXTRA_INDEX_URL": " ".join(live[1:] or live)}


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
    pips = package_index.pip_settings(os.environ)
    index = pips["index-url"]
    if "UV_DEFAULT_INDEX" in os.environ or "UV_INDEX_URL" in os.environ:
        index = ""
    index = source.index_url or index
    if index:
        found["UV_DEFAULT_INDEX"] = index
        found.update(_plain("UV_INSECURE_HOST", index))
    if pips["extra-index-url"]:
        found["UV_INDEX"] = pips["extra-index-url"]
    if pips["proxy"]:
        found.update(_proxy(pips["proxy"]))
    if cache:
        found["UV_CACHE_DIR"] = os.path.join(cache, "uv")
    return found


def _proxy(url: str) -> dict[str, str]:
    """The proxy that pip is set up with, for uv, where the environment names none."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    if any(name in os.environ or name.lower() in os.environ for name in names):
        return {}
    return dict.fromkeys(names[:2], url)


def _plain(name: str, index_url: str) -> dict[str, str]:
    """Who names an index without TLS means it; both programs want its host once more."""
    parts = urlsplit(index_url)
    host = parts.netloc.rpartition("@")[2]
    return {name: host} if parts.scheme == "http" else {}


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
