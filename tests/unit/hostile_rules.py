"""What must be refused: a case for each rule, by the rule's meaning, and how its message begins.

Other spellings of the same attack stand in ``SPELLINGS`` and don't count as rules.
"""

import fcntl
import gzip
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from typing import NamedTuple

from remote_train import (
    apply_lock,
    bundle_apply,
    bundle_archive,
    commit,
    journal,
    manifest,
    staging,
    tar_reader,
    target_change,
    tree,
)
from remote_train.manifest import LEGACY, MODERN
from remote_train.recovery import recover
from tests.unit.bundle_host import make, put
from tests.unit.hostile_bundles import (
    LINE,
    LISTING,
    OK,
    damaged_header,
    damaged_pax,
    dangling_header,
    flipped,
    global_pax,
    manifest_of,
    pax,
    sound,
    special,
    tar_bytes,
    with_header,
    with_member,
)


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


SHA1 = b"0" * 40 + b"  "

MANIFEST_RULES = {
    "a line that is none": listing(
        "malformed-line", "line 2: not a line that sha256sum writes", LISTING + b"garbage\n"
    ),
    "a comment": listing("malformed-line", "comments have no place", b"# x\n" + LISTING),
    "one blank": listing("malformed-line", "one blank between digest and name", LINE[:65] + b"x\n"),
    "another mode of shasum": listing("malformed-line", "shasum wrote this", LINE[:65] + b"Ux\n"),
    "lines that end in NUL": listing(
        "malformed-line", "sha256sum -z writes", LISTING[:65] + b"x\0"
    ),
    "an escape that there isn't": listing(
        "bad-escape", r"unknown escape \\x", b"\\" + LINE + b"a\\x\n"
    ),
    "NUL in a name": listing("nul", "holds a NUL byte", LINE + b"a\0b\n"),
    "an absolute path": listing("absolute-path", "is an absolute path", LINE + b"/etc/passwd\n"),
    "..": listing("parent-reference", "line 1: leads out of its folder", LINE + b"a/../../x\n"),
    "a folder's name": listing("folder-name", "is the name of a folder", LINE + b"a/\n"),
    "a name twice": listing("duplicate", "ok is listed already on line 1", LISTING * 2),
    "another case": listing("case-collision", "in case only", LISTING + LINE + b"OK\n"),
    "another Unicode form": listing(
        "unicode-collision",
        "in Unicode form only",
        LINE + "é\n".encode() + LINE + "e\u0301\n".encode(),
    ),
    "a file that is a folder": listing(
        "file-and-folder", "other lines list files in it", LISTING + LINE + b"ok/x\n"
    ),
    "a digest of another length": listing(
        "digest-length", "a digest of 63 hex digits; SHA-256 has 64", LISTING[1:]
    ),
    "a tag that lies": listing(
        "digest-length",
        "said to be SHA-1",
        b"SHA1 (ok) = " + LINE[:64] + b"\n",
        LEGACY,
    ),
    "another algorithm": listing(
        "unknown-algorithm", "a digest by SHA512", b"SHA512 (ok) = " + LINE[:64] + b"\n", LEGACY
    ),
    "two algorithms": listing(
        "mixed-algorithms", "SHA-1 in a manifest that began with", LISTING + SHA1 + b"b\n", LEGACY
    ),
    "a line without end": listing(
        "line-too-long", "the line is longer than", LISTING + LINE + b"x" * manifest.MAX_LINE
    ),
    "too many lines": limited(
        manifest,
        "MAX_LINES",
        3,
        listing(
            "too-many-lines",
            "a manifest has at most 3 lines",
            LISTING + b"".join(LINE + b"%d\n" % number for number in range(3)),
        ),
    ),
    "no line": listing("empty-manifest", "the manifest lists no file", b"\n"),
    "UTF-16": listing("utf-16", "in UTF-16", LISTING.decode().encode("utf-16")),
    "too large a manifest": limited(
        staging,
        "MAX_MANIFEST",
        100,
        listing("too-large", "its manifest is larger than 100 bytes", LISTING * 2),
    ),
}

