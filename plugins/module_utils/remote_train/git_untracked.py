"""The files that came beside git, and that git brings from now on."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from . import runs
from .atomic import write_bytes
from .file_names import to_bytes, to_name
from .git_interrupted import blobs_of
from .git_program import Git
from .hashing import file_digest
from .manifest import MODERN, read_manifest
from .manifest_lines import split_line

STATE = f"{runs.SYNC}/untracked"
"""The state folder of the files that git doesn't bring, under the project root."""


@contextlib.contextmanager
def let_go(git: Git, target: str) -> Iterator[None]:
    """Take the files that ``target`` tracks out of git's way, and then out of the manifest.

    Only what is as it was brought makes way. Left in the manifest, the next sync of untracked
    files would remove what git has brought. Where the checkout fails, all is as it was.
    """
    manifest = os.path.join(git.root, STATE, MODERN)
    if not os.path.isfile(manifest):
        yield
        return
    ours = {to_bytes(name): digest for name, digest in read_manifest(manifest).items()}
    both = ours.keys() & blobs_of(git, target).keys()
    here = both.difference(git.names("ls-files", "-z"))
    aside = os.path.join(git.root, STATE, "let_go")
    moved = {}
    try:
        for number, name in enumerate(sorted(here)):
            path = os.path.join(git.root, os.fsdecode(name))
            plain = os.path.isfile(path) and not os.path.islink(path)
            if plain and file_digest(path, "sha256") == ours[name]:
                os.makedirs(aside, exist_ok=True)
                moved[path] = os.path.join(aside, str(number))
                os.rename(path, moved[path])
        yield
    except BaseException:
        for path, place in moved.items():
            if os.path.lexists(place) and not os.path.lexists(path):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.rename(place, path)
        raise
    if both:
        _take_out(manifest, both)
    shutil.rmtree(aside, ignore_errors=True)


def _take_out(manifest: str, names: set[bytes]) -> None:
    with open(manifest, "rb") as stream:
        lines = stream.read().splitlines(keepends=True)
    known = {to_name(name) for name in names}
    kept = [line for line in lines if to_name(split_line(line.rstrip(b"\n"))[2]) not in known]
    if kept:
        write_bytes(manifest, b"".join(kept))
    else:
        os.unlink(manifest)
