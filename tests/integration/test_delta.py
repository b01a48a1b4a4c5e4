"""The sync over a real connection: what goes over it, and what is on the host then."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sshd_host
from remote_train.manifest import MODERN
from tests.integration.sites import Outcome, Site, finish, tree, until, write_yaml
from tests.integration.test_survival import cut, own_sshd, shown_by
from tests.unit.signers import ME, line, make_key

__all__ = ["own_sshd"]  # a fixture

pytestmark = pytest.mark.ssh

SYNC = "playbooks/sync.yml"
BIG = "data/training/big.bin"

WRAPPER = r"""#!/bin/sh
# Writes down what goes to the host, and holds up what the tests want to be held up.
here={here}
[ $# -gt 2 ] || exec ssh "$@"  # a question of Ansible's to ssh itself
for last; do :; done
case "$last" in exit|stop|check) exec ssh "$@" ;; esac
printf '%s\0' "$last" >> "$here/calls"
case "$last" in *'cat > '*) ;; *) exec ssh "$@" ;; esac
if [ -e "$here/slow" ]; then sleep 0.8; fi
if [ -e "$here/hold" ] && [ "$(grep -zc 'cat > ' "$here/calls")" -eq 3 ]; then
    (head -c 300000; : > "$here/middle"; sleep 3; cat) | ssh "$@"
    exit
fi
exec ssh "$@"
"""
"""Stands for ssh. The third part of an upload stops after 300,000 bytes, where that is wanted."""


class Wire:
    """What goes over the connection.

    :ivar program: to be used in place of ssh.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.program = folder / "ssh"
        self.program.write_text(WRAPPER.format(here=folder), encoding="utf-8")
        self.program.chmod(0o755)

    def calls(self) -> list[str]:
        """The commands that were run on the host since the last look."""
        path = self.folder / "calls"
        if not path.exists():
            return []
        found = path.read_bytes().decode("utf-8", "replace").split("\0")[:-1]
        path.unlink()
        return found

    def parts(self) -> list[tuple[int, int]]:
        """The parts of uploads that were begun since the last look."""
        found = [re.search(r"/(\d{12})-(\d{12})\b", call) for call in self.calls()]
        return [(int(match[1]), int(match[2])) for match in found if match]

    def hold(self, name: str) -> Path:
        """Hold something up, as the program above says."""
        path = self.folder / name
        path.touch()
        return path


@pytest.fixture
def wire(tmp_path: Path) -> Wire:
    """See the class."""
    return Wire(tmp_path / "wire")


@pytest.fixture(scope="module")
def synced(new_site: Callable[..., Site]) -> tuple[Site, Outcome]:
    """A site whose project is on the host, and what that run showed. To be cloned."""
    site = new_site()
    (site.src / BIG).write_bytes(os.urandom(3_000_000))
    (site.src / "scripts" / "run.sh").write_bytes(b"#!/bin/sh\n")
    (site.src / "scripts" / "run.sh").chmod(0o755)
    return site, ended(site.run(playbook=SYNC))


@pytest.fixture
def clone(synced: tuple[Site, Outcome], tmp_path: Path) -> Callable[..., Site]:
    """``clone(**settings)`` is the same site somewhere else, to be changed."""

    def make(**settings: Any) -> Site:
        return synced[0].clone(tmp_path / "site", **settings)

    return make


def ended(outcome: Outcome) -> Outcome:
    """A run that has to end well."""
    assert outcome.status == 0, outcome.output
    return outcome


def project(folder: Path) -> dict[str, bytes | str]:
    """The project's files below a folder, without what this program adds to them."""
    return {
        name: text for name, text in tree(folder).items() if name.partition("/")[0] != "outputs"
    }


def modes(folder: Path) -> dict[str, bool]:
    """Which of the project's files may be run."""
    return {
        name: bool((folder / name).stat().st_mode & 0o111)
        for name, text in project(folder).items()
        if isinstance(text, bytes)
    }


SENT = re.compile(
    r"([\w.]+): ([\d,]+) bytes sent(?: at [\d.,]+ (?:bytes|[kMG]B)/s)?"
    r"(?:, ([\d,]+) were there already)?, verified"
    r"(?:, signed by (\S+))? and applied \((.*)\)"
)