ARCHIVE_RULES = {
    "no gzip": bundle("not-gzip", "incorrect header check", lambda: b"plain text, no gzip"),
    "gzip with a broken block": bundle("not-gzip", "gzip data .*invalid", lambda: flipped(10)),
    "gzip with another sum": bundle("not-gzip", "incorrect data check", lambda: flipped(-6)),
    "gzip with another length": bundle("not-gzip", "incorrect length check", lambda: flipped(-2)),
    "gzip that is cut off": bundle("truncated", "ends before its gzip", lambda: sound()[:-9]),
    "gzip twice": bundle("concatenated-gzip", "after its gzip data", lambda: sound() + sound()),
    "more than there is room for": limited(
        bundle_apply,
        "_room",
        lambda _state: 5_000,
        bundle("too-large", "more than the 5,000 bytes", lambda: with_member("b", bytes(9_000))),
    ),
    "a tar without end": bundle(
        "truncated", "it has no end mark", lambda: gzip.compress(tar_bytes([OK])[:2048])
    ),
    "a header that lies about its size": bundle(
        "truncated",
        "ends in the middle of a member",
        lambda: with_header("b", 10**6, listing=LISTING + LINE + b"b\n"),
    ),
    "a negative size": bundle("bad-header", "a negative size", lambda: with_header("b", -1)),
    "something after the end": bundle(
        "trailing-data", "after the archive's end", lambda: gzip.compress(tar_bytes([OK]) + b"more")
    ),
    "a damaged header": bundle("bad-header", "a header is damaged", damaged_header),
    "a header for nothing": bundle("bad-header", "has no member behind it", dangling_header),
    "a name that is too long": bundle(
        "header-too-large",
        "a long name or its like has over",
        lambda: with_header("././@LongLink", 10**9, tarfile.GNUTYPE_LONGNAME),
    ),
    "a damaged pax header": bundle("bad-pax-header", "a pax header is damaged", damaged_pax),
    "a pax size that is none": bundle(
        "bad-pax-header", "a size is not a number", lambda: pax(size="many")
    ),
    "a path for all members": bundle("bad-pax-header", "a global header sets a path", global_pax),
    "too many members": limited(
        tar_reader,
        "MAX_MEMBERS",
        2,
        bundle("too-many-members", "it has over 2 members", lambda: with_member("b")),
    ),
}

MEMBER_RULES = {
    "a symlink": bundle(
        "symlink-member",
        "l is a symlink, not a regular file",
        lambda: with_member(special("l", tarfile.SYMTYPE, linkname="/etc")),
    ),
    "a hard link": bundle(
        "hard-link-member",
        "l is a hard-link",
        lambda: with_member(special("l", tarfile.LNKTYPE, linkname="../../etc/passwd")),
    ),
    "a device": bundle(
        "device-member", "d is a device", lambda: with_member(special("d", tarfile.CHRTYPE))
    ),
    "a FIFO": bundle(
        "fifo-member", "f is a fifo", lambda: with_member(special("f", tarfile.FIFOTYPE))
    ),
    "a sparse file": bundle(
        "sparse-member", "p is a sparse", lambda: pax(**{"GNU.sparse.major": "1"})
    ),
    "a kind that there isn't": bundle(
        "unknown-member", "of a kind that no tar format", lambda: with_member(special("u", b"V"))
    ),
    "another user's rights": bundle(
        "setuid",
        "with another user's rights",
        lambda: with_member(special("ok", tarfile.REGTYPE, mode=0o4755), b"fine"),
    ),
    "a member twice": bundle(
        "duplicate-member", "ok is in it twice", lambda: with_member("./ok", b"fine")
    ),
    "a file that isn't listed": bundle(
        "unlisted", "evil is in it and not listed", lambda: with_member("evil", b"x")
    ),
    "a file that is missing": listing("missing", "b is not in it", LISTING + LINE + b"b\n"),
    "other bytes": bundle(
        "digest-differs",
        "ok has another digest than listed",
        lambda: gzip.compress(tar_bytes([("ok", b"evil")], listing=LISTING)),
    ),
    "a folder for a file": bundle(
        "not-a-regular-file",
        r"The bundle .* ok is a folder, not a file",
        lambda: gzip.compress(tar_bytes([(special("ok", tarfile.DIRTYPE), b"")], listing=LISTING)),
    ),
    "this program's own folder": bundle(
        "reserved-path",
        "which no bundle may change",
        lambda: gzip.compress(tar_bytes([("outputs/training_sync/stages/x.json", b"x")])),
    ),
    "too deep": bundle(
        "too-deep",
        "over 200 folders deep",
        lambda: gzip.compress(tar_bytes([("d/" * 201 + "x", b"")])),
    ),
    "a part that no disk takes": bundle(
        "name-too-long",
        "has a part of over 255 bytes",
        lambda: gzip.compress(tar_bytes([("n" * 256, b"")])),
    ),
}


# -- the bundle as it was brought ----------------------------------------------------------------


