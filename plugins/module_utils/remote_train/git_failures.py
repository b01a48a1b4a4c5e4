"""What git says when it fails, as a sentence and what to do about it.

Git has no codes for its errors, only words, so it runs in the locale C. What isn't known here
is shown as git said it.
"""

from __future__ import annotations

import re

from .errors import TrainError
from .file_names import shown
from .git_url import without_secrets

_ROOM = "Free some space there and run it again: the pull goes on where it was."
_OLD = "Install a newer git there: 2.17 or later."

# The first that matches says it. {0}, {1} are what is in its parentheses, {url} and {root} what
# was asked for.
_KNOWN: tuple[tuple[str, str, str, str], ...] = (
    (
        r"No space left on device|Disk quota exceeded",
        "There is no room left on the host's disk for the pull into {root}.",
        _ROOM,
        "infra",
    ),
    (
        r"detected dubious ownership in repository at '([^']*)'|unsafe repository \('([^']*)'",
        "Git on the host refuses {0}{1}, because it belongs to another user.",
        "Pull as its owner, give it to this user with chown, or, if you trust it, run there: "
        "git config --global --add safe.directory {0}{1}",
        "ops",
    ),
    (
        r"Unable to create '([^']*\.lock)': File exists",
        "A git that is at work on the host, or has died there, holds {0}.",
        "See whether a git still runs there; if none does, remove that file and run it again.",
        "ops",
    ),
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for \S+ has changed",
        "The git server of {url} shows another key than the host has pinned for it.",
        "If the server really has a new key, pin that in ~/.ssh/known_hosts on the host; if not, "
        "somebody may be in between.",
        "infra",
    ),
    (
        r"Host key verification failed|No \S+ host key is known",
        "The host doesn't know the key of the git server of {url}.",
        "Pin it in ~/.ssh/known_hosts on the host, after comparing it with what the server's "
        "provider shows.",
        "infra",
    ),
    (
        r"Permission denied \([^)]*(publickey|password|keyboard|hostbased|gssapi)|"
        r"Too many authentication failures",
        "The git server refuses the host's login for {url}.",
        "Give the host a key that may read there (a deploy key, and ~/.ssh/config to name it), "
        "or forward your agent to it.",
        "infra",
    ),
    (
        r"terminal prompts disabled|could not read (?:Username|Password)|Authentication failed|"
        r"returned error: 40[13]|Access denied",
        "The host has no access to {url}: the server asks for a login.",
        "Give the host a credential helper or a deploy key, or use a URL that is open to read.",
        "infra",
    ),
    (
        r"transport '([^']*)' not allowed",
        "Git on the host may not fetch over '{0}', which a submodule or the URL asks for.",
        "Give the repository an https or ssh URL (in .gitmodules for a submodule); a local path "
        "is not followed from there, since a repository could name any.",
        "ops",
    ),
    (
        r"Could not resolve host(?:name)?:? ?(\S*?):?(?:\s|$)|unable to look up (\S+)",
        "The host can't find {0}{1}, the server of {url}.",
        "Check the URL, and the host's network and name service.",
        "infra",
    ),
    (
        r"SSL certificate problem|server certificate verification failed|SSL: |TLS connection",
        "The certificate of {url} doesn't hold before the host.",
        "Check the host's clock and its certificates (ca-certificates).",
        "infra",
    ),
    (
        r"[Cc]onnection refused|timed out|Network is unreachable|No route to host|"
        r"Failed to connect|Couldn't connect|Operation too slow|[Cc]onnection reset|"
        r"[Cc]onnection closed|Timeout, server|returned error: 5\d\d",
        "The server of {url} doesn't answer the host.",
        "Check the host's network, and whether the server is up; then run it again.",
        "infra",
    ),
    (
        r"cannot run ssh: |ssh: (?:command )?not found|error: cannot run ssh",
        "Git needs ssh on the host for {url}, and it isn't there.",
        "Install openssh-client there, or use an https URL.",
        "infra",
    ),
    (
        r"remote-(https?)' is not a git command|Unable to find remote helper for '([^']*)'",
        "Git on the host can't speak {0}{1}.",
        "Install all of git there, or use another URL.",
        "infra",
    ),
    (
        r"Fetched in submodule path '([^']*)', but it did not contain",
        "The submodule {0} lacks the commit that the project names.",
        "Push the submodule first.",
        "ops",
    ),
    (
        r"couldn't find remote ref (\S+)|not our ref (\w+)|unadvertised object (\w+)",
        "There is no {0}{1}{2} in {url}.",
        "Check sync_git_ref, and whether it was pushed.",
        "ops",
    ),
    (
        r"cannot lock ref '([^']*)'",
        "Git on the host can't renew its {0}.",
        "Run there: git -C {root} remote prune origin",
        "ops",
    ),
    (
        r"No url found for submodule path '([^']*)'",
        "The project holds a submodule in {0} that its .gitmodules doesn't name.",
        "Add it to .gitmodules, or take it out, and push that.",
        "ops",
    ),
    (
        r"destination path '([^']*)' already exists and is not an empty",
        "The folder {0} on the host is in the way of the submodule that belongs there.",
        "Move it away on the host.",
        "ops",
    ),
    (
        r"external filter '([^']*)' failed|smudge filter (\S+) failed",
        "The filter {0}{1} that git calls on the host failed.",
        "If it is git-lfs, check that it is installed there and may read from its server.",
        "infra",
    ),
    (
        r"mismatched algorithms|unknown repository extension|[Uu]nknown (?:option|switch)|"
        r"unknown hash algorithm|is not a git command",
        "Git on the host is too old for this repository or for what is asked of it.",
        _OLD,
        "infra",
    ),
    (
        r"[Rr]epository (?:'[^']*' )?not found|does not appear to be a git repository|"
        r"returned error: 404|does not exist|access rights",
        "There is no repository at {url} that the host may read.",
        "Check the URL, and the host's right to read it.",
        "infra",
    ),
    (
        r"early EOF|unexpected disconnect|hung up|RPC failed|invalid index-pack output",
        "The connection to {url} broke in the middle.",
        "Run it again.",
        "infra",
    ),
    (
        r"is corrupt|object file .* is empty|bad object|unable to read tree|missing blob|"
        r"index file (?:corrupt|smaller)|bad (?:index|signature)|packfile .* cannot be accessed|"
        r"not a git repository|invalid gitfile|bad config",
        "The repository in {root} on the host is damaged.",
        "Look with `git fsck` there; moving {root}/.git away and cloning anew heals it.",
        "integrity",
    ),
    (
        r"shallow",
        "The repository in {root} has only a part of its history, and git can't go on from it.",
        "Run there: git fetch --unshallow",
        "ops",
    ),
    (
        r"Read-only file system|Permission denied|insufficient permission|"
        r"Operation not permitted",
        "Git can't write into {root} on the host.",
        "Let this user write there, or choose another project_root.",
        "infra",
    ),
)


