"""Signatures that must not count, and bundles that have none: a case for each rule."""

import gzip
import hashlib
import tarfile

from remote_train import signature
from remote_train.manifest import LEGACY, MODERN
from remote_train.signature import MAX_SIGNATURE, Trust
from tests.unit.hostile_bundles import LINE, LISTING, OK, sound, special, tar_bytes
from tests.unit.hostile_place import Rule
from tests.unit.signers import certified, line, make_key, signed

LEGACY_LISTING = hashlib.sha1(b"fine").hexdigest().encode() + b"  ok\n"  # noqa: S324


def unlike(problem, words, make, allow=line):
    """A rule that a signature beside the bundle breaks, or the list of those whose counts.

    :param make: the signature, from the key and the folder; None for none.
    :param allow: the list, from the key.
    """

    def work(place):
        key = make_key(place.folder)
        content = make(key, place.folder)
        if content is not None:
            (place.folder / f"x.{MODERN}.sig").write_bytes(content)
        return place.apply(trust=Trust(allow(key)))

    return Rule(words, work, problem)


def ours(key, _folder):
    """The signature that it should be."""
    return signed(LISTING, key)


def by_another(_key, folder):
    return signed(LISTING, make_key(folder, "another"))


def by_old_certificate(key, _folder):
    return signed(LISTING, certified(key, key, "20200101:20200102"))


def with_options(options):
    return lambda key: line(key, options=options)


def without(name, value):
    """A rule that the machine breaks on which the signature is checked."""

    def work(place):
        key = make_key(place.folder)
        (place.folder / f"x.{MODERN}.sig").write_bytes(signed(LISTING, key))
        if value is not None:
            script = place.folder / "ssh-keygen"
            script.write_text(value)
            script.chmod(0o755)
        place.patch.setattr(signature, "PROGRAM", str(place.folder / "ssh-keygen"))
        return place.apply(trust=Trust(line(key)))

    return Rule(name, work)


SIGNATURE_RULES = {
    "no signature": unlike("unsigned", "it is not signed", lambda _key, _folder: None),
    "too large a signature": unlike(
        "signature-too-large",
        f"its signature is larger than {MAX_SIGNATURE:,} bytes",
        lambda key, folder: ours(key, folder).ljust(MAX_SIGNATURE + 1),
    ),
    "a signature of garbage": unlike(
        "not-a-signature",
        "should be its signature is none .*missing header",
        lambda _key, _folder: b"\x89garbage",
    ),
    "a signature over other bytes": unlike(
        "signature-differs",
        "its signature is over other bytes than its manifest",
        lambda key, _folder: signed(LISTING + b"\n", key),
    ),
    "a signature for another purpose": unlike(
        "signature-namespace",
        "was made for another namespace than remote-train",
        lambda key, _folder: signed(LISTING, key, "file"),
    ),
    "a signature by another": unlike(
        "signer-not-allowed", "is not among the allowed signers", by_another
    ),
    "a signer whose time is over": unlike(
        "signer-expired",
        "that signed it is no longer valid .*line 1: .*valid-before 2020-01-01",
        ours,
        with_options('valid-before="20200101"'),
    ),
    "a signer whose time comes": unlike(
        "signer-not-yet-valid",
        "that signed it is not valid yet .*line 1: .*valid-after 2099-01-01",
        ours,
        with_options('valid-after="20990101"'),
    ),
    "a signer for another purpose": unlike(
        "signer-namespace",
        "that signed it may not sign for remote-train",
        ours,
        with_options('namespaces="file,git"'),
    ),
    "a signer whose certificate is over": unlike(
        "signer-refused",
        "that signed it doesn't count .*line 1: ",
        by_old_certificate,
        with_options("cert-authority"),
    ),
    "nobody to sign": unlike(
        "no-allowed-signers",
        "signers has 1 problem: it names nobody",
        ours,
        lambda _key: "# x\n\t# y\n\n",
    ),
    "a list of signers of no sense": unlike(
        "allowed-signers-line",
        "signers has 1 problem: line 2: not understood: missing key",
        ours,
        lambda key: line(key) + "you@example.org\n",
    ),
    "nothing to check with": without("There is no .*ssh-keygen on this machine", None),
    "too little to check with": without(
        "knows no -Y check-novalidate",
        "#!/bin/sh\necho 'unknown option -- Y' >&2\necho 'usage: ...' >&2\nexit 1\n",
    ),
}