def other_digest(place):
    return place.apply(sha256="0" * 64)


def digest_file_of_garbage(place):
    work = place.apply()
    (place.folder / "x.tar.gz.sha256").write_text("nonsense\n")
    return work


def no_bundle(place):
    return lambda: place.host.apply(place.folder / "none.tar.gz", check=place.check)


def bundle_that_is_a_fifo(place):
    os.mkfifo(place.folder / "x.tar.gz")
    return lambda: place.host.apply(place.folder / "x.tar.gz", check=place.check)


def other_manifest_beside(place):
    work = place.apply()
    (place.folder / f"x.{MODERN}").write_bytes(LISTING * 2)
    return work


def large_manifest_beside(place):
    place.patch.setattr(bundle_archive, "MAX_MANIFEST", 10)
    work = place.apply()
    (place.folder / f"x.{MODERN}").write_bytes(LISTING)
    return work


def bundle_that_changes(place):
    path = place.bundle(sound())
    decide = target_change.to_manifest

    def swap(*arguments):
        path.write_bytes(gzip.compress(tar_bytes([OK]), 1, mtime=1))  # the same file, other bytes
        return decide(*arguments)

    place.patch.setattr(target_change, "to_manifest", swap)
    return lambda: place.host.apply(path, check=place.check)


BROUGHT_RULES = {
    "another archive": Rule("its SHA-256 is", other_digest, "archive-digest"),
    "a digest file of garbage": Rule("doesn't begin with a SHA-256", digest_file_of_garbage),
    "no archive": Rule("The bundle .* can't be read: No such file", no_bundle),
    "an archive that is no file": Rule("The bundle .* is not a regular", bundle_that_is_a_fifo),
    "no manifest": bundle(
        "no-manifest", "it holds no manifest", lambda: gzip.compress(tar_bytes([OK], ""))
    ),
    "two manifests": Rule("is another manifest than", other_manifest_beside, "manifest-differs"),
    "too large a manifest beside it": Rule(
        f"x.{MODERN} is larger than", large_manifest_beside, "manifest-too-large"
    ),
    "an archive that changes": Rule("it changed while it was read", bundle_that_changes, "changed"),
}


# -- what stands on the target -------------------------------------------------------------------


def target(problem, words, prepare):
    """A rule that the target breaks."""

    def work(place):
        path = make(place.folder, {"a": b"1", "sub/b": b"2", "z": b"3"}).paths[0]
        prepare(place)
        return lambda: place.host.apply(path, check=place.check)

    return Rule(words, work, problem)


def link_for_a_file(place):
    (place.host.root / "sub").mkdir()
    (place.host.root / "sub" / "b").symlink_to(place.host.folder / "neighbour" / "file")


def link_on_the_way(place):
    (place.host.root / "sub").symlink_to(place.host.folder / "neighbour")


def file_without_rights(place):
    put(place.host.root, {"a": b"x"})
    real = os.open

    def refuse(path, *arguments, **options):
        if path == b"a":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    place.patch.setattr(tree.os, "open", refuse)


def file_for_the_project(place):
    shutil.rmtree(place.host.root)
    place.host.root.write_bytes(b"a file")
    place.host.state = place.host.folder / "state"
    place.host.state.mkdir()


def changed_before_it_is_kept(place):
    path = place.applied({"a": b"1"}, {"a": b"2"})
    path = make(place.folder, {"a": b"3"}).paths[0]
    decide = target_change.to_manifest

    def edit(*arguments):
        found = decide(*arguments)
        (place.host.root / "a").write_bytes(b"mine")
        place.meanwhile = place.snapshot()
        return found

    place.patch.setattr(target_change, "to_manifest", edit)
    return lambda: place.host.apply(path)


def changed_when_it_was_kept(place):
    place.applied({"a": b"1", "z": b"1"})
    path = make(place.folder, {"a": b"2", "z": b"2"}).paths[0]
    write = journal.write

    def edit(*arguments):
        if place.meanwhile is None:
            (place.host.root / "z").write_bytes(b"mine")
            place.meanwhile = place.snapshot()
        return write(*arguments)

    place.patch.setattr(journal, "write", edit)
    return lambda: place.host.apply(path)


