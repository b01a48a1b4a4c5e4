"""Manifests, archives and members that must be refused: a case for each rule."""

import gzip
import tarfile

from remote_train import bundle_apply, manifest, staging, tar_reader
from remote_train.manifest import LEGACY, MODERN
from tests.unit.hostile_bundles import (
    LINE,
    LISTING,
    OK,
    damaged_header,
    damaged_pax,
    dangling_header,
    flipped,
    global_pax,
    pax,
    sound,
    special,
    tar_bytes,
    with_header,
    with_member,
)
from tests.unit.hostile_place import bundle, limited, listing

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

# Other spellings of the same attacks, which don't count as rules.
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
