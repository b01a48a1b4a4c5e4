"""The files that came beside git, and that git brings from now on."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping

from . import runs
from .atomic import write_bytes
from .file_names import to_bytes, to_name
from .git_failures import in_the_way
from .git_interrupted import blobs_of
from .git_program import Git
from .hashing import descriptor_digest
from .manifest import MODERN, read_manifest
from .manifest_lines import split_line
from .open_path import OpenPath, UnusableError, last_part

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
    aside = os.path.join(git.root, STATE, "let_go")
    _put_back(git.root, aside)  # what one that was killed has left there
    ours = {to_bytes(name): digest for name, digest in read_manifest(manifest).items()}
    both = ours.keys() & blobs_of(git, target).keys()
    here = both.difference(git.names("ls-files", "-z"))
    try:
        if here:
            os.makedirs(aside, exist_ok=True)
            names = [to_name(name) for name in sorted(here)]
            _move(git.root, aside, {name: ours[to_bytes(name)] for name in names})
        yield
    except BaseException:
        _put_back(git.root, aside)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    if both:
        _take_out(manifest, both)


def _move(root: str, aside: str, digests: Mapping[str, str]) -> None:
    """Move the files that have these digests aside, under their own names."""
    source = OpenPath(os.fsencode(root))
    place = OpenPath(os.fsencode(aside), create=True)
    for name, digest in digests.items():
        try:
            descriptor = source.open_file(name)
        except (OSError, UnusableError):
            continue  # it has gone, or a link is on the way: no file that was brought
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            if regular and descriptor_digest(descriptor)[0] == digest:
                _rename(name, source, place)
        finally:
            os.close(descriptor)


def _put_back(root: str, aside: str) -> None:
    """Move what lies aside back to where nothing is now.

    :raises InTheWayError: where it can't be, for what is on the way there.
    """
    names = [
        to_name(os.fsencode(os.path.relpath(os.path.join(where, file), aside)))
        for where, _, files in os.walk(aside)
        for file in files
    ]
    if not names:
        return
    place = OpenPath(os.fsencode(aside))
    home = OpenPath(os.fsencode(root), create=True)
    for name in sorted(names, key=to_bytes):
        try:
            folder = home.folder_of(name).descriptor
        except UnusableError as error:
            raise in_the_way([error.at]) from error
        try:
            os.stat(last_part(name), dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            _rename(name, place, home)
    shutil.rmtree(aside)


def _rename(name: str, source: OpenPath, target: OpenPath) -> None:
    os.rename(
        last_part(name),
        last_part(name),
        src_dir_fd=source.folder_of(name).descriptor,
        dst_dir_fd=target.folder_of(name).descriptor,
    )


def _take_out(manifest: str, names: set[bytes]) -> None:
    with open(manifest, "rb") as stream:
        lines = stream.read().splitlines(keepends=True)
    known = {to_name(name) for name in names}
    kept = [line for line in lines if to_name(split_line(line.rstrip(b"\n"))[2]) not in known]
    if kept:
        write_bytes(manifest, b"".join(kept))
    else:
        os.unlink(manifest)
