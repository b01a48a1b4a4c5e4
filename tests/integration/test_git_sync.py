"""The host pulls the project by itself: over a real sshd, over http, and with the playbooks."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote_train import git_tree
from remote_train.errors import TrainError
from tests.integration.conftest import GpuHost
from tests.integration.sites import Outcome, Site
from tests.unit.git_host import Origin, Place, contents, git, write
from tests.unit.signers import line, make_key

pytestmark = pytest.mark.ssh


# -- over ssh ------------------------------------------------------------------------------------


class Server:
    """A git server that is reached by ssh: a folder of repositories on the host's own sshd."""

    def __init__(self, host: GpuHost, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.config = folder / "ssh_config"
        self.use()

    def use(self, key: Path | None = None, known_hosts: Path | None = None) -> None:
        """Say what ssh knows, as ~/.ssh does on a host; ssh finds that by the account alone."""
        where = {
            "IdentityFile": key or self.host.key,
            "UserKnownHostsFile": known_hosts or self.host.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
        }
        lines = (
            f'{name} "{value}"' if "/" in str(value) else f"{name} {value}"
            for name, value in where.items()
        )
        self.config.write_text("\n".join(lines) + "\n")

    def url(self, path: Path) -> str:
        return f"ssh://{self.host.user}@{self.host.sshd.address}:{self.host.port}{path}"


class OverSsh(Origin):
    """A repository of the server's."""

    def __init__(self, server: Server, name: str, files: dict[str, str] | None = None) -> None:
        self.server = server
        super().__init__(server.folder / name, files)

    @property
    def url(self) -> str:
        return self.server.url(self.folder)


@pytest.fixture
def server(gpu_host: GpuHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    programs = tmp_path / "programs"
    programs.mkdir()
    served = Server(gpu_host, tmp_path)
    ssh = programs / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F "{served.config}" "$@"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_SSH_COMMAND", "false")  # of the outside; it doesn't count
    return served


@pytest.fixture
def origin(server: Server) -> OverSsh:
    return OverSsh(server, "origin")


@pytest.fixture
def place(origin: OverSsh, tmp_path: Path) -> Place:
    return Place(tmp_path / "host", origin)


def submodules(server: Server, origin: OverSsh, relative: bool) -> tuple[OverSsh, OverSsh]:
    """Give the project a submodule that has one of its own, by their URLs or by relative ones."""
    deep = OverSsh(server, "deep", {"deep.py": "1"})
    lib = OverSsh(server, "lib", {"lib.py": "1"})
    for above, below, name in ((lib, deep, "deep"), (origin, lib, "lib")):
        above.submodule(f"file://{below.folder}", name)
        url = f"../{name}" if relative else below.url
        above.git("config", "--file", ".gitmodules", f"submodule.{name}.url", url)
        above.commit()
    origin.git("-C", "lib", "pull", "-q")
    origin.commit()
    return lib, deep


@pytest.mark.parametrize("relative", [False, True])
def test_submodules_over_ssh(server: Server, origin: OverSsh, place: Place, relative: bool) -> None:
    lib, deep = submodules(server, origin, relative)
    assert place.pull().changed
    found = contents(place.root)
    assert found["lib/lib.py"] == found["lib/deep/deep.py"] == b"1"
    assert not place.look().changes
    deep.commit({"deep.py": "2"})
    git(lib.folder / "deep", "pull", "-q", f"file://{deep.folder}", "main")
    lib.commit({"lib.py": "2"})
    git(origin.folder / "lib", "pull", "-q", f"file://{lib.folder}", "main")
    origin.commit()
    assert place.pull().files == [("~", "lib/deep/deep.py"), ("~", "lib/lib.py")]
    assert not place.look().changes


def test_a_branch_a_tag_a_commit_over_ssh(origin: OverSsh, place: Place) -> None:
    first = origin.head
    origin.git("tag", "v1")
    place.pull()
    lost = origin.commit({"a": "lost"})
    origin.git("reset", "-q", "--hard", first)
    forward = origin.commit({"a": "2"})
    assert place.pull(check=True).files == [("~", "a")]
    assert place.pull().after == forward
    assert place.pull("v1").after == first
    assert place.pull(lost).after == lost
    with pytest.raises(TrainError, match="There is no branch or tag nothing"):
        place.pull("nothing")
    with pytest.raises(TrainError, match=r"The commit e{40} is not in"):
        place.pull("e" * 40)


def test_a_forced_push_over_ssh(origin: OverSsh, place: Place) -> None:
    place.pull()
    origin.git("commit", "-q", "--amend", "-m", "another")
    for check in (True, False):
        with pytest.raises(TrainError, match="was rewritten at the remote"):
            place.pull(check=check)


@pytest.mark.parametrize("asked", ["known_hosts", "key"])
def test_a_server_that_isn_t_known_or_doesn_t_let_in(
    server: Server, place: Place, tmp_path: Path, asked: str
) -> None:
    """Neither waits for an answer, nor takes a key that nobody has pinned."""
    if asked == "known_hosts":
        (tmp_path / "empty").touch()
        server.use(known_hosts=tmp_path / "empty")
    else:
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")]
        subprocess.run(words, check=True)
        server.use(key=tmp_path / "other")
    words = "doesn't know the key" if asked == "known_hosts" else "refuses the host's login"
    with pytest.raises(TrainError, match=words) as caught:
        place.pull()
    assert caught.value.category == "infra"
    assert not (tmp_path / "empty").exists() or not (tmp_path / "empty").read_text()


def test_no_repository_over_ssh(origin: OverSsh, place: Place) -> None:
    with pytest.raises(TrainError, match=r"There is no repository at ssh://.*/origin-not"):
        place.pull(url=origin.url + "-not")


# -- over http -----------------------------------------------------------------------------------


class Asking(http.server.SimpleHTTPRequestHandler):
    """Serves files to who has the password, as any web server can a repository."""

    def do_GET(self) -> None:
        right = base64.b64encode(b"someone:hunter 2").decode()
        if self.headers.get("Authorization") == f"Basic {right}":
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="git"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextlib.contextmanager
def serving(origin: Origin) -> Iterator[str]:
    origin.git("update-server-info")
    folder = str(origin.folder)
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *given: Asking(*given, directory=folder)
    ) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{served.server_port}/.git"
        served.shutdown()


@pytest.fixture
def web(origin: OverSsh) -> Iterator[str]:
    with serving(origin) as place:
        yield place


def test_a_password_is_used_and_left_nowhere(place: Place, web: str, tmp_path: Path) -> None:
    secret = tmp_path / "stored"
    (tmp_path / ".gitconfig").write_text(f"[credential]\n\thelper = store --file {secret}\n")
    done = place.pull(url=f"http://someone:hunter%202@{web}")
    assert done.changed
    assert "Nothing protects" in done.warnings[0]
    assert not secret.exists()
    for path in place.root.rglob("*"):
        if path.is_file():
            assert b"hunter" not in path.read_bytes(), path
    assert place.git("remote", "get-url", "origin") == f"http://{web}"
    for login in ("", "someone:wrong@"):
        with pytest.raises(TrainError, match=f"no access to http://{web}") as caught:
            place.pull(url=f"http://{login}{web}")
        assert "wrong" not in str(caught.value)


# -- with the playbooks --------------------------------------------------------------------------

UNTRACKED = "data/training/processed/style_sft.jsonl"


@pytest.fixture
def cloned(new_site: Callable[..., Site]) -> tuple[Site, Origin]:
    """A site whose project is a clone; one file of its data is in no repository."""
    site = new_site()
    files = {
        str(path.relative_to(site.src)): path.read_bytes()
        for path in sorted(site.src.rglob("*"))
        if path.is_file() and "outputs" not in path.relative_to(site.src).parts
    }
    data = files.pop(UNTRACKED)
    files[".gitignore"] = files.get(".gitignore", b"") + f"\n{UNTRACKED}\noutputs/\n".encode()
    files.pop("scripts/training_sync_whitelist.txt", None)
    origin = Origin(site.folder / "origin", files)
    shutil.rmtree(site.src)
    git(site.folder, "clone", "-q", origin.url, str(site.src))
    write(site.src, {UNTRACKED: data})
    return site, origin


def run(site: Site, *arguments: str, playbook: str = "playbooks/sync.yml") -> Outcome:
    return site.run("-e", "code_sync_mode=git", *arguments, playbook=playbook)


def changed(outcome: Outcome) -> int:
    return outcome.recap["gpu"]["changed"]


def test_sync_pulls_and_sends_the_rest(cloned: tuple[Site, Origin]) -> None:
    site, origin = cloned
    looked = run(site, "--check", "--diff")
    assert looked.status == 0, looked.output
    assert not site.root.exists()
    done = run(site)
    assert done.status == 0, done.output
    expected = {**origin.files(), UNTRACKED: (site.src / UNTRACKED).read_bytes()}
    there = contents(site.root)
    assert {name: there.get(name) for name in expected} == expected
    assert git(site.root, "rev-parse", "HEAD") == origin.head
    assert (
        (site.root / git_tree.UNTRACKED / "SYNC_MANIFEST.sha256")
        .read_text()
        .endswith(f"  {UNTRACKED}\n")
    )
    assert f"{origin.head[:12]}" in done.output
    assert "a change" in done.output  # of the last five
    again = run(site)
    assert again.status == 0, again.output
    assert changed(again) == 0
    # Forward, and what isn't tracked stays.
    origin.commit({"README.md": "newer\n"})
    assert run(site).status == 0
    assert (site.root / "README.md").read_text() == "newer\n"
    assert (site.root / UNTRACKED).read_bytes() == expected[UNTRACKED]


def test_a_url_and_a_commit_by_settings(cloned: tuple[Site, Origin]) -> None:
    site, origin = cloned
    pinned = origin.head
    origin.commit({"README.md": "newer\n"})
    settings = ("-e", f"sync_git_url={origin.url}", "-e", f"sync_git_ref={pinned}")
    done = run(site, *settings)
    assert done.status == 0, done.output
    assert git(site.root, "rev-parse", "HEAD") == pinned
    assert git(site.root, "rev-parse", "--abbrev-ref", "HEAD") == "HEAD"


@pytest.mark.parametrize("playbook", ["playbooks/sync.yml", "train_all.yml"])
def test_no_output_holds_the_token(cloned: tuple[Site, Origin], playbook: str) -> None:
    """Not with -vvv either, nor any file at home or on the host."""
    site, origin = cloned
    with serving(origin) as place:
        given = ("-vvv", "-e", f"sync_git_url=http://someone:hunter%202@{place}")
        looked = run(site, *given, "--check", "--diff", playbook=playbook)
        done = run(site, *given, playbook=playbook)
        origin.commit({"README.md": "newer\n"})
        origin.git("update-server-info")
        again = run(site, *given, playbook=playbook)
        wrong = run(site, "-vvv", "-e", f"sync_git_url=http://someone:hunter3@{place}")
    for outcome in (looked, done, again):
        assert outcome.status == 0, outcome.output
    assert git(site.root, "rev-parse", "HEAD") == origin.head
    assert wrong.status != 0
    for outcome in (looked, done, again, wrong):
        assert [text for text in outcome.output.splitlines() if "hunter" in text] == []
        assert place in outcome.output
    for path in (*site.root.rglob("*"), *site.home.rglob("*")):
        if path.is_file():
            assert b"hunter" not in path.read_bytes(), path


def test_only_what_is_signed(cloned: tuple[Site, Origin], tmp_path: Path) -> None:
    site, origin = cloned
    key = make_key(tmp_path / "keys")
    allowed = tmp_path / "allowed"
    allowed.write_text(line(key, options='namespaces="git,remote-train"'))
    terms = ("-e", f"sync_signing_key={key}", "-e", f"sync_allowed_signers={allowed}")
    refused = run(site, *terms)
    assert refused.status != 0
    assert "is not signed" in refused.output
    assert not (site.root / "README.md").exists()
    words = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={key}")
    origin.git(*words, "commit", "-q", "--amend", "--no-edit", "-S")
    done = run(site, *terms)
    assert done.status == 0, done.output
    assert git(site.root, "rev-parse", "HEAD") == origin.head
    assert (site.root / UNTRACKED).exists()
    assert changed(run(site, *terms)) == 0


def test_a_dirty_tree_ends_the_run(cloned: tuple[Site, Origin]) -> None:
    site, origin = cloned
    assert run(site).status == 0
    (site.root / "README.md").write_text("mine\n")
    origin.commit({"other": "newer\n"})
    refused = run(site)
    assert refused.status != 0
    assert "README.md" in refused.failures[0]
    assert "sync_git_allow_dirty" in refused.output
    assert not (site.root / "other").exists()
    assert run(site, "-e", "sync_git_allow_dirty=true").status == 0
    assert (site.root / "README.md").read_text() == "mine\n"
    assert (site.root / "other").read_text() == "newer\n"


def test_after_delta_it_is_refused_in_words(cloned: tuple[Site, Origin]) -> None:
    site, _ = cloned
    assert site.run(playbook="playbooks/sync.yml").status == 0
    before = contents(site.root)
    refused = run(site)
    assert refused.status != 0
    assert "earlier sync without git" in refused.failures[0]
    assert contents(site.root) == before


def test_data_that_git_takes_over(cloned: tuple[Site, Origin]) -> None:
    """What delta has brought is tracked from now on: delta lets go of it, then git brings it."""
    site, origin = cloned
    assert run(site).status == 0
    data = (site.src / UNTRACKED).read_bytes()
    origin.commit({UNTRACKED: data, ".gitignore": "outputs/\n"})
    (site.src / UNTRACKED).unlink()
    git(site.src, "pull", "-q")
    done = run(site)
    assert done.status == 0, done.output
    assert (site.root / UNTRACKED).read_bytes() == data
    again = run(site)
    assert again.status == 0, again.output
    assert changed(again) == 0


def test_data_that_git_gives_up(cloned: tuple[Site, Origin]) -> None:
    """And the reverse: what git has brought is no longer tracked, and stays."""
    site, origin = cloned
    name = "data/training/processed/writing_sft.jsonl"
    assert run(site).status == 0
    data = (site.src / name).read_bytes()
    origin.commit({".gitignore": f"{UNTRACKED}\n{name}\noutputs/\n"}, remove=[name])
    git(site.src, "pull", "-q")
    write(site.src, {name: data})
    done = run(site)
    assert done.status == 0, done.output
    assert (site.root / name).read_bytes() == data
    again = run(site)
    assert again.status == 0, again.output
    assert changed(again) == 0


def test_train_all_with_git(cloned: tuple[Site, Origin]) -> None:
    site, origin = cloned
    done = run(site, playbook="train_all.yml")
    assert done.status == 0, done.output
    assert site.trained() == ["sample", "style", "writing", "all"]
    again = run(site, playbook="train_all.yml")
    assert again.status == 0, again.output
    assert changed(again) == 0, again.output
    origin.commit({"data/training/processed/writing_sft.jsonl": _shorter(site)})
    done = run(site, playbook="train_all.yml")
    assert done.status == 0, done.output
    assert "writing" in site.trained()[4:]
    assert "sample" not in site.trained()[4:]


def test_what_git_brings_is_judged_when_it_is_there(cloned: tuple[Site, Origin]) -> None:
    """The project here is right and older; what is pulled is not. Nothing is provisioned then."""
    site, origin = cloned
    wrong = "data/training/processed/writing_sft.jsonl"
    right = (site.src / wrong).read_bytes()
    origin.commit({wrong: right + b"no JSON\n"})
    looked = run(site, "--check", playbook="train_all.yml")
    assert looked.status == 0, looked.output
    done = run(site, "-e", "gpu_gate_full_table=true", playbook="train_all.yml")
    assert done.status == 2, done.output
    assert done.failures[0].startswith(f"[gpu] The check data_files failed: {wrong}, line ")
    assert "nothing was changed on the host" not in done.output
    assert site.trained() == []
    (folder,) = (site.home / "training_sync").glob("run_*")
    record = json.loads((folder / "precheck.json").read_text(encoding="utf-8"))
    checks = [one["check"] for one in record["findings"]]
    assert len(checks) == len(set(checks)) > 20
    assert record["stops"] is True
    assert {file["where"] for file in record["data"]} == {"host"}
    issues = (folder / "issues.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["phase"] for line in issues} == {"precheck"}
    # It is there now: the gate sees it before anything else is done, and then it is mended.
    again = run(site, playbook="train_all.yml")
    assert again.failures[-1].endswith("; nothing was changed on the host."), again.output
    origin.commit({wrong: right})
    mended = run(site, playbook="train_all.yml")
    assert mended.status == 0, mended.output
    assert "writing" in site.trained()


def test_data_that_nobody_has_seen_is_unknown(cloned: tuple[Site, Origin]) -> None:
    """Nothing of it lies here, and the pull is yet to come."""
    site, origin = cloned
    found = run(
        site,
        *("-e", json.dumps({"project_src": None, "sync_git_url": origin.url})),
        *("-e", "sync_git_ref=main", "--tags", "style"),
        playbook="playbooks/precheck.yml",
    )
    assert found.status == 0, found.output
    shown = dict(line.split()[:2] for line in found.lines if line.startswith("data_"))
    # Of a command of the user's own nobody knows what is too long for it.
    assert shown == {"data_files": "unknown", "data_leak": "unknown", "data_length": "skipped"}


def _shorter(site: Site) -> bytes:
    lines = (site.src / "data/training/processed/writing_sft.jsonl").read_bytes().splitlines(True)
    return b"".join(lines[:-1])