def sent(outcome: Outcome) -> dict[str, tuple[int, str, str | None]]:
    """What a run says that it sent: all its bytes, what they did, and who has signed it."""
    found = [match for said in outcome.lines if (match := SENT.fullmatch(said))]

    def size(match: re.Match[str]) -> int:
        return sum(int(number.replace(",", "")) for number in match.group(2, 3) if number)

    return {match[1]: (size(match), match[5], match[4]) for match in found}


# What goes over it ------------------------------------------------------------------------------


def test_the_first_sync_brings_everything(synced: tuple[Site, Outcome]) -> None:
    site, outcome = synced
    assert project(site.root) == project(site.src)
    assert modes(site.root) == modes(site.src)
    assert modes(site.root)["scripts/run.sh"]
    said = sent(outcome)
    files = sum(isinstance(text, bytes) for text in project(site.src).values())
    assert said["src"][0] > 3_000_000
    assert said["src"][1] == f"{files} added"
    assert set(said) == {"src", "engine"}
    assert list(site.sync.glob("incoming/*")) == []
    assert (site.host / "neighbour.txt").read_text(encoding="utf-8") == "not ours\n"
    check = ["sha256sum", "--strict", "--quiet", "-c", str(site.sync / MODERN)]
    subprocess.run(check, cwd=site.root, check=True)


def test_nothing_changed_is_one_round_trip(clone: Callable[..., Site], wire: Wire) -> None:
    site = clone(ansible_ssh_executable=str(wire.program))
    outcome = ended(site.run(playbook=SYNC))
    assert len(wire.calls()) == 1
    assert sent(outcome) == {}
    assert outcome.recap["gpu"]["changed"] == 0
    assert (project(site.root), modes(site.root)) == (project(site.src), modes(site.src))


def test_one_file_changed_sends_that_file_alone(clone: Callable[..., Site], wire: Wire) -> None:
    """In a second round trip, and what is said is what goes over the connection."""
    site = clone(ansible_ssh_executable=str(wire.program))
    (site.src / "README.md").write_bytes(b"another\n")
    outcome = ended(site.run(playbook=SYNC))
    assert len(wire.calls()) == 2
    ((size, did, _signer),) = sent(outcome).values()
    assert 100 < size < 1000
    assert did == "1 replaced"
    assert "sync sends: 1 to change" in outcome.lines
    assert project(site.root) == project(site.src)


def test_a_large_file_alone_goes_in_parts(clone: Callable[..., Site], wire: Wire) -> None:
    site = clone(ansible_ssh_executable=str(wire.program))
    (site.src / BIG).write_bytes(os.urandom(2_000_000))
    outcome = ended(site.run(playbook=SYNC))
    ends = [end for _start, end in wire.parts()]
    ((size, did, _signer),) = sent(outcome).values()
    assert 2_000_000 < size < 2_010_000
    assert (ends[-1], did) == (size, "1 replaced")
    assert project(site.root) == project(site.src)
    assert list(site.sync.glob("incoming/*")) == []


def test_a_file_that_is_gone_goes_there_too(clone: Callable[..., Site], wire: Wire) -> None:
    """The user's own files beside it stay."""
    site = clone(ansible_ssh_executable=str(wire.program))
    (site.src / "scripts" / "run.sh").unlink()
    (site.root / "scripts" / "own.txt").write_bytes(b"mine")
    outcome = ended(site.run(playbook=SYNC))
    assert len(wire.calls()) == 2
    assert sent(outcome)["src"][1] == "1 removed"
    wanted = {**project(site.src), "scripts/own.txt": b"mine"}
    assert project(site.root) == wanted


def test_the_executable_bit_alone_and_nothing_else_of_a_mode(
    clone: Callable[..., Site], wire: Wire
) -> None:
    site = clone(ansible_ssh_executable=str(wire.program))
    (site.src / "scripts" / "build_all_sft.py").chmod(0o4755)
    (site.src / "scripts" / "run.sh").chmod(0o2644)
    outcome = ended(site.run(playbook=SYNC))
    assert "sync sends: 2 to make executable or not" in outcome.lines
    assert sent(outcome)["src"][0] < 200
    assert sent(outcome)["src"][1] == "2 replaced"
    names = ("build_all_sft.py", "run.sh")
    found = {name: (site.root / "scripts" / name).stat().st_mode for name in names}
    assert {name: mode & 0o7111 for name, mode in found.items()} == {
        "build_all_sft.py": 0o111,
        "run.sh": 0,
    }
    assert outcome.recap["gpu"]["changed"] == 1
    ended(site.run(playbook="playbooks/rollback.yml"))
    assert modes(site.root)["scripts/run.sh"]
    again = ended(site.run(playbook=SYNC))
    assert sent(again)["src"][1] == "2 replaced"


