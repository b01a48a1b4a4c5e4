"""A rule of refusal as a test has it, and the place in which a case of it is laid out."""

import os
from collections.abc import Callable
from typing import NamedTuple

from remote_train import journal
from remote_train.manifest import MODERN
from tests.unit.bundle_host import make, put
from tests.unit.hostile_bundles import manifest_of, sound


class Place:
    """Where a case is laid out: a host with files of the user's, and a folder for the bundle."""

    def __init__(self, host, folder, patch, check):
        self.host = host
        self.folder = folder
        self.patch = patch
        self.check = check
        self.meanwhile = None
        put(host.root, {"ok": b"as it was", "data/mine": b"m"})

    def snapshot(self):
        """Everything on the host, but for what an apply at work has for itself."""
        staging = os.fsencode(self.host.state / journal.STAGING)
        seen = self.host.snapshot()
        return {path: value for path, value in seen.items() if not path.startswith(staging)}

    def bundle(self, content):
        """Write the archive; its path."""
        path = self.folder / "x.tar.gz"
        path.write_bytes(content)
        return path

    def applied(self, *trees):
        """Bring trees to the host, one after the other; the last bundle's path."""
        for number, files in enumerate(trees):
            path = make(self.folder, files, f"tree{number}").paths[0]
            self.host.apply(path)
        return path

    def apply(self, content=None, **options):
        """What applies an archive of these bytes."""
        path = self.bundle(sound() if content is None else content)
        return lambda: self.host.apply(path, check=self.check, **options)

    def rollback(self, version):
        """What goes back."""
        return lambda: self.host.rollback(version, check=self.check)


class Rule(NamedTuple):
    """One rule.

    :param words: a pattern of its message, which no other rule's message has.
    :param work: lays out the case in a :class:`Place`; gives what must be refused.
    :param problem: the stable identifier, where the refusal has a list of problems.
    :param always: whether it is refused in check mode too, where nothing would be written.
    """

    words: str
    work: Callable
    problem: str = ""
    always: bool = True


def bundle(problem, words, content):
    """A rule that an archive breaks; ``content`` makes it."""
    return Rule(words, lambda place: place.apply(content()), problem)


def listing(problem, words, text, name=MODERN):
    """A rule that a manifest breaks."""
    return bundle(problem, words, lambda: manifest_of(text, name))


def limited(module, name, value, rule):
    """The same rule, under a limit that is not as far away."""

    def work(place):
        place.patch.setattr(module, name, value)
        return rule.work(place)

    return rule._replace(work=work)
