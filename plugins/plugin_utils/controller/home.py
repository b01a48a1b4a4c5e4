"""Where the host's files lie at home."""

from __future__ import annotations

from remote_train.errors import TrainError


def is_inside(path: str) -> bool:
    """Whether a path leads to a place under the project root."""
    return bool(path) and not any(part in ("", ".", "..") for part in path.split("/"))


def home_path(path: str) -> str:
    """Where a file of the host lies at home: the same place, without the leading outputs/.

    :raises TrainError: for a path that leads out of the project root.
    """
    parts = path.split("/")
    if not is_inside(path):
        raise TrainError(
            f"The host offers {path!r}, which is no path under the project root.",
            "Don't trust this host.",
            "integrity",
        )
    return "/".join(parts[1:]) if parts[0] == "outputs" else path