ODD = [
    b"with blank",
    b"new\nline",
    b"carriage\rreturn",
    b"quote's",
    b'double"quote',
    b"$(touch pwned)",
    b"`id`",
    b"back\\slash",
    b"-rf",
    b"--",
    b"#hash",
    b"*",
    b"{{ 1 + 1 }}",
    b"latin\xe9",
    b"\xff\xfe",
    "结论".encode(),
    "sep\u2028arator".encode(),
    b"\x1b[31mred",
    b"trailing ",
    b" leading",
    b"x" * 255,
]


def odd(site: Site) -> bytes:
    """The folder for files with odd names in a site's project."""
    return os.fsencode(site.src / "data" / "training")


def raw(folder: Path) -> dict[bytes, bytes]:
    """The files of the folder for data, by their names' bytes."""
    where = os.fsencode(folder / "data" / "training")
    found = {}
    for at, _folders, files in os.walk(where):
        for name in files:
            path = os.path.join(at, name)
            with open(path, "rb") as stream:
                found[os.path.relpath(path, where)] = stream.read()
    return found


def test_names_of_any_bytes(clone: Callable[..., Site]) -> None:
    """Added, looked at, changed, made executable and removed."""
    site = clone()
    for name in ODD:
        folder = os.path.join(odd(site), b"in " + name[:200])
        os.mkdir(folder)
        for path in (os.path.join(odd(site), name), os.path.join(folder, name)):
            with open(path, "wb") as stream:
                stream.write(b"of " + name)
    looked = ended(site.run("--check", "--diff", playbook=SYNC))
    assert r"+ data/training/latin\xe9" in looked.lines
    assert r"+ data/training/new\nline" in looked.lines
    assert r"+ data/training/\x1b[31mred" in looked.lines
    assert raw(site.root) != raw(site.src)
    outcome = ended(site.run(playbook=SYNC))
    assert raw(site.root) == raw(site.src)
    assert sent(outcome)["src"][1] == f"{2 * len(ODD)} added"
    assert "\x1b[31m" not in outcome.output + looked.output

    for name in ODD:
        path = os.path.join(odd(site), name)
        os.chmod(path, 0o755)  # noqa: S103 - the bit that every file of a program has
        shutil.rmtree(os.path.join(odd(site), b"in " + name[:200]))
        if name.startswith(b"-"):
            with open(path, "wb") as stream:
                stream.write(b"changed")
    outcome = ended(site.run(playbook=SYNC))
    assert raw(site.root) == raw(site.src)
    assert sent(outcome)["src"][1] == f"{len(ODD)} replaced, {len(ODD)} removed"
    there = os.fsencode(site.root / "data" / "training")
    assert all(os.stat(os.path.join(there, name)).st_mode & 0o100 for name in ODD)
    assert not list(site.folder.rglob("pwned"))
    again = ended(site.run(playbook=SYNC))
    assert again.recap["gpu"]["changed"] == 0


def test_a_first_sync_of_3000_files(new_site: Callable[..., Site], wire: Wire) -> None:
    site = new_site(ansible_ssh_executable=str(wire.program))
    for number in range(3000):
        path = site.src / f"data/training/many/{number % 30:02}/{number:04}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{{{number}}}", encoding="utf-8")
        if number % 100 == 7:
            path.chmod(0o755)
    outcome = ended(site.run(playbook=SYNC))
    assert project(site.root) == project(site.src)
    assert modes(site.root) == modes(site.src)
    files = sum(isinstance(text, bytes) for text in project(site.src).values())
    assert files > 3000
    assert sent(outcome)["src"][1] == f"{files} added"
    wire.calls()
    assert ended(site.run(playbook=SYNC)).recap["gpu"]["changed"] == 0
    assert len(wire.calls()) == 1