TARGET_RULES = {
    "a symlink there": target("symlink", "sub/b is a symlink", link_for_a_file),
    "a symlink on the way": target("symlink", "sub is a symlink, on the way to", link_on_the_way),
    "a FIFO there": target(
        "not-a-regular-file",
        "project has .*a is not a regular file",
        lambda place: os.mkfifo(place.host.root / "a"),
    ),
    "a folder of the user's there": target(
        "not-a-regular-file",
        "project has .*a is a folder, not a file",
        lambda place: put(place.host.root, {"a/users own": b"u"}),
    ),
    "a file on the way": target(
        "not-a-folder",
        "sub is not a folder, on the way to",
        lambda place: put(place.host.root, {"sub": b"u"}),
    ),
    "a file that can't be read": target(
        "unreadable", "a can't be read: Permission denied", file_without_rights
    ),
    "a file for the project": target(
        "not-a-folder", "/project is not a folder", file_for_the_project
    ),
}


# -- an apply at work ----------------------------------------------------------------------------


def two_at_once(place):
    place.host.state.mkdir(parents=True)
    lock = open(place.host.state / apply_lock.NAME, "w")  # noqa: SIM115  # as long as the test
    fcntl.flock(lock, fcntl.LOCK_EX)
    place.lock = lock
    return place.apply()


def lock_that_is_a_link(place):
    place.host.state.mkdir(parents=True)
    (place.host.state / apply_lock.NAME).symlink_to(place.host.folder / "neighbour" / "file")
    return place.apply()


def state_that_is_a_file(place):
    put(place.host.root, {"outputs/training_sync": b"a file"})
    return place.apply()


def full_disk(place):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    work = place.apply()

    def apply():
        with place.patch.context() as patch:
            patch.setattr(staging.os, "write", full)
            work()

    return apply


def full_disk_for_the_journal(place):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    place.patch.setattr(commit, "_record", full)
    return place.apply()


def senseless_journal(place):
    place.applied({"a": b"1"})
    (place.host.state / journal.NAME).write_bytes(b"nonsense")
    return lambda: recover(str(place.host.root), str(place.host.state))


def journal_that_leads_out(place):
    place.applied({"a": b"1"})
    path = place.host.state / journal.NAME
    (place.host.state / "staging-x").mkdir()
    entry = journal.Entry("../neighbour/file", journal.REMOVE)
    journal.write(str(place.host.state), journal.Journal("staging-x", 1, 2, 5, [entry]))
    assert path.exists()
    return lambda: recover(str(place.host.root), str(place.host.state))


def journal_without_staging(place):
    place.applied({"a": b"1"})
    (place.host.state / "staging-x").mkdir()
    journal.write(str(place.host.state), journal.Journal("staging-x", 1, 2, 5))
    (place.host.state / "staging-x").rmdir()
    return place.apply()


def damaged_record(place):
    place.applied({"a": b"1"})
    (place.host.state / "versions" / "1" / "version.json").write_text(
        json.dumps({"schema": 1, "x": 1})
    )
    return place.apply()


WORK_RULES = {
    "a file that changes before it is kept": Rule(
        "changed on the host while the sync was being prepared",
        changed_before_it_is_kept,
        "changed-on-target",
        always=False,
    ),
    "a file that changes before it is replaced": Rule(
        "z changed on the host while the sync was at work",
        changed_when_it_was_kept,
        "changed-on-target",
        always=False,
    ),
    "two at once": Rule("Another sync is at work", two_at_once, always=False),
    "a lock that is a symlink": Rule(
        r"The lock .* is a symlink", lock_that_is_a_link, always=False
    ),
    "a state folder that is a file": Rule(
        "training_sync can't be used", state_that_is_a_file, always=False
    ),
    "a full disk": Rule("no room .* to unpack the bundle", full_disk, always=False),
    "a full disk for the journal": Rule(
        "The sync can't be prepared in .* no room", full_disk_for_the_journal, always=False
    ),
    "a journal of no sense": Rule(
        r"The journal .* \(Expecting value", senseless_journal, always=False
    ),
    "a journal that leads out": Rule(
        r"The journal .*'\.\./neighbour/file' leads out", journal_that_leads_out, always=False
    ),
    "a journal without its files": Rule(
        "of a sync that was interrupted is gone", journal_without_staging, always=False
    ),
    "a version's record of no sense": Rule(
        "version.json of a version can't be read", damaged_record, always=False
    ),
}


# -- going back ----------------------------------------------------------------------------------


def back(words, prepare, problem="", version=1):
    """A rule that is broken when a host goes back that was at version 2."""

    def work(place):
        place.applied({"a": b"1", "b": b"1"}, {"a": b"2"})
        prepare(place.host)
        return place.rollback(version)

    return Rule(words, work, problem)


