"""A bundle built by itself, and bundles, whoever made them, brought to the host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_train.manifest import LEGACY, MODERN
from tests.integration.sites import PROJECT, Outcome, Playbooks, Site, tree, write_yaml

pytestmark = pytest.mark.ssh

BUILD = "playbooks/bundle.yml"
SYNC = "playbooks/sync.yml"
DOWN = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_connection": "ssh"}
ENDS = (".tar.gz", ".tar.gz.sha256", f".{MODERN}")

OTHERS = {
    "as simple as can be": (
        f"touch {MODERN}; find . -type f | xargs sha256sum > {MODERN}; tar -czf ../x.tar.gz ."
    ),
    "tags and marks": (
        "find . -type f -print0 | sort -z | xargs -0 sha256sum --tag > ../list;"
        f" mv ../list {MODERN};"
        rf" sed -i '1s/^/\xef\xbb\xbf/; s/$/\r/' {MODERN}; tar -czf ../x.tar.gz *;"
        " cd ..; shasum -a 256 $PWD/x.tar.gz > x.tar.gz.sha256"
    ),
    "legacy, SHA-1": (
        f"find * -type f -exec sha1sum {{}} + > ../list; mv ../list {LEGACY};"
        " tar -czf ../x.tar.gz *; cd ..; sha256sum x.tar.gz > x.tar.gz.sha256"
    ),
    "legacy, SHA-256": (
        f"find . -type f -exec shasum -a 256 {{}} + > ../list; mv ../list {LEGACY};"
        " tar --format=pax -czf ../x.tar.gz ."
    ),
}
SAID = {
    "as simple as can be": ["Nothing vouches for x.tar.gz", "lists itself"],
    "tags and marks": ["byte order mark", "CRLF"],
    "legacy, SHA-1": ["SHA-1"],
    "legacy, SHA-256": ["Nothing vouches for x.tar.gz"],
}
LOOKED_AT_FIRST = {"tags and marks"}
BROUGHT_TWICE = {"as simple as can be", "legacy, SHA-1"}


def project(folder: Path) -> dict[str, bytes]:
    """The project's files below a folder, without what this program and manifests add to them."""
    return {
        name: content
        for name, content in tree(folder).items()
        if isinstance(content, bytes)
        and not name.startswith("outputs/")
        and name not in (MODERN, LEGACY)
    }


def ended(outcome: Outcome) -> Outcome:
    """A run that has to end well."""
    assert outcome.status == 0, outcome.output
    return outcome


@pytest.fixture
def down(tmp_path: Path, playbooks: Playbooks) -> Callable[..., Outcome]:
    """Builds over an inventory whose two hosts can't be reached."""
    hosts = {name: DOWN | {"project_src": str(tmp_path / "tutor")} for name in ("one", "two")}
    write_yaml(tmp_path / "hosts.yml", {"gpu_hosts": {"hosts": hosts}})
    subprocess.run(["cp", "-r", PROJECT / "examples" / "tutor", tmp_path / "tutor"], check=True)

    def run(*arguments: str) -> Outcome:
        inventory = ["-i", str(tmp_path / "hosts.yml")]
        return playbooks.run(*inventory, *arguments, playbook=BUILD, cwd=tmp_path)

    return run


def test_a_bundle_is_built_where_no_host_can_be_reached(
    down: Callable[..., Outcome], tmp_path: Path
) -> None:
    """Looked at, built, built again: into the current folder, by the project's own name."""
    before = tree(tmp_path)
    looked = ended(down("--check"))
    assert tree(tmp_path) == before
    assert looked.recap["one"]["changed"] == 1
    assert any(line.startswith("the bundle would be built: ") for line in looked.lines)

    built = ended(down())
    files = len(project(tmp_path / "tutor"))
    (line,) = [line for line in built.lines if line.startswith("the bundle is built: ")]
    assert f" {files} files, " in line
    for end in ENDS:
        assert str(tmp_path / f"tutor{end}") in built.lines
    assert {host: counts["unreachable"] for host, counts in built.recap.items()} == {
        "one": 0,
        "two": 0,
        "localhost": 0,
    }
    assert [built.recap[host]["changed"] for host in ("one", "two")] == [1, 0]
    check = ["sha256sum", "--strict", "--quiet", "-c"]
    subprocess.run([*check, "tutor.tar.gz.sha256"], cwd=tmp_path, check=True)
    subprocess.run([*check, f"../tutor.{MODERN}"], cwd=tmp_path / "tutor", check=True)

    after = tree(tmp_path)
    again = ended(down())
    assert "the bundle is there already" in again.output
    assert again.recap["one"]["changed"] == 0
    assert tree(tmp_path) == after

    wrong = down("-e", "bundle_nmae=x")
    assert wrong.status == 2
    assert wrong.failures[0].endswith("There is no setting bundle_nmae.")
    assert "Did you mean bundle_name?" in wrong.output


