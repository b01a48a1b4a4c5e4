"""Versions of the project on the host: kept by each sync, gone back to; syncs that were killed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from remote_train import bundle, journal, transaction
from tests.integration.sites import Outcome, Site, tree

pytestmark = pytest.mark.ssh


def playbook(site: Site, name: str, *arguments: str) -> Outcome:
    """Run one of the playbooks on the site; it has to end well."""
    outcome = site.run(*arguments, playbook=f"playbooks/{name}.yml")
    assert outcome.status == 0, outcome.output
    return outcome


def project(site: Site) -> dict[str, bytes]:
    """The project's files on the host, without what this program has there for itself."""
    return {
        name: content
        for name, content in tree(site.root).items()
        if isinstance(content, bytes) and not name.startswith("outputs/")
    }


def interrupt_sync(site: Site, name: str, content: bytes) -> None:
    """Leave on the host what a sync leaves that is killed before its last step."""
    incoming = site.folder / "interrupted"
    incoming.mkdir()
    for path, old in project(site).items():
        target = incoming / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if path == name else old)
    files = [
        bundle.ProjectFile(path, len((incoming / path).read_bytes()), False)
        for path in sorted(project(site))
    ]
    built = bundle.build(str(incoming), files, str(site.folder / "bundle"), "project")

    def kill(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transaction, "_publish", kill)
        with pytest.raises(KeyboardInterrupt):
            bundle.apply(built.paths[0], str(site.root), str(site.sync))
    assert journal.pending(str(site.sync))


def test_back_and_forth(new_site: Callable[..., Site]) -> None:
    """Two syncs, back by default, forth by number; the list, a look, and what is wrong."""
    site = new_site()
    playbook(site, "sync")
    old = project(site)
    readme = site.src / "README.md"
    readme.write_bytes(readme.read_bytes() + b"one more line\n")
    playbook(site, "sync")
    new = project(site)
    assert old["README.md"] != new["README.md"]

    listed = playbook(site, "rollback", "-e", "version=list")
    assert [line.split()[0] for line in listed.lines if " files  " in line] == ["0", "1", "2"]
    assert any(line.startswith("2 ") and line.endswith("<- now") for line in listed.lines)
    assert listed.recap["gpu"]["changed"] == 0

    looked = playbook(site, "rollback", "--check", "--diff")
    assert f"+{hashlib.sha256(old['README.md']).hexdigest()} - README.md" in looked.lines
    assert "the files would be as in version 1 again: 1 replaced" in looked.lines
    assert project(site) == new

    gone = playbook(site, "rollback")
    assert "~ README.md" in gone.lines
    assert "this is version 3; -e version=2 goes forth again" in gone.lines
    assert gone.recap["gpu"]["changed"] == 1
    assert project(site) == old

    (site.root / "README.md").write_bytes(b"edited on the host")
    refused = site.run("-e", "version=2", playbook="playbooks/rollback.yml")
    assert refused.status == 2
    assert "README.md was changed on the host since it was applied" in refused.failures[0]
    assert (site.root / "README.md").read_bytes() == b"edited on the host"


def test_a_sync_that_was_interrupted_is_ended_by_the_next_plan(
    new_site: Callable[..., Site],
) -> None:
    """The plan says so; a look at it changes nothing."""
    site = new_site()
    playbook(site, "sync")
    interrupt_sync(site, "README.md", b"what the interrupted sync brought")
    looked = playbook(site, "plan", "--check")
    assert "was interrupted; a run ends it first" in looked.output
    assert journal.pending(str(site.sync))
    outcome = playbook(site, "sync")
    assert f"A sync that was interrupted was finished: {site.root} is version 2." in outcome.output
    assert not journal.pending(str(site.sync))
    assert project(site)["README.md"] == (site.src / "README.md").read_bytes()
    assert sorted(path.name for path in (site.sync / "versions").iterdir()) == ["0", "1", "2", "3"]