# What counts ------------------------------------------------------------------------------------


def test_check_and_diff_say_it_and_change_nothing(clone: Callable[..., Site]) -> None:
    site = clone()
    (site.src / "README.md").write_bytes(b"another\n")
    (site.src / "data" / "training" / "new.txt").write_bytes(b"n")
    (site.src / "scripts" / "run.sh").chmod(0o644)
    (site.src / BIG).unlink()
    before = tree(site.folder)
    outcome = ended(site.run("--check", "--diff", playbook=SYNC))
    assert tree(site.folder) == before
    assert outcome.recap["gpu"]["changed"] == 1
    (said,) = [said for said in outcome.lines if said.startswith("sync sends: ")]
    counts = {"1 to add", "1 to change", "1 to remove", "1 to make executable or not"}
    assert set(said.removeprefix("sync sends: ").split(", ")) == counts
    for said in ("+ data/training/new.txt", "~ README.md", "x scripts/run.sh", f"- {BIG}"):
        assert said in outcome.lines
    assert sent(outcome) == {}


def test_diff_says_it_and_does_it(clone: Callable[..., Site]) -> None:
    site = clone()
    (site.src / "README.md").write_bytes(b"another\n")
    outcome = ended(site.run("--diff", playbook=SYNC))
    assert "~ README.md" in outcome.lines
    assert project(site.root) == project(site.src)


def test_a_file_changed_on_the_host_is_put_right_and_kept(clone: Callable[..., Site]) -> None:
    """The cache of digests is there by then, and doesn't hide it."""
    site = clone()
    ended(site.run(playbook=SYNC))
    assert (site.sync / "digests").exists()
    path = site.root / "README.md"
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    outcome = ended(site.run(playbook=SYNC))
    assert sent(outcome)["src"][1] == "1 replaced"
    assert "Replaced, though it was changed on the host: README.md" in " ".join(
        outcome.output.split()
    )
    assert project(site.root) == project(site.src)


def test_a_cache_that_lies_is_not_believed_where_it_is_off(clone: Callable[..., Site]) -> None:
    """On the host, its bytes are whatever they are; ``sync_cache`` off reads every one."""
    site = clone()
    ended(site.run(playbook=SYNC))
    path = site.root / "README.md"
    known, cache = path.read_bytes(), site.sync / "digests"
    (site.src / "README.md").write_bytes(b"another\n")
    content = cache.read_bytes()[:-32]
    old, new = (hashlib.sha256(text).digest() for text in (known, b"another\n"))
    assert content.count(old) == 1
    content = content.replace(old, new)
    cache.write_bytes(content + hashlib.sha256(content).digest())
    assert ended(site.run(playbook=SYNC)).recap["gpu"]["changed"] == 0
    assert path.read_bytes() == known
    outcome = ended(site.run("-e", "sync_cache=false", playbook=SYNC))
    assert sent(outcome)["src"][1] == "1 replaced"
    assert path.read_bytes() == b"another\n"


def test_as_a_bundle(clone: Callable[..., Site], wire: Wire) -> None:
    """All of it goes, by a setting; the host is the same then, and knows what it has."""
    site = clone(ansible_ssh_executable=str(wire.program), code_sync_mode="bundle")
    (site.src / "README.md").write_bytes(b"another\n")
    (site.src / "scripts" / "run.sh").chmod(0o644)
    outcome = ended(site.run(playbook=SYNC))
    size, did, _signer = sent(outcome)["src"]
    assert size > 3_000_000
    assert did == "2 replaced"
    assert (project(site.root), modes(site.root)) == (project(site.src), modes(site.src))
    wire.calls()
    assert ended(site.run(playbook=SYNC)).recap["gpu"]["changed"] == 0
    assert len(wire.calls()) == 1
    assert ended(site.run("-e", "code_sync_mode=delta", playbook=SYNC)).recap["gpu"]["changed"] == 0


