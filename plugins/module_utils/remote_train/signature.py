"""Who vouches for a manifest: SSH signatures, made and checked by ``ssh-keygen -Y``.

A digest says that bytes are the listed ones, a signature says who listed them. The formats are
OpenSSH's: PROTOCOL.sshsig, and ssh-keygen(1), "ALLOWED SIGNERS". What counts in the end is the
exit status of ``ssh-keygen -Y verify`` alone; its words only choose the sentence of a refusal.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

from .asked import HANGS, UNUSABLE, Ended, ask
from .disk_errors import cannot
from .errors import TrainError
from .file_names import shown, to_bytes
from .problems import Problems, RefusedError, refused

NAMESPACE = "remote-train"
MAX_SIGNATURE = 64 * 1024  # bytes; the longest real ones (RSA of 16,384 bits) have 6,000
TIMEOUT = 60  # seconds; a key on a token waits that long to be touched
PROGRAM = "ssh-keygen"

_UPDATE = "Install OpenSSH 8.2 or newer there."
# 8.1 knows -Y and not find-principals; what it misses first there is another argument.
_TOO_OLD = re.compile(
    rb"^(.*: )?(unknown|illegal|invalid|unrecognized) option( --|:) '?Y"
    rb"|^Unsupported operation for -Y|^Too few arguments",
    re.MULTILINE,
)
_FINGERPRINT = re.compile(rb" key SHA256:([A-Za-z0-9+/]+)\s*$")
_ARMOR = re.compile(
    rb"-----BEGIN SSH SIGNATURE-----\n([A-Za-z0-9+/=\n]+)-----END SSH SIGNATURE-----\n"
)
_COMPLAINT = re.compile(rb"^allowed:(\d+): (.+)", re.MULTILINE)

# The beginnings of complaints about a line that was understood; all others are about its syntax.
_UNDERSTOOD = (b"key ", b"certificate ", b"no valid principals")
_REASONS = {
    b"key has expired": ("signer-expired", "the key that signed it is no longer valid"),
    b"key is not yet valid": ("signer-not-yet-valid", "the key that signed it is not valid yet"),
    b"key is not permitted for use": (
        "signer-namespace",
        f"the key that signed it may not sign for {NAMESPACE}",
    ),
}


class Trust(NamedTuple):
    """Whose signatures count, where one is asked for.

    :param allowed: the text of an allowed-signers file.
    :param signature: that came another way than with the bundle, and counts before that one.
    """

    allowed: str
    signature: bytes | None = None


# -- signing -------------------------------------------------------------------------------------


def sign(message: bytes, key: str) -> bytes:
    """The armored signature of ``message``. Never asks for anything.

    :param key: path of a private key, or of a public one whose other half an agent holds.
    :raises TrainError: when the key can't be used, or needs a passphrase and no agent holds it.
    """
    path = os.path.expanduser(key)
    name = f"The signing key {shown(key)}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TrainError(
            f"{name} can't be read: {error.strerror}.", "Name another file with sync_signing_key."
        ) from error
    kind = os.fstat(descriptor).st_mode
    os.close(descriptor)
    if not stat.S_ISREG(kind):
        raise TrainError(f"{name} is not a regular file.", "Name the key's own file.")
    done = _keygen("sign", "-n", NAMESPACE, "-f", path, message=message)
    if done.status == 0 and done.output.startswith(b"-----BEGIN SSH SIGNATURE-----\n"):
        return done.output
    raise _unusable(name, done)


def _unusable(name: str, done: Ended) -> TrainError:
    """Why a key didn't sign."""
    words = done.complaint
    if b"incorrect passphrase" in words:
        return TrainError(
            f"{name} has a passphrase, and no agent holds the key.",
            "Add it to an agent with ssh-add, or sign with a key that has none.",
        )
    if b"UNPROTECTED PRIVATE KEY" in words:
        return TrainError(f"{name} can be read by others.", "Take that away: chmod 600.")
    if b"No private key found" in words:
        return TrainError(
            f"{name} is a public one, and no agent holds its other half.",
            "Add the private key to the agent with ssh-add, or name its file.",
        )
    if b"Couldn't load public key" in words:
        return TrainError(
            f"{name} is not one that ssh-keygen can use.",
            "Name a private key; one in an old format needs its .pub file beside it.",
        )
    return TrainError(f"{name} can't sign: {_said(done)}.")


