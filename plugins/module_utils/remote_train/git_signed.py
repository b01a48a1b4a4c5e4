"""Who signed what git brings: git's own check, by a list of allowed signers and nothing else.

The signature of a commit, or of an annotated tag, is over its number, and that stands for all of
its files and for the commits of its submodules. Git asks ``ssh-keygen -Y verify`` under the
namespace ``git`` (git-config(1), gpg.ssh.allowedSignersFile).
"""

from __future__ import annotations

import os
import re
import tempfile

from .errors import TrainError
from .file_names import shown, to_bytes
from .git_program import Done, Git

NEEDED = (2, 34)
"""The first git that knows signatures of ssh (its release notes)."""

# A signature's own form says who checks it, whatever gpg.format is: GnuPG would ask the host's
# keys, which are nobody's list.
_CONFIG = (
    "gpg.format=ssh",
    "gpg.ssh.program=ssh-keygen",
    "gpg.minTrustLevel=fully",
    *(f"gpg.{name}=false" for name in ("program", "openpgp.program", "x509.program")),
)


def require(git: Git, commit: str, allowed: str, tag: str = "", place: str = "") -> None:
    """Refuse a commit that nobody of a list has signed.

    :param allowed: the text of an allowed-signers file. A date in it is compared to the commit's
        own, not to today's.
    :param tag: the tag that is asked for; signed itself, it vouches for its commit.
    :param place: the ref that holds that tag here.
    :raises TrainError: for anything else than a signature that counts, and where git is too old.
    """
    _require_new(git)
    with tempfile.TemporaryDirectory(prefix="remote-train-") as folder:
        path = os.path.join(folder, "allowed")
        with open(path, "wb") as stream:
            stream.write(to_bytes(allowed))
        config = (*_CONFIG, f"gpg.ssh.allowedSignersFile={path}")
        options = [word for value in config for word in ("-c", value)]
        done = git.ask(*options, "verify-commit", commit)
        if done.status == 0:
            return
        what = f"The commit {commit[:12]}"
        if tag and git.line("cat-file", "-t", place) == "tag":
            by_tag = git.ask(*options, "verify-tag", place)
            if by_tag.status == 0:
                _require_name(git, tag, place)
                return
            if "no signature found" not in by_tag.said:
                done, what = by_tag, f"The tag {shown(tag)}"
    raise _refusal(done, what, git)


def _require_new(git: Git) -> None:
    said = git.read("version").decode("utf-8", "replace")
    found = re.search(r"(\d+)\.(\d+)", said)
    if not found or (int(found[1]), int(found[2])) < NEEDED:
        needed = ".".join(map(str, NEEDED))
        raise TrainError(
            "sync_allowed_signers asks for signed commits, and git on the host can't check them:"
            f" it is {shown(said.strip())}.",
            f"Install git {needed} or newer there.",
            "infra",
        )


def _require_name(git: Git, tag: str, place: str) -> None:
    """The tag that was signed is that one: its name is in what is signed.

    :raises TrainError: where it is another one's, that the server gives under this name.
    """
    header = git.read("cat-file", "tag", place).partition(b"\n\n")[0]
    names = [line[4:] for line in header.split(b"\n") if line.startswith(b"tag ")]
    if names != [to_bytes(tag)]:
        signed = shown(names[0]) if names else "nothing"
        raise _error(f"In {git.root} on the host, the tag {shown(tag)} is signed as {signed}.")


def _refusal(done: Done, what: str, git: Git) -> TrainError:
    lines = [line.strip() for line in done.said.splitlines() if line.strip()]
    if not lines:
        return _error(
            f"{what} that {git.root} on the host would have is not signed with a key of ssh."
        )
    return _error(
        f"{what} that {git.root} on the host would have is signed by none of the allowed signers"
        f" ({shown(lines[0]).rstrip('.')})."
    )


def _error(sentence: str) -> TrainError:
    return TrainError(
        sentence,
        "Pull a commit, or a tag, that one of sync_allowed_signers has signed; a line there that"
        ' names namespaces needs namespaces="git,remote-train".',
        "integrity",
    )
