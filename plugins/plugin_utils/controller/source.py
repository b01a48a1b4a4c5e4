"""What sync brings to the host, and where it is read from: a project's folder, or a bundle."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from remote_train import bundle, git_url, signature
from remote_train.errors import TrainError
from remote_train.file_names import shown, to_bytes
from remote_train.offer import Offer
from remote_train.project_files import ProjectFile

from . import own_git, project
from .progress import Line, Meter, waiting
from .scratch import scratch


class Source(NamedTuple):
    """The files that the host is to have.

    :param folder: where they are read from, on this machine.
    :param label: what they are called, in messages and in the list of versions.
    :param bundle: the archive that they lie in, where one was given; the folder is temporary then.
    :param sha256: of that archive.
    :param warnings: what a person should know.
    """

    folder: str
    label: str
    files: list[ProjectFile]
    offer: Offer
    bundle: str = ""
    sha256: str = ""
    warnings: tuple[str, ...] = ()


def allowed_signers(sync: Mapping[str, Any]) -> str | None:
    """The text of the allowed-signers file; None where no signature is asked for.

    :raises TrainError: when it can't be read, when nothing would sign what is sent under it, and
        when something would and nobody were to check it.
    """
    path, key = sync["allowed_signers"], sync["signing_key"]
    if not path:
        if key and not sync["bundle"]:
            raise TrainError(
                "sync_signing_key signs what is sent, and nothing says whose signature counts.",
                "Name the file that does with sync_allowed_signers; docs/sync.md shows one.",
            )
        return None
    if not key and not sync["bundle"] and sync["mode"] != "git":
        raise unsigned()
    try:
        with open(os.path.expanduser(path), encoding="utf-8", errors="surrogateescape") as stream:
            text: str = stream.read()
            return text
    except OSError as error:
        raise TrainError(
            f"The allowed signers {path} can't be read: {error.strerror}.",
            "Name a file on this machine with sync_allowed_signers.",
        ) from error


def unsigned() -> TrainError:
    """Where something has to be signed, and nothing is there to sign it with."""
    return TrainError(
        "sync_allowed_signers asks for a signature, and there is no key to sign with.",
        "Name it with sync_signing_key, or bring a bundle that is signed.",
    )


def folder_of(sync: Mapping[str, Any]) -> str:
    """The training project's folder here, absolute; empty where none is given.

    :raises TrainError: where there is no such folder.
    """
    if not sync["src"]:
        return ""
    folder: str = os.path.abspath(os.path.expanduser(sync["src"]))
    if not os.path.isdir(folder):
        raise TrainError(
            f"project_src is {folder}, and there is no such folder.",
            "Give the folder that holds the training project on this machine.",
            "data",
        )
    return folder


def pulled_from(sync: Mapping[str, Any], given: str = "") -> dict[str, Any]:
    """What the host pulls: by default what the project here has been cloned from, and its branch.

    :param given: the setting ``sync_git_url`` itself. The request has it without its login, and
        what comes of this must be in no result either.
    :raises TrainError: when nothing says where to pull from.
    """
    wanted = {**sync["git"], "allowed_signers": allowed_signers(sync)}
    wanted["url"] = with_login(wanted["url"], given)
    folder = folder_of(sync)
    if not wanted["url"]:
        # A login that stands in it is this user's, and not the host's.
        own = own_git.ask(folder, "config", "--get", "remote.origin.url") if folder else ""
        wanted["url"] = git_url.without_login(own)
    if not wanted["url"]:
        raise TrainError(
            "Nothing says where the host pulls the training project from.",
            "Give sync_git_url, or a project_src that is a clone with an origin.",
        )
    if not wanted["ref"] and folder:
        wanted["ref"] = own_git.ask(folder, "symbolic-ref", "--quiet", "--short", "HEAD")
    return wanted


def with_login(url: str, given: str) -> str:
    """The URL that a request or a plan speaks of, with the login that stands in the setting.

    :param given: the setting ``sync_git_url`` itself.
    """
    return given if given and git_url.without_login(given) == url else url


def not_pulled(sync: Mapping[str, Any], commit: str) -> list[str]:
    """What of the project here git doesn't bring to the host, a sentence each.

    :param commit: the one that the host has, or will have.
    """
    folder = folder_of(sync)
    if not folder:
        return []
    found = []
    changed = own_git.ask(folder, "status", "--porcelain", "--untracked-files=no")
    if changed:
        count = len(changed.splitlines())
        found.append(
            f"{count} tracked file{'s were' if count > 1 else ' was'} changed in {folder} and"
            " not committed: the host doesn't get that by git."
        )
    head = own_git.ask(folder, "rev-parse", "HEAD")
    if head and head != commit:
        found.append(f"{folder} is at {head[:12]}, and the host pulls {commit[:12]}.")
    return found


@contextlib.contextmanager
def opened(sync: Mapping[str, Any], data_base: str, line: Line) -> Iterator[Source | None]:
    """What sync brings by itself, to be read as long as it is open; None where that is nothing.

    :param sync: the request's part about it.
    :param data_base: the project's folder of data.
    :raises TrainError: when project or bundle aren't as they should be.
    """
    if sync["bundle"]:
        with _unpacked(sync, line) as source:
            yield source
        return
    folder = folder_of(sync)
    if not folder:
        yield None
        return
    if sync["mode"] == "git" and not own_git.ask(folder, "rev-parse", "--git-dir"):
        raise TrainError(
            f"project_src is {folder}, which is no clone of a git repository (or no git is here).",
            "Give a clone of what the host pulls, or no project_src and sync_git_url alone.",
            "data",
        )
    choice = project.Choice(sync["whitelist"], sync["exclude"], sync["follow_links"], sync["cache"])
    apart = data_base if sync["mode"] == "git" else None
    files = choice.files(folder, apart)
    if not files and apart is None:
        raise TrainError(
            f"No file of the training project {folder} is left to sync.",
            "Look at sync_exclude, and at the whitelist if there is one.",
            "data",
        )
    if not files:  # git brings all there is; what came beside it before is left alone
        yield None
        return
    yield _source(folder, os.path.basename(folder), files, sync["cache"], line)


def _source(folder: str, label: str, files: list[ProjectFile], cache: bool, line: Line) -> Source:
    meter = Meter(line, f"reading {label}:", sum(file.size for file in files))
    return Source(folder, label, files, project.offer_of(folder, files, cache, meter))


@contextlib.contextmanager
def _unpacked(sync: Mapping[str, Any], line: Line) -> Iterator[Source]:
    """A bundle's files, unpacked and verified here as the host will do it again."""
    path = os.path.abspath(os.path.expanduser(sync["bundle"]))
    allowed = allowed_signers(sync)
    trust = None if allowed is None else signature.Trust(allowed)
    with scratch() as place:
        folder = os.path.join(place, "files")
        state = os.path.join(place, "state")
        os.mkdir(state, 0o700)
        with waiting(line, f"verifying {os.path.basename(path)}"):
            done = bundle.apply(path, folder, state, keep=0, trust=trust)
        source = _source(folder, os.path.basename(path), files_in(folder, done.added), False, line)
        warnings = list(done.warnings)
        if done.legacy:
            warnings.append(
                f"{source.label} has SHA-1 digests, which no longer withstand an attacker."
            )
        yield source._replace(bundle=path, sha256=done.sha256, warnings=tuple(warnings))


def files_in(folder: str, names: Iterable[str]) -> list[ProjectFile]:
    """Files that lie in a folder under their own names, as they are now.

    :raises TrainError: when one has gone.
    """
    found = []
    for name in names:
        try:
            status = os.lstat(os.path.join(os.fsencode(folder), to_bytes(name)))
        except OSError as error:
            raise TrainError(
                f"{shown(name)} has gone from the training project.",
                "Run it again when nothing writes there.",
                "data",
            ) from error
        found.append(ProjectFile(name, status.st_size, bool(status.st_mode & stat.S_IXUSR)))
    return found