def test_without_an_inventory_signed_and_named(playbooks: Playbooks, tmp_path: Path) -> None:
    """The default inventory is enough, and what is asked for comes from the command line."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    arguments = (
        *("-e", f"project_src={PROJECT / 'examples' / 'tutor'}"),
        *("-e", f"bundle_dest={tmp_path / 'a' / 'b'}", "-e", "bundle_name=v1"),
        *("-e", f"sync_signing_key={key}"),
    )
    outcome = ended(playbooks.run(*arguments, playbook=BUILD, cwd=tmp_path))
    assert outcome.recap["localhost"]["changed"] == 1
    names = [f"v1{end}" for end in (*ENDS, f".{MODERN}.sig")]
    assert sorted(os.listdir(tmp_path / "a" / "b")) == sorted(names)
    with (tmp_path / "a" / "b" / f"v1.{MODERN}").open("rb") as listing:
        # fmt: off
        command = ["ssh-keygen", "-Y", "check-novalidate", "-n", "remote-train",
                   "-s", tmp_path / "a" / "b" / f"v1.{MODERN}.sig"]
        # fmt: on
        subprocess.run(command, stdin=listing, check=True, capture_output=True)
    missing = playbooks.run(playbook=BUILD, cwd=tmp_path)
    assert missing.status == 2
    assert "project_src is missing" in missing.failures[0]


def test_a_bundle_of_ones_own_comes_to_the_host(new_site: Callable[..., Site]) -> None:
    """It is what counts then, not the project here; a second time, nothing is sent."""
    site = new_site()
    ended(site.run(playbook=BUILD))
    wanted = project(site.src)
    (site.src / "README.md").write_bytes(b"changed after it was built\n")
    path = site.folder / "src.tar.gz"
    outcome = ended(site.run("-e", f"bundle={path}", playbook=SYNC))
    assert outcome.recap["gpu"]["changed"] == 1
    assert project(site.root) == wanted
    assert (site.sync / MODERN).read_bytes() == (site.folder / f"src.{MODERN}").read_bytes()
    again = ended(site.run("-e", f"bundle={path}", playbook=SYNC))
    assert again.recap["gpu"]["changed"] == 0
    assert project(site.root) == wanted


@pytest.mark.parametrize("script", OTHERS)
def test_a_bundle_of_others_comes_to_the_host(new_site: Callable[..., Site], script: str) -> None:
    """Made by a line of shell; without a project on this machine at all."""
    site = new_site(project_src="")
    wanted = project(site.src)
    subprocess.run(["sh", "-ec", OTHERS[script]], cwd=site.src, check=True)
    path = site.folder / "x.tar.gz"
    outcomes = []
    if script in LOOKED_AT_FIRST:
        outcomes.append(ended(site.run("-e", f"bundle={path}", "--check", playbook=SYNC)))
        assert project(site.root) == {}
    outcomes.append(ended(site.run("-e", f"bundle={path}", playbook=SYNC)))
    assert outcomes[-1].recap["gpu"]["changed"] == 1
    assert project(site.root) == wanted
    for outcome in outcomes:
        said = " ".join(outcome.output.split())
        assert [words for words in SAID[script] if words not in said] == []
    if script in BROUGHT_TWICE:
        again = ended(site.run("-e", f"bundle={path}", playbook=SYNC))
        assert again.recap["gpu"]["changed"] == 0


def damage_bytes(site: Site) -> None:
    """One byte in the middle of the archive."""
    path = site.folder / "src.tar.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_manifest(site: Site) -> None:
    """A manifest beside it that is another than the one in it."""
    path = site.folder / f"src.{MODERN}"
    path.write_bytes(path.read_bytes().replace(b"README.md", b"README.me"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_bytes, "its SHA-256 is"),
        (damage_manifest, "another manifest than the one in it"),
        (lambda site: (site.folder / "src.tar.gz").unlink(), "can't be read"),
    ],
)
def test_a_bundle_that_is_damaged_changes_nothing(
    new_site: Callable[..., Site], damage: Callable[[Site], object], words: str
) -> None:
    """One sentence names it."""
    site = new_site()
    ended(site.run(playbook=BUILD))
    damage(site)
    before = tree(site.host)
    outcome = site.run("-e", f"bundle={site.folder / 'src.tar.gz'}", playbook=SYNC)
    assert outcome.status == 2
    assert "src.tar.gz" in outcome.failures[0]
    assert words in outcome.failures[0]
    assert tree(site.host) == before


def test_links_are_refused_or_followed(new_site: Callable[..., Site]) -> None:
    """As the setting says, in a bundle and in a sync alike."""
    site = new_site()
    shared = site.folder / "shared"
    (shared / "deep").mkdir(parents=True)
    (shared / "deep" / "more.txt").write_bytes(b"from elsewhere\n")
    (site.src / "scripts" / "shared").symlink_to(shared)
    for playbook in (BUILD, SYNC):
        refused = site.run(playbook=playbook)
        assert refused.status == 2
        assert "scripts/shared" in refused.failures[0]
        assert "sync_follow_links" in refused.output
    follow = ("-e", "sync_follow_links=true")
    listing = site.folder / f"src.{MODERN}"
    ended(site.run(*follow, playbook=BUILD))
    assert b"  scripts/shared/deep/more.txt\n" in listing.read_bytes()
    ended(site.run(*follow, playbook=SYNC))
    there = site.root / "scripts" / "shared" / "deep" / "more.txt"
    assert there.read_bytes() == b"from elsewhere\n"
    assert not (site.root / "scripts" / "shared").is_symlink()