GOES, STAYS = "scripts/run.sh", "scripts/build_all_sft.py"
CHANGES = {
    "a file that goes": lambda src: (src / GOES).write_bytes(b"once more\n"),
    "a file that goes, its bit": lambda src: (src / GOES).chmod(0o644),
    "a file that goes is gone": lambda src: (src / GOES).unlink(),
}
MANY = {
    **CHANGES,
    "a file that stays": lambda src: (src / STAYS).write_bytes(b"another too\n"),
    "a file that stays, its bit": lambda src: (src / STAYS).chmod(0o755),
    "a new file": lambda src: (src / "scripts" / "new.txt").write_bytes(b"n"),
}
"""What a delta doesn't hold is not looked at again; a bundle holds everything."""


def between(site: Site) -> Path:
    """A playbook that stops between the plan and the sync, until the file ``go`` is there."""
    tasks = [
        {"ansible.builtin.import_role": {"name": "settings"}},
        {"ansible.builtin.import_role": {"name": "plan"}},
        {
            "ansible.builtin.command": {"argv": ["sh", str(site.folder / "between.sh")]},
            "delegate_to": "localhost",
            "vars": {"ansible_connection": "local"},
        },
        {"ansible.builtin.import_role": {"name": "code_sync"}},
    ]
    play = {"hosts": "gpu_hosts", "gather_facts": False, "tasks": tasks}
    return write_yaml(site.folder / "between.yml", [play])


@pytest.mark.parametrize(
    ("mode", "change"),
    [*(("delta", name) for name in CHANGES), *(("bundle", name) for name in MANY)],
)
def test_a_project_that_changes_after_the_plan_is_refused(
    clone: Callable[..., Site], mode: str, change: str
) -> None:
    """What was planned is what comes, or nothing does."""
    site = clone(code_sync_mode=mode)
    (site.src / GOES).write_bytes(b"another\n")
    spare = site.folder / "spare"
    shutil.copytree(site.src, spare)
    MANY[change](spare)
    script = f"rm -r '{site.src}' && mv '{spare}' '{site.src}'"
    (site.folder / "between.sh").write_text(script, encoding="utf-8")
    before = project(site.root), modes(site.root)
    outcome = site.run(playbook=between(site))
    assert outcome.status == 2, outcome.output
    assert re.search(
        "changed after the plan was made|changed while the training project was being packed"
        "|has gone from the training project|is not executable in it as it was offered",
        outcome.failures[0],
    )
    assert (project(site.root), modes(site.root)) == before
    ended(site.run(playbook=SYNC))
    assert (project(site.root), modes(site.root)) == (project(site.src), modes(site.src))


def test_a_bundle_that_is_another_one_after_the_plan_is_refused(
    clone: Callable[..., Site],
) -> None:
    """What was looked at is what is applied, though the new one is as sound."""
    site = clone()
    archives = [site.folder / "first.tar.gz", site.folder / "second.tar.gz"]
    for archive in archives:
        content = archive.name.encode()
        folder = site.folder / archive.name.partition(".")[0]
        shutil.copytree(site.src, folder)
        (folder / "README.md").write_bytes(content)
        script = f"find . -type f ! -name {MODERN} -exec sha256sum {{}} + > {MODERN}"
        subprocess.run(["sh", "-c", script], cwd=folder, check=True)
        subprocess.run(["tar", "-czf", archive, "."], cwd=folder, check=True)
    between_them = f"mv '{archives[1]}' '{archives[0]}'"
    (site.folder / "between.sh").write_text(between_them, encoding="utf-8")
    before = project(site.root)
    outcome = site.run("-e", f"bundle={archives[0]}", playbook=between(site))
    assert outcome.status == 2, outcome.output
    assert "changed after the plan was made" in outcome.failures[0]
    assert project(site.root) == before


def test_a_running_training_is_followed_first(clone: Callable[..., Site]) -> None:
    """Its files don't change under it."""
    site = clone()
    hold = site.hold("style")
    training = site.start("--tags", "style")
    until(lambda: "style" in site.trained(), "the start of style")
    (site.src / "README.md").write_bytes(b"another\n")
    syncing = site.start(playbook=SYNC)
    shown = shown_by(syncing, "following it.")
    time.sleep(0.5)
    meanwhile = (site.root / "README.md").read_bytes()
    hold.unlink()
    rest = finish(syncing)
    assert rest.status == 0, shown + rest.output
    assert meanwhile != b"another\n"
    assert (site.root / "README.md").read_bytes() == b"another\n"
    assert ended(finish(training)).status == 0
    assert site.trained() == ["style"]


