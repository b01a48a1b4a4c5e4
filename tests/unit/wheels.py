"""Tiny wheels, an index that serves them on loopback, and a Python as rented images have it."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from remote_train import pythons

UV = shutil.which(
    "uv",
    path=os.pathsep.join([os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)]),
)


def distribution(folder: Path, name: str, version: str) -> None:
    """What importlib.metadata takes for an installed package."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("")
    (info / "INSTALLER").write_text("by hand\n")


def wheel(folder: Path, name: str, version: str, needs: Sequence[str] = ()) -> Path:
    """A wheel that can be installed (the binary distribution format of PyPA)."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name.replace('-', '_')}.py": f"VERSION = {version!r}\n",
        f"{stem}.dist-info/METADATA": metadata + "".join(f"Requires-Dist: {n}\n" for n in needs),
        f"{stem}.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    files[f"{stem}.dist-info/RECORD"] = "".join(f"{path},,\n" for path in files)
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_, content in files.items():
            archive.writestr(name_, content)
    return path


def simple_index(folder: Path, wheels: Path) -> None:
    """Lay out wheels as an index that can be served (PEP 503)."""
    for path in sorted(wheels.glob("*.whl")):
        name = path.name.split("-")[0].replace("_", "-")
        place = folder / "simple" / name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
        links = "".join(f'<a href="{p.name}">{p.name}</a>\n' for p in sorted(place.glob("*.whl")))
        (place / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")


class Log(SimpleHTTPRequestHandler):
    """Serves files, and remembers what was asked for and with which authorization."""

    def log_message(self, *_args: object) -> None:
        """Nothing on the screen."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))  # type: ignore[attr-defined]
        super().do_GET()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[ThreadingHTTPServer]:
    """A folder on loopback, for as long as the body runs."""
    handler = functools.partial(Log, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def site_packages(venv: Path) -> Path:
    """Where a venv's packages lie."""
    return next(venv.glob("lib/python*/site-packages"))


class Machine:
    """A rented machine: one Python with a torch of its own, and a folder of packages."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, torch: str = "2.13.0") -> None:
        self.folder = folder
        self.root = folder / "project root"
        self.index = folder / "index"
        self.image = folder / "venv" / "main"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.image)], check=True)
        self.python = str(self.image / "bin" / "python")
        if torch:
            distribution(site_packages(self.image), "torch", torch)
        wheel(self.index, "small-thing", "1.5", ["torch>=2"])
        wheel(self.index, "torch", "99.0")  # a newer one, which must not be taken
        patch.setattr(pythons, "CONDA_FOLDERS", (str(folder / "venv" / "*"),))
        patch.setenv("PATH", "/bin:/usr/bin")
        patch.setenv("HOME", str(folder / "home"))
        for name in list(os.environ):
            if name.startswith(("PIP_", "UV_")):
                patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))

    def contents(self) -> set[str]:
        return {str(path) for folder in (self.root, self.image) for path in folder.rglob("*")}

    @property
    def venv(self) -> Path:
        return self.root / pythons.VENV