def kept(host, name):
    """The path of one of the files that version 1 keeps."""
    folder = host.state / "versions" / "1" / "kept"
    files = json.loads((folder / "before.json").read_text())["files"]
    return folder / "files" / files[name]["file"]


def only_its_mode(place):
    place.applied({"a": b"x"})
    place.host.apply(make(place.folder, {"a": b"x"}, "two", ["a"]).paths[0])
    put(place.host.root, {"a": b"mine"})
    place.host.apply(make(place.folder, {"a": b"z"}, "three").paths[0])
    return place.rollback(1)


ROLLBACK_RULES = {
    "no version": Rule("that could be gone back to", lambda place: place.rollback(None)),
    "a version that isn't kept": back("Version 7 of .* is not kept", lambda _host: None, "", 7),
    "a file that was changed since": back(
        "a was changed on the host since it was applied",
        lambda host: put(host.root, {"a": b"mine"}),
        "changed-since",
    ),
    "bytes that are damaged": back(
        "bytes that are kept of a are not those",
        lambda host: kept(host, "a").write_bytes(b"0"),
        "kept-damaged",
    ),
    "bytes that are gone": back(
        "bytes that are kept of b can't be read",
        lambda host: kept(host, "b").unlink(),
        "kept-unreadable",
    ),
    "bytes that were never kept": Rule(
        "the bytes that a had are not kept", only_its_mode, "not-kept"
    ),
    "a manifest that is gone": back(
        "its manifest is gone",
        lambda host: (host.state / "versions" / "1" / MODERN).unlink(),
        "kept-damaged",
    ),
    "a list of what is kept of no sense": back(
        "before.json of a version can't be read",
        lambda host: (host.state / "versions" / "1" / "kept" / "before.json").write_text("{"),
    ),
}

RULES = {
    **MANIFEST_RULES,
    **ARCHIVE_RULES,
    **MEMBER_RULES,
    **BROUGHT_RULES,
    **TARGET_RULES,
    **WORK_RULES,
    **ROLLBACK_RULES,
}

SPELLINGS = {
    ".. in a member": bundle(
        "parent-reference", r"\.\./evil leads out", lambda: with_member("../evil")
    ),
    ".. in a pax header": bundle("parent-reference", "leads out", lambda: pax(path="a/../../evil")),
    ".. behind an escape": listing(
        "parent-reference",
        r"line 2: .*leads out",
        b"\\" + LINE + b"..\\\\x\n" + b"\\" + LINE + b"../a\\\\x\n",
    ),
    "an absolute member": bundle(
        "absolute-path", "/srv/evil is an absolute path", lambda: with_member("/srv/evil")
    ),
    "NUL in a pax header": bundle("nul", "NUL", lambda: pax(path="a\0b")),
    "a block device": bundle(
        "device-member", "d is a device", lambda: with_member(special("d", tarfile.BLKTYPE))
    ),
    "setgid": bundle(
        "setuid", "s would run", lambda: with_member(special("s", tarfile.REGTYPE, mode=0o2755))
    ),
    "a link, and a file through it": bundle(
        "symlink-member",
        "l is a symlink",
        lambda: gzip.compress(
            tar_bytes(
                [(special("l", tarfile.SYMTYPE, linkname=".."), b""), ("l/evil", b"x")],
                listing=LISTING + LINE + b"l/evil\n",
            )
        ),
    ),
    "an old sparse file": bundle(
        "sparse-member",
        "s is a sparse",
        lambda: with_member(special("s", tarfile.GNUTYPE_SPARSE)),
    ),
    "the manifest twice": bundle(
        "duplicate-member", "is in it twice", lambda: with_member(MODERN, LISTING)
    ),
    "tar without gzip": bundle("not-gzip", "not sound gzip", lambda: tar_bytes([OK])),
    "nothing at all": bundle("truncated", "ends before", lambda: b""),
    "this program's own folder in another case": bundle(
        "reserved-path",
        "no bundle may change",
        lambda: gzip.compress(tar_bytes([("Outputs/TRAINING_sync/x", b"x")])),
    ),
    "this program's own folder as a file": bundle(
        "reserved-path",
        "no bundle may change",
        lambda: gzip.compress(tar_bytes([("outputs/training_sync", b"x")])),
    ),
    "SHA-1 where SHA-256 belongs": listing("digest-length", "a digest of 40", SHA1 + b"ok\n"),
    "a part of too many bytes in few letters": bundle(
        "name-too-long",
        "over 255 bytes",
        lambda: gzip.compress(tar_bytes([("结" * 86, b"")])),
    ),
}