# Signed -----------------------------------------------------------------------------------------


class Signed:
    """A site, two keys and the settings for them."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.key = make_key(site.folder / "keys")
        self.other = make_key(site.folder / "keys", "other")
        self.signers = site.folder / "allowed_signers"
        self.signers.write_text(line(self.key), encoding="utf-8")
        (site.src / "README.md").write_bytes(b"another\n")

    def run(self, key: Path | None, *arguments: str, allowed: bool = True) -> Outcome:
        """Sync, signed by a key and with a list of signers, where they are given."""
        given = ["-e", f"sync_signing_key={key}"] if key else []
        given += ["-e", f"sync_allowed_signers={self.signers}"] if allowed else []
        return self.site.run(*given, *arguments, playbook=SYNC)

    def refused(self, outcome: Outcome, *words: str) -> None:
        """Nothing has changed, and that is said in one sentence."""
        assert outcome.status == 2, outcome.output
        assert any(word in outcome.failures[0] for word in words), outcome.output
        assert (self.site.root / "README.md").read_bytes() != b"another\n"


@pytest.fixture
def keys(clone: Callable[..., Site]) -> Signed:
    """See the class."""
    return Signed(clone())


def test_signed_and_accepted(keys: Signed) -> None:
    """By a delta, then as a bundle: the list is the same."""
    outcome = ended(keys.run(keys.key))
    assert sent(outcome)["src"][2] == ME
    assert (keys.site.root / "README.md").read_bytes() == b"another\n"
    assert ended(keys.run(keys.key)).recap["gpu"]["changed"] == 0
    (keys.site.src / "README.md").write_bytes(b"once more\n")
    outcome = ended(keys.run(keys.key, "-e", "code_sync_mode=bundle"))
    assert sent(outcome)["src"][2] == ME
    assert (keys.site.root / "README.md").read_bytes() == b"once more\n"


@pytest.mark.parametrize("mode", ["delta", "bundle"])
def test_signed_by_another_key(keys: Signed, mode: str) -> None:
    outcome = keys.run(keys.other, "-e", f"code_sync_mode={mode}")
    keys.refused(outcome, "is not among the allowed signers")


def test_a_signature_is_asked_for_and_there_is_no_key(keys: Signed) -> None:
    keys.refused(keys.run(None), "there is no key to sign with")


def test_a_key_and_nobody_to_check_it(keys: Signed) -> None:
    keys.refused(keys.run(keys.key, allowed=False), "nothing says whose signature counts")


def test_signers_that_can_not_be_read(keys: Signed) -> None:
    keys.signers.unlink()
    keys.refused(keys.run(keys.key), "can't be read: No such file")


def test_a_bundle_with_its_signature_beside_it(keys: Signed) -> None:
    """Signed where it was built; here there is no key, only the list of signers."""
    site = keys.site
    ended(site.run("-e", f"sync_signing_key={keys.key}", playbook="playbooks/bundle.yml"))
    path = site.folder / "src.tar.gz"
    assert (site.folder / f"src.{MODERN}.sig").exists()
    given = ("-e", f"bundle={path}")
    outcome = ended(keys.run(None, *given))
    assert [found[2] for found in sent(outcome).values()] == [ME]
    assert (site.root / "README.md").read_bytes() == b"another\n"
    (site.src / "README.md").write_bytes(b"unsigned\n")
    ended(site.run(playbook="playbooks/bundle.yml"))
    outcome = keys.run(None, *given)
    assert outcome.status == 2, outcome.output
    assert "it is not signed" in outcome.failures[0]
    assert (site.root / "README.md").read_bytes() == b"another\n"


def test_a_bundle_whose_manifest_lies_beside_it(clone: Callable[..., Site]) -> None:
    """And nowhere else."""
    site = clone()
    script = f"find * -type f -exec sha256sum {{}} + > ../x.{MODERN}; tar -czf ../x.tar.gz *"
    (site.src / "README.md").write_bytes(b"another\n")
    subprocess.run(["sh", "-ec", script], cwd=site.src, check=True)
    outcome = ended(site.run("-e", f"bundle={site.folder / 'x.tar.gz'}", playbook=SYNC))
    assert outcome.recap["gpu"]["changed"] == 1
    assert project(site.root) == project(site.src)


# A link that breaks -----------------------------------------------------------------------------

LARGE = 20_000_000


@pytest.fixture
def wired(clone: Callable[..., Site], own_sshd: sshd_host.Sshd, wire: Wire) -> Site:
    """A site whose project has a large file that is new, behind a server of its own."""
    site = clone(
        ansible_ssh_executable=str(wire.program),
        ansible_port=own_sshd.port,
        ansible_ssh_private_key_file=str(own_sshd.client_key),
        ansible_ssh_common_args="-F /dev/null -o IdentitiesOnly=yes -o IdentityAgent=none"
        f" -o UserKnownHostsFile={own_sshd.known_hosts}",
    )
    (site.src / BIG).write_bytes(os.urandom(LARGE))
    return site


def launch(server: sshd_host.Sshd) -> None:
    """Start a server again that was cut."""
    sshd_host.launch(server.folder, sshd_host.program("sshd", "openssh-server"), server.port)


def in_order(parts: list[tuple[int, int]], size: int) -> None:
    """These parts are all of an archive, one behind the other."""
    at = 0
    for start, end in parts:
        assert start == at
        at = end
    assert at == size


def test_an_upload_that_is_cut_goes_on_where_it_was(
    wired: Site,
    own_sshd: sshd_host.Sshd,
    wire: Wire,
) -> None:
    wire.hold("hold")
    process = wired.start(playbook=SYNC)
    until((wire.folder / "middle").exists, "the middle of a part")
    cut(own_sshd)
    shown = shown_by(process, "The connection broke; what was sent stays there. Reconnecting.")
    (wire.folder / "hold").unlink()
    launch(own_sshd)
    rest = finish(process)
    assert rest.status == 0, shown + rest.output
    assert "Connected again after " in rest.output
    size, did, _signer = sent(rest)["src"]
    assert did == "1 replaced"
    assert LARGE < size < LARGE + 20_000
    parts = wire.parts()
    again = [part for part in parts if parts.count(part) > 1]
    assert set(again) == {parts[2]}  # the one that was cut
    in_order(list(dict.fromkeys(parts)), size)
    assert project(wired.root) == project(wired.src)
    assert list(wired.sync.glob("incoming/*")) == []
    progress = [said for said in (shown + rest.output).splitlines() if "sending src: " in said]
    assert progress
    assert re.fullmatch(r"  sending src: [\d.]+ MB of 20\.0 MB, [\d.]+ [kM]B/s", progress[0]), (
        progress
    )


def kill(process: subprocess.Popen[str]) -> None:
    """End a controller as a whole: its workers are in sessions of their own, and would go on."""
    found, parents = [], [process.pid]
    while parents:
        found += parents
        listed = ["ps", "-o", "pid=", "--ppid", ",".join(map(str, parents))]
        shown = subprocess.run(listed, capture_output=True, text=True, check=False).stdout
        parents = [int(pid) for pid in shown.split()]
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    finish(process)


def test_a_controller_that_was_killed_goes_on_where_it_was(wired: Site, wire: Wire) -> None:
    """The same command again: what came stays, and is not sent a second time."""
    wire.hold("hold")
    first = wired.start(playbook=SYNC)
    until((wire.folder / "middle").exists, "the middle of a part")
    kill(first)
    (wire.folder / "hold").unlink()
    before = wire.parts()
    assert len(before) == 3
    rest = ended(wired.run(playbook=SYNC))
    size = sent(rest)["src"][0]
    in_order([*before[:2], *wire.parts()], size)
    assert project(wired.root) == project(wired.src)
    assert list(wired.sync.glob("incoming/*")) == []


def test_what_takes_over_two_seconds_shows_bytes_and_rate(wired: Site, wire: Wire) -> None:
    wire.hold("slow")
    outcome = ended(wired.run(playbook=SYNC))
    said = [said for said in outcome.output.splitlines() if "sending src: " in said]
    assert said
    for text in said:
        assert re.fullmatch(r"  sending src: [\d.]+ MB of 20\.0 MB, [\d.]+ [kM]B/s", text)
