"""What an apply or a rollback changed, or would change, for whoever asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .file_names import shown, to_bytes
from .target_change import Change


@dataclass
class TreeResult:
    """What changed. Lists are sorted names.

    :param kept: listed before and not now, but changed on the target since, so left there.
    :param unchanged: number of files.
    :param bytes: of the files written.
    :param version: the number of the version that is there now; None where that isn't known, as
        in check mode.
    :param before: lines ``digest  name`` of the files replaced and removed, as they were.
    :param after: the same of the files added and replaced, as they are.
    """

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    unchanged: int = 0
    bytes: int = 0
    seconds: float = 0.0
    version: int | None = None
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def written(self) -> list[str]:
        """The files that are new or different."""
        return sorted(self.added + self.replaced, key=to_bytes)

    @property
    def changed(self) -> bool:
        """Whether the target is, or would be, another than before."""
        return bool(self.added or self.replaced or self.removed)

    def fill(self, change: Change, sizes: Mapping[str, int], modes: Mapping[str, int]) -> None:
        """Say what ``change`` does.

        :param sizes: bytes of each file that is written.
        :param modes: the new mode of each file that gets another one and keeps its bytes.
        """
        for name, found in change.write.items():
            # A folder that gives way, or nothing: only a file's own bytes are replaced.
            (self.replaced if found.kind == "different" else self.added).append(name)
        self.bytes = sum(sizes[name] for name in change.write)
        self.replaced += modes
        self.unchanged = len(change.same) - len(modes)
        self.removed = sorted(change.remove, key=to_bytes)
        self.kept = sorted(change.kept, key=to_bytes)
        for names in (self.added, self.replaced):
            names.sort(key=to_bytes)
        old = {**change.write, **change.same, **change.remove}
        for name in sorted(self.replaced + self.removed, key=to_bytes):
            self.before.append(line(old[name].digest, old[name].executable, name))


def line(digest: str, executable: bool, name: str) -> str:
    """A file's line in a difference."""
    return f"{digest} {'x' if executable else '-'} {shown(name)}"
