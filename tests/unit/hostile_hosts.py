"""Targets, applies at work and ways back that must be refused: a case for each rule."""

import fcntl
import gzip
import json
import os
import shutil

from remote_train import (
    apply_lock,
    bundle_archive,
    commit,
    journal,
    staging,
    target_change,
    tree,
)
from remote_train.manifest import MODERN
from remote_train.recovery import recover
from tests.unit.bundle_host import make, put
from tests.unit.hostile_bundles import LISTING, OK, sound, tar_bytes
from tests.unit.hostile_place import Rule, bundle

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