class InTheWayError(TrainError):
    """Git refused to lose something, and changed nothing."""


_IN_THE_WAY = re.compile(r"would be (?:overwritten|removed)|would lose untracked")


def failure(said: str, what: str, url: str, root: str) -> TrainError:
    """Why git failed.

    :param said: its standard error.
    :param what: the end of a sentence that begins with "Git could not", for what isn't known.
    :param url: what was pulled from, for a person to see.
    """
    said = without_secrets(said)
    if _IN_THE_WAY.search(said):
        return in_the_way([line[1:] for line in said.splitlines() if line.startswith("\t")])
    for pattern, sentence, hint, category in _KNOWN:
        found = re.search(pattern, said)
        if found:
            parts = [shown(part or "") for part in found.groups()]
            here = {"url": without_secrets(url), "root": root}
            return TrainError(
                sentence.format(*parts, **here), hint.format(*parts, **here), category
            )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("fatal: ", "error: "))] or lines[-1:]
    word = shown(told[0]).partition(": ")[2] or shown(told[0]) if told else "no word"
    return TrainError(f"Git could not {what} on the host: {word.rstrip('.')}.", "", "infra")


def in_the_way(names: list[str]) -> InTheWayError:
    """Files on the host lie where the pull would put or remove others."""
    first = shown(names[0]) if names else "A file"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    verb = "are" if more else "is"
    return InTheWayError(
        f"{first}{more} on the host {verb} in the way of the pull, and would be lost.",
        "Move it away, or commit and push it, then run this again.",
        "ops",
    )