def allowed_by(signature: bytes, principal: str) -> str:
    """The text of an allowed-signers file with one line: the key of this signature.

    The key is the first field behind the magic and the version (OpenSSH's PROTOCOL.sshsig); it
    begins with its kind (RFC 4253, section 6.6), and a field is its length and as many bytes
    (RFC 4251, section 5, "string").

    :param signature: an armored one; whether it is a sound one, :func:`check` says.
    :param principal: whose key it is said to be.
    :raises ValueError: for what is no armored signature at all.
    """
    armor = _ARMOR.fullmatch(signature)
    if not armor:
        raise ValueError("not an armored SSH signature")
    content = base64.b64decode(armor[1])
    key = _field(content, len(b"SSHSIG") + 4)
    kind = _field(key, 0).decode("ascii")
    return f"{principal} {kind} {base64.b64encode(key).decode('ascii')}\n"


def _field(content: bytes, start: int) -> bytes:
    length = int.from_bytes(content[start : start + 4], "big")
    field = content[start + 4 : start + 4 + length]
    if not length or len(field) < length:
        raise ValueError("an SSH signature that is cut off")
    return field


# -- checking ------------------------------------------------------------------------------------


def check(message: bytes, signature: bytes | None, allowed: str, label: str) -> str:
    """Who has signed ``message``: the principal, made printable.

    :param allowed: the text of an allowed-signers file. A time in it without a ``Z`` is one of
        this machine's time zone.
    :param label: of the bundle whose manifest the message is.
    :raises RefusedError: for anything else than a signature that counts; and for a line in
        ``allowed`` that ssh-keygen can't read, be it another signer's.
    :raises TrainError: when this machine can't check signatures.
    """
    lines = dict(enumerate(to_bytes(allowed).split(b"\n"), 1))
    signers = {at: line for at, line in lines.items() if line.strip() and not _is_comment(line)}
    if not signers:
        raise refused("The list of allowed signers", "no-allowed-signers", "it names nobody")
    subject = f"The bundle {label}"
    if signature is None:
        raise refused(subject, "unsigned", "it is not signed")
    if len(signature) > MAX_SIGNATURE:
        raise refused(
            subject,
            "signature-too-large",
            f"what should be its signature is larger than {MAX_SIGNATURE:,} bytes",
        )
    try:
        with tempfile.TemporaryDirectory(prefix="remote-train-") as folder:
            work = _Check(message, folder, subject)
            work.put("signature", signature)
            return work.signer(signers)
    except OSError as error:
        raise cannot("The signature can't be written down to be checked", error) from error


def _is_comment(line: bytes) -> bool:
    return line.lstrip(b" \t").startswith(b"#")


