"""The steps of an apply on the target itself: each a rename, and each can be taken back.

Every step looks at what is there, so that any of them may have been done already: by this
process, or by one that was killed. No symlink is followed, and nothing that isn't known is
overwritten: a file is known by the stamp that the journal has of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import Any, Callable

from . import durable, tree
from .file_names import parents, shown, to_bytes
from .journal import ADD, MODE, REMOVE, REPLACE, USUAL, Entry, Journal
from .open_path import FOLDER_FLAGS

# A folder that somebody's files are in stays; one that is a file by now is gone already.
_STAYS = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR}


class ChangedError(Exception):
    """Something on the target is not what it was when the apply was decided on.

    :ivar name: what.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{shown(name)} changed on the host while the sync was at work")
        self.name = name


class StepError(Exception):
    """The system refuses a step. :ivar name: the file; :ivar error: what the system said."""

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(name)
        self.name = name
        self.error = error


class Swap:
    """The steps of one journal.

    :param staging: the folder that holds ``new`` and ``kept/files``.
    """

    def __init__(self, root: bytes, staging: str, journal: Journal) -> None:
        self._root = root
        self._new = os.fsencode(os.path.join(staging, "new"))
        self._kept = os.fsencode(os.path.join(staging, "kept", "files"))
        self._journal = journal
        self._folders = {folder for folder, _mode in journal.make}
        self._files = {entry.name for entry in self._entries(ADD, REPLACE)}
        self._path = tree.OpenPath(root)

    def forward(self) -> None:
        """Make the target new.

        :raises ChangedError: when somebody changed what is to be changed; :raises StepError.
        """
        journal = self._journal
        for entry in self._entries(REMOVE):
            self._step(entry.name, self._remove, entry)
        self._path = tree.OpenPath(self._root)  # folders come and go now
        for folder, _mode in sorted(journal.empty, reverse=True):  # what is in one comes first
            self._step(folder, self._rmdir, folder)
        self._path = tree.OpenPath(self._root)
        for folder, mode in journal.make:
            self._step(folder, self._mkdir, folder, mode)
        for entry in self._entries(ADD, REPLACE):
            self._step(entry.name, self._place, entry)
        for entry in self._entries(MODE):
            self._step(entry.name, self._set_mode, entry)

    def back(self) -> list[str]:
        """Make the target old again; what somebody changed since is left as it is.

        :return: the names of what was left. :raises StepError: when the system refuses.
        """
        journal = self._journal
        left: list[str] = []

        def step(name: str, one: Callable[..., bool], *arguments: Any) -> None:
            try:
                known = self._step(name, one, *arguments)
            except ChangedError:
                known = False
            if not known:
                left.append(name)

        for entry in self._entries(MODE):
            step(entry.name, self._reset_mode, entry)
        for entry in self._entries(ADD, REPLACE):
            step(entry.name, self._take_out, entry)
        self._path = tree.OpenPath(self._root)
        for folder, _mode in reversed(journal.make):
            step(folder, self._rmdir, folder)
        self._path = tree.OpenPath(self._root)
        for folder, mode in sorted(journal.empty):
            step(folder, self._mkdir, folder, mode)
        for entry in self._entries(REMOVE):
            step(entry.name, self._restore, entry)
        return left

    def settle(self) -> None:
        """Bring what was done to the disk."""
        touched = {""}
        for entry in self._journal.entries:
            touched.add(entry.name.rpartition("/")[0])
        for folder, _mode in [*self._journal.make, *self._journal.empty]:
            touched.update(parents(folder + "/"))
        durable.bring_folders(self._root, touched)

    def _entries(self, *actions: str) -> Iterable[Entry]:
        wanted = [entry for entry in self._journal.entries if entry.action in actions]
        return sorted(wanted, key=lambda entry: entry.name)

    @staticmethod
    def _step(name: str, step: Callable[..., bool], *arguments: Any) -> bool:
        try:
            return step(*arguments)
        except tree.UnusableError as error:
            raise ChangedError(error.at) from None
        except OSError as error:
            raise StepError(name, error) from error

    def _at(self, name: str) -> tuple[int, bytes]:
        """The descriptor of the folder that ``name`` lies in, and its name there."""
        # The folder stays open: it is the last one of the path.
        return self._path.folder_of(name).descriptor, to_bytes(name.rpartition("/")[2])

    def _look(self, name: str) -> os.stat_result | None:
        """What is there; None for nothing."""
        try:
            folder, base = self._at(name)
            return os.stat(base, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except tree.UnusableError as error:
            if error.kind == "missing" or error.at in self._files:
                return None
            raise

    def _is(self, name: str, *stamps: tree.Stamp) -> bool:
        """Whether a regular file with one of these stamps is there."""
        found = self._look(name)
        return bool(found and stat.S_ISREG(found.st_mode) and tree.stamp_of(found) in stamps)

    def _staged(self, entry: Entry) -> bytes:
        return os.path.join(self._new, os.fsencode(entry.staged))

    def _is_staged(self, entry: Entry) -> bool:
        return os.path.lexists(self._staged(entry))

    # Each step says whether what it found was known; those of `forward` raise where it wasn't.

    # -- forward ------------------------------------------------------------------------------

    def _remove(self, entry: Entry) -> bool:
        found = self._look(entry.name)
        if found is None or (stat.S_ISDIR(found.st_mode) and entry.name in self._folders):
            return True
        self._expect(self._is(entry.name, entry.old), entry.name)
        folder, base = self._at(entry.name)
        os.unlink(base, dir_fd=folder)
        return True

    def _rmdir(self, name: str) -> bool:
        try:
            folder, base = self._at(name)
            os.rmdir(base, dir_fd=folder)
        except tree.UnusableError:
            pass  # gone with the one that it was in
        except OSError as error:
            if error.errno not in _STAYS:
                raise
        return True

    def _mkdir(self, name: str, mode: int) -> bool:
        folder, base = self._at(name)
        try:
            os.mkdir(base, dir_fd=folder)
        except FileExistsError:
            found = self._look(name)
            self._expect(bool(found and stat.S_ISDIR(found.st_mode)), name)
        if mode != USUAL:
            descriptor = os.open(base, FOLDER_FLAGS, dir_fd=folder)
            try:
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)
        return True

    def _place(self, entry: Entry) -> bool:
        if not self._is_staged(entry):
            return True
        if entry.action == ADD:
            self._expect(self._look(entry.name) is None, entry.name)
        else:
            self._expect(self._is(entry.name, entry.old), entry.name)
        folder, base = self._at(entry.name)
        os.replace(self._staged(entry), base, dst_dir_fd=folder)
        return True

    def _set_mode(self, entry: Entry) -> bool:
        found = self._look(entry.name)
        if found and stat.S_IMODE(found.st_mode) == entry.new_mode:
            return True
        self._expect(self._chmod(entry, entry.new_mode), entry.name)
        return True

    def _chmod(self, entry: Entry, mode: int) -> bool:
        try:
            descriptor = self._path.open_file(entry.name)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ELOOP}:
                return False
            raise
        try:
            if tree.stamp_of(os.fstat(descriptor)) != entry.old:
                return False
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        return True

    @staticmethod
    def _expect(known: bool, name: str) -> None:
        if not known:
            raise ChangedError(name)

    # -- back ---------------------------------------------------------------------------------

    def _reset_mode(self, entry: Entry) -> bool:
        return self._chmod(entry, entry.old_mode)

    def _take_out(self, entry: Entry) -> bool:
        if self._is_staged(entry) or self._is(entry.name, entry.old, entry.copy):
            return True
        there = self._look(entry.name)
        if there and not self._is(entry.name, entry.new):
            return False
        if entry.action == REPLACE:
            return self._put_back(entry)
        if there:
            folder, base = self._at(entry.name)
            os.rename(base, self._staged(entry), src_dir_fd=folder)
        return True

    def _restore(self, entry: Entry) -> bool:
        if self._look(entry.name) is None:
            return self._put_back(entry)
        return self._is(entry.name, entry.old, entry.copy)

    def _put_back(self, entry: Entry) -> bool:
        kept = os.path.join(self._kept, os.fsencode(entry.saved))
        if not os.path.lexists(kept):
            return False  # it was put back already, and somebody took it away since
        folder, base = self._at(entry.name)
        os.replace(kept, base, dst_dir_fd=folder)
        return True