# -- the same attacks otherwise --------------------------------------------------------------------


def members(problem, words, make, manifest_name=MODERN):
    """An archive; ``make`` gives its members and its manifest from the key."""

    def work(place):
        key = make_key(place.folder)
        inside, listing = make(key)
        content = gzip.compress(tar_bytes(inside, manifest_name, listing))
        return place.apply(content, trust=Trust(line(key)))

    return Rule(words, work, problem)


def swapped_beside(place):
    """The manifest beside the bundle is the signed one, and the one in it is another."""
    key = make_key(place.folder)
    (place.folder / f"x.{MODERN}").write_bytes(LISTING)
    (place.folder / f"x.{MODERN}.sig").write_bytes(signed(LISTING, key))
    content = gzip.compress(tar_bytes([("ok", b"evil")]))
    return place.apply(content, trust=Trust(line(key)))


def garbage_beside(place):
    """What stands beside the bundle counts before what is in it, also when it is worse."""
    key = make_key(place.folder)
    (place.folder / f"x.{MODERN}.sig").write_bytes(b"")
    inside = [(MODERN + ".sig", signed(LISTING, key)), (MODERN, LISTING), OK]
    return place.apply(gzip.compress(tar_bytes(inside, "")), trust=Trust(line(key)))


def garbage_given(place):
    """What came with the list counts before all."""
    key = make_key(place.folder)
    (place.folder / f"x.{MODERN}.sig").write_bytes(signed(LISTING, key))
    return place.apply(trust=Trust(line(key), b"nonsense"))


SIGNATURE_SPELLINGS = {
    "an old bundle without signature": members(
        "unsigned", "x.tar.gz .*not signed", lambda _key: ([OK], LEGACY_LISTING), LEGACY
    ),
    "a manifest that was swapped with its files": members(
        "signature-differs",
        "over other bytes",
        lambda key: (
            [("ok", b"evil"), (MODERN + ".sig", signed(LISTING, key))],
            hashlib.sha256(b"evil").hexdigest().encode() + b"  ok\n",
        ),
    ),
    "a manifest that was swapped under its signature": Rule(
        "another manifest than the one in it", swapped_beside, "manifest-differs"
    ),
    "files that were swapped under a signed manifest": members(
        "digest-differs",
        "ok has another digest",
        lambda key: ([("ok", b"evil"), (MODERN + ".sig", signed(LISTING, key))], LISTING),
    ),
    "a new manifest put before a signed old one": members(
        "unsigned",
        "not signed",
        lambda key: (
            [OK, (LEGACY, LEGACY_LISTING), (LEGACY + ".sig", signed(LEGACY_LISTING, key))],
            LISTING,
        ),
    ),
    "a signature in a folder": members(
        "unsigned",
        "not signed",
        lambda key: ([OK, (f"sub/{MODERN}.sig", signed(LISTING, key))], LISTING),
    ),
    "a signature that is a link": members(
        "unsigned",
        "not signed",
        lambda _key: (
            [OK, (special(MODERN + ".sig", tarfile.SYMTYPE, linkname="x"), b"")],
            LISTING,
        ),
    ),
    "a large signature in the archive": members(
        "signature-too-large",
        "is larger than",
        lambda _key: ([OK, (MODERN + ".sig", bytes(20_000_000))], LISTING),
    ),
    "a signature of nothing": unlike("not-a-signature", "is none", lambda _key, _folder: b""),
    "a signature that was cut off": unlike(
        "not-a-signature", "is none", lambda key, folder: ours(key, folder)[:150]
    ),
    "nothing beside, and a good one inside": Rule("is none", garbage_beside, "not-a-signature"),
    "garbage that came with the list": Rule("is none", garbage_given, "not-a-signature"),
    "a list of no line at all": unlike("no-allowed-signers", "nobody", ours, lambda _key: ""),
    "the key that may certify signs itself": unlike(
        "signer-not-allowed", "not among", ours, with_options("cert-authority")
    ),
    "an option that there isn't": unlike(
        "allowed-signers-line",
        "line 1: .*unknown key option",
        ours,
        with_options("revoked"),
    ),
    "more than the manifest under the signature": unlike(
        "signature-differs", "other bytes", lambda key, _folder: signed(sound(), key)
    ),
    "a list of signers of another's lines": unlike(
        "allowed-signers-line",
        "line 3: not understood",
        ours,
        lambda key: "\n" + line(key) + LINE.decode() + "ok\n",
    ),
}