class _Check:
    """One signature, in a private folder from which ``ssh-keygen`` takes all that it reads."""

    def __init__(self, message: bytes, folder: str, subject: str) -> None:
        self._message = message
        self._folder = folder
        self._subject = subject
        # In the order in which they were made, each once.
        self._complaints: dict[tuple[int, bytes], None] = {}

    def put(self, name: str, content: bytes) -> None:
        """Write a file into the folder."""
        with open(os.path.join(self._folder, name), "wb") as stream:
            stream.write(content)

    def signer(self, signers: Mapping[int, bytes]) -> str:
        """The first principal that ``verify`` accepts.

        ``find-principals`` stops at the first line that has the key, though a later one may allow
        what that one doesn't; so each of them is asked about alone. Fewer lines never allow more.

        :param signers: the lines of an allowed-signers file, by their numbers.
        """
        fingerprint = self._fingerprint()
        own = {at: line for at, line in signers.items() if _may_be_of(line, fingerprint)}
        others = {at: line for at, line in signers.items() if at not in own}
        if others:
            self._principals(others)  # for its complaints
        accepted = []
        for at, line in own.items():
            for principal in self._principals({at: line}):
                said = self._ask("verify", "-n", NAMESPACE, "-I", principal, "-f", "allowed")
                if said.status == 0:
                    accepted.append(principal)
                    break
        self._refuse_unreadable()
        if accepted:
            return shown(accepted[0])
        raise self._refusal(fingerprint)

    def _ask(self, operation: str, *arguments: str | bytes) -> Ended:
        """What ssh-keygen answers. Its complaints about lines are kept."""
        message = b"" if operation == "find-principals" else self._message
        done = _keygen(
            operation, "-s", "signature", *arguments, message=message, folder=self._folder
        )
        for at, words in _COMPLAINT.findall(done.complaint):
            self._complaints[int(at), words.rstrip()] = None
        return done

    def _fingerprint(self) -> bytes:
        """The SHA-256 of the key that the signature was made with, in base64.

        :raises RefusedError: when it isn't a signature of the message, whoever made it.
        """
        done = self._ask("check-novalidate", "-n", NAMESPACE)
        found = _FINGERPRINT.search(done.output)
        if done.status == 0 and found:
            return found[1]
        if b"namespace does not match" in done.complaint:
            problem = "signature-namespace"
            message = f"its signature was made for another namespace than {NAMESPACE}"
        elif b"incorrect signature" in done.complaint:
            problem = "signature-differs"
            message = "its signature is over other bytes than its manifest"
        else:
            problem = "not-a-signature"
            message = f"what should be its signature is none ({_said(done)})"
        raise refused(self._subject, problem, message)

    def _principals(self, lines: Mapping[int, bytes]) -> list[bytes]:
        """Whom the signature's key stands for by these lines, which keep their numbers."""
        rest = (lines.get(at, b"#") for at in range(1, max(lines) + 1))
        self.put("allowed", b"\n".join(rest) + b"\n")
        found = self._ask("find-principals", "-f", "allowed")
        names = b"" if found.status else found.output
        # What begins with an exclamation mark is an exception from the others, and nobody.
        return [name for name in names.split(b"\n") if name and not name.startswith(b"!")]

    def _refuse_unreadable(self) -> None:
        """Refuse a file with a line that says nothing: somebody meant something by it."""
        problems = Problems()
        for at, words in sorted(self._complaints):
            if not words.startswith(_UNDERSTOOD):
                problems.add("allowed-signers-line", f"not understood: {shown(words)}", at)
        if problems:
            raise RefusedError(
                "The list of allowed signers",
                problems,
                "Correct it; an OpenSSH that is older knows fewer options.",
            )

    def _refusal(self, fingerprint: bytes) -> RefusedError:
        problems = Problems()
        for at, words in self._complaints:
            problem, said = next(
                (reason for begin, reason in _REASONS.items() if words.startswith(begin)),
                ("signer-refused", "the key that signed it doesn't count"),
            )
            problems.add(problem, f"{said} (allowed signers, line {at}: {shown(words)})")
        if not problems:
            problems.add(
                "signer-not-allowed",
                "the key that signed it is not among the allowed signers"
                f" (SHA256:{shown(fingerprint)})",
            )
        return RefusedError(self._subject, problems, "Nothing was applied.")


def _may_be_of(line: bytes, fingerprint: bytes) -> bool:
    """Whether a line holds the key of this fingerprint, or one that may have certified it."""
    if b"cert-authority" in line.lower():
        return True
    for word in line.split():
        try:
            digest = hashlib.sha256(base64.b64decode(word)).digest()
        except binascii.Error:
            continue
        if base64.b64encode(digest).rstrip(b"=") == fingerprint:
            return True
    return False


# -- the program ---------------------------------------------------------------------------------


def _keygen(operation: str, *arguments: str | bytes, message: bytes, folder: str = "") -> Ended:
    """Run ``ssh-keygen -Y``. It has no terminal and no window to ask in.

    :raises TrainError: when there is none, it is too old, or it doesn't end.
    """
    environment = dict.fromkeys(("DISPLAY", "WAYLAND_DISPLAY", "SSH_ASKPASS"))
    done = ask(
        [PROGRAM, "-Y", operation, *arguments],
        TIMEOUT,
        {**environment, "LC_ALL": "C", "SSH_ASKPASS_REQUIRE": "never"},
        message,
        folder,
    )
    if done.state == UNUSABLE:
        if done.reason == os.strerror(errno.ENOENT):
            raise TrainError(f"There is no {PROGRAM} on this machine's PATH.", _UPDATE)
        raise TrainError(f"{PROGRAM} can't be run: {done.reason}.", _UPDATE)
    if done.state == HANGS:
        raise TrainError(f"{PROGRAM} didn't come to an end within {TIMEOUT} seconds.")
    if done.status and _TOO_OLD.search(done.complaint):
        raise TrainError(f"The {PROGRAM} of this machine knows no -Y {operation}.", _UPDATE)
    return done


def _said(done: Ended) -> str:
    """The first line of what it complained of, made printable, or its exit status."""
    words = done.complaint.strip().partition(b"\n")[0].rstrip()
    return shown(words) if words else f"{PROGRAM} ended with {done.status}"
