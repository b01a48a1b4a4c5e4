"""A run at home that is whole: all that its lists name is there, with its digest."""

from __future__ import annotations

import os
from typing import NamedTuple

from remote_train import kept, runs
from remote_train.errors import TrainError
from remote_train.file_names import shown
from remote_train.hashing import file_digest
from remote_train.project_files import ProjectFile

from .home import home_path


class WholeRun(NamedTuple):
    """A run and where its files lie.

    :param name: of the run.
    :param files: each by its path under the project's root on the host, with where it lies here.
    :param digests: SHA-256 of each, by the same path.
    """

    name: str
    files: list[ProjectFile]
    digests: dict[str, str]


def choose(home: str, run: str = "") -> WholeRun:
    """The run of this name, or the newest that is whole.

    :raises TrainError: where it isn't whole, or none is.
    """
    sync = os.path.join(home, "training_sync")
    if run:
        return _whole(home, runs.named("restore_run", run))
    first: TrainError | None = None
    for name in runs.found(sync):
        try:
            return _whole(home, name)
        except TrainError as error:
            first = first or error
    if first:
        raise first
    raise TrainError(
        f"There is no run in {home}.",
        "Name the folder that results came home to with collect_dest.",
        "ops",
    )


def _whole(home: str, run: str) -> WholeRun:
    """:raises TrainError: for the first file that is missing or has another digest."""
    home = os.path.realpath(home)
    folder = os.path.join(home, "training_sync", run)
    own = runs.listed(os.path.join(folder, "SHA256SUMS"))
    outputs = runs.listed(os.path.join(folder, "outputs.sha256"))
    if not own or outputs is None:
        raise TrainError(
            f"{run} in {home} was not collected to its end.",
            "Name another one with restore_run.",
            "data",
        )
    found = WholeRun(run, [], {})
    for name, digest in own.items():
        _take(found, f"{runs.SYNC}/{run}/{name}", digest, [os.path.join(folder, name)])
    sums = os.path.join(folder, "SHA256SUMS")
    _take(found, f"{runs.SYNC}/{run}/SHA256SUMS", file_digest(sums, "sha256"), [sums])
    for name, digest in outputs.items():
        places = [os.path.join(folder, kept.FOLDER, name), os.path.join(home, home_path(name))]
        _take(found, name, digest, places)
    return found


def _take(found: WholeRun, name: str, digest: str, places: list[str]) -> None:
    """Add one file from the first of the places that it lies in, as it should be."""
    home_path(name)  # a list that leads out of the project is refused
    for place in places:
        # A link on the way could lead to another file by the time it is sent.
        if os.path.realpath(place) != place or not os.path.isfile(place):
            continue
        if file_digest(place, "sha256") == digest:
            found.files.append(ProjectFile(name, os.path.getsize(place), False, place))
            found.digests[name] = digest
            return
    raise TrainError(
        f"{shown(name)} of {found.name} is not at home as it was collected.",
        "Name another run with restore_run, or collect this one again while its host is there.",
        "integrity",
    )
