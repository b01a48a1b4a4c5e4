"""Deltas that must be refused: a case for each rule. Also what tests of deltas are made from."""

import gzip
import hashlib
import tarfile

from remote_train import offer as offers
from remote_train.bundle_apply import Delivery
from remote_train.offer import Offer, keep, kept, unpack
from tests.unit.hostile_bundles import special, tar_bytes
from tests.unit.hostile_place import Rule


def offer_of(files, executable=()):
    """What is offered where a project holds these files."""
    return Offer(
        (name, hashlib.sha256(content).hexdigest(), name in executable)
        for name, content in files.items()
    )


def delta_of(files, executable=(), mode=0o644):
    """The archive of some files, without a manifest."""
    members = []
    for name, content in files.items():
        runs = mode | 0o111 if name in executable else mode
        members.append((special(name, tarfile.REGTYPE, mode=runs), content))
    return gzip.compress(tar_bytes(members, ""), 1)


def bring(host, files, changed, executable=(), **options):
    """Apply the delta of the ``changed`` files out of a project's ``files``."""
    wanted = options.pop("offer", None)
    if wanted is None:
        wanted = offer_of(files, executable)
    content = options.pop("content", None)
    if content is None:
        content = delta_of({name: files[name] for name in changed}, executable)
    cache = options.pop("cache", False)
    sha256 = options.pop("sha256", hashlib.sha256(content).hexdigest())
    return host.apply("project.delta", sha256, delivery=Delivery(content, wanted, cache), **options)


THERE = {"same": b"same", "run.sh": b"#!/bin/sh\n", "old": b"old"}


def delta(problem, words, change, always=True):
    """A rule that a delta breaks on a host that holds ``THERE``.

    :param change: from the place; the options of :func:`bring` that make it wrong.
    """

    def work(place):
        bring(place.host, THERE, THERE, ["run.sh"])
        files = {**THERE, "new": b"n"}
        given = {"files": files, "changed": ["new"], "executable": ["run.sh"], **change(place)}
        return lambda: bring(place.host, check=place.check, **given)

    return Rule(words, work, problem, always)


def lacking(place):
    (place.host.root / "same").unlink()
    return {}


def changed_there(place):
    (place.host.root / "old").write_bytes(b"mine")
    return {}


def no_longer_kept(place):
    """The host has let go of the offer, or somebody has put another one there."""
    sound = offer_of(THERE)
    state = str(place.folder)
    keep(state, sound, sound.packed())
    path = place.folder / offers.FOLDER / sound.sha256
    path.write_text(offer_of(THERE, ["old"]).packed())
    return lambda: kept(state, sound.sha256)


def damaged_offer(_place):
    text = offer_of(THERE).packed()
    return lambda: unpack(text[:20] + text[24:])


DELTA_RULES = {
    "a delta that lacks what the host lacks": delta("missing", "same is not in it", lacking),
    "a delta in which a file may be run": delta(
        "mode-differs",
        "new is not executable in it as it was offered",
        lambda _place: {"content": delta_of({"new": b"n"}, ["new"])},
    ),
    "an offer of nothing": delta(
        "empty-offer", "no file was offered", lambda _place: {"offer": Offer([])}
    ),
    "an offer that isn't the one that was kept": Rule(
        "no longer has the list of the files", no_longer_kept
    ),
    "an offer that came damaged": Rule("files arrived damaged", damaged_offer),
}
"""Each has a message that none of the other rules has."""

DELTA_SPELLINGS = {
    "a delta of a file that isn't offered": delta(
        "unlisted",
        "evil is in it and not listed",
        lambda _place: {"content": delta_of({"new": b"n", "evil": b"e"})},
    ),
    "a delta with another digest than offered": delta(
        "digest-differs",
        "new has another digest than listed",
        lambda _place: {"content": delta_of({"new": b"evil"})},
    ),
    "a delta that lacks what changed on the host": delta(
        "missing", "old is not in it", changed_there
    ),
    "a delta in which a file may not be run": delta(
        "mode-differs",
        "new is not executable in it as it was offered",
        lambda _place: {"executable": ["run.sh", "new"], "content": delta_of({"new": b"n"})},
    ),
    "a delta with a file twice": delta(
        "duplicate-member",
        "new is in it twice",
        lambda _place: {"content": gzip.compress(tar_bytes([("new", b"n"), ("new", b"n")], ""))},
    ),
    "a delta with a setuid bit": delta(
        "setuid",
        "new would run with another user's rights",
        lambda _place: {"content": delta_of({"new": b"n"}, mode=0o4644)},
    ),
    "a delta with a name that leads out": delta(
        "parent-reference",
        "leads out of its folder",
        lambda _place: {"content": delta_of({"new": b"n", "../x": b""})},
    ),
    "a delta with a symlink": delta(
        "symlink-member",
        "new is a symlink",
        lambda _place: {
            "content": gzip.compress(
                tar_bytes([(special("new", tarfile.SYMTYPE, linkname="old"), b"")], "")
            )
        },
    ),
    "a delta that is cut": delta(
        "truncated",
        "ends",
        lambda _place: {"content": delta_of({"new": b"n"})[:-9]},
    ),
    "a delta with another digest as a whole": delta(
        "archive-digest", "its SHA-256 is", lambda _place: {"sha256": "0" * 64}
    ),
    "a delta for the state's folder": delta(
        "reserved-path",
        "lies in outputs/training_sync",
        lambda _place: {
            "files": {**THERE, "outputs/training_sync/journal.json": b"{}"},
            "changed": ["outputs/training_sync/journal.json"],
        },
    ),
}
"""Rules that hold for any bundle."""
