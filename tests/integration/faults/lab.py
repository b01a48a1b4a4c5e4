"""A host with one stage to train, what is done to it, and what has to hold in the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sshd_host
from remote_train import live, markers
from tests.integration.faults import processes
from tests.integration.faults.proxy import Link
from tests.integration.faults.waits import until
from tests.integration.sites import PROJECT, Outcome, Site, finish

if TYPE_CHECKING:
    from tests.integration.conftest import GpuHost

STAGES = [
    {
        "name": "style",
        "tag": "style",
        "needs": [],
        "train": ["{{ data_base }}/processed/style_sft.jsonl"],
        "evaluate": ["{{ data_base }}/eval/style_benchmark.jsonl"],
        "adapter": "adapter_style",
        "thresholds": {},
    }
]
"""One stage: a fault is about what happens to it, and every other one takes its time."""

STUB_ADAPTER = b"style at 0.0001\n"
"""What the stage's command in place of a training leaves."""

HALF = (".tmp", ".partial", ".old", ".part")
"""How the names of files end that are being written."""

REAL = {
    "learning_rate": 0.01,
    "num_train_epochs": 8,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_length": 128,
    "lora_r": 4,
    "lora_dropout": 0.1,
    "max_new_tokens": 4,
    "stage_command": [],
    "checkpoint_steps": 3,
}
"""A training of some tens of steps, with dropout, on a base model of two layers."""

CALLBACKS = Path(__file__).parent / "callbacks"
HOOKS = Path(__file__).parent / "hooks"


class Lab:
    """What a fault works with."""

    def __init__(
        self,
        new_site: Callable[..., Site],
        gpu_host: GpuHost,
        folder: Path,
        fixture: Callable[[str], Any],
    ) -> None:
        """:param fixture: gives one of the suite's fixtures by its name, made when first asked."""
        self._new_site = new_site
        self.gpu_host = gpu_host
        self.folder = folder
        self.fixture = fixture
        self._sites: list[Site] = []
        self._started: list[subprocess.Popen[str]] = []
        self._close: list[Callable[[], Any]] = []

    # Places ---------------------------------------------------------------------------------

    def stub(self, **settings: Any) -> Site:
        """A project that has never been synced; a command of a few lines is its training."""
        site = self._new_site(
            **{
                "stages": STAGES,
                "stage_retries": 0,
                "stage_retry_pause": 1,
                "worker_idle_timeout": 5,
                "stop_grace": 5,
                **settings,
            }
        )
        self._sites.append(site)
        return site

    def trained(self) -> Site:
        """A copy of a project whose stage was trained once by a command, and is at home."""
        first: Site = self.fixture("trained")
        site = first.clone(self.folder / "site")
        shutil.copy(first.folder / "trace", site.folder)
        self._sites.append(site)
        return site

    def real(self, *faults: dict[str, Any], **settings: Any) -> Site:
        """The same with the real training, in which ``faults`` happen: see hooks/."""
        place = self.folder / f"python-{len(self._sites)}"
        site = self.stub(
            **{
                **REAL,
                "model_name_or_path": str(self.fixture("tiny_base")),
                "provision_python": str(faulty_python(place)),
                "stage_retries": 2,
                **settings,
            }
        )
        few_chats(site.src)
        self.faults(site, *faults)
        return site

    def faults(self, site: Site, *faults: dict[str, Any]) -> None:
        """Say what is to happen in the trainings of a site of :meth:`real`."""
        place = Path(site.settings["provision_python"]).parents[1]
        new = place / "faults.new"
        new.write_text(json.dumps(faults), encoding="utf-8")
        new.replace(place / "faults.json")

    def happened(self, site: Site, name: str) -> bool:
        """Whether a fault of :meth:`real` has happened."""
        return (Path(site.settings["provision_python"]).parents[1] / f"done.{name}").exists()

    def right(self) -> bytes:
        """The adapter of an undisturbed training, made once."""
        site: Site = self.fixture("undisturbed")
        return site.adapter("style").read_bytes()

    def through(self, link: Link) -> dict[str, Any]:
        """The settings of a site whose host is reached over a link that can be cut."""
        return self.behind(self.gpu_host.sshd, link.port)

    def behind(self, server: sshd_host.Sshd, port: int | None = None) -> dict[str, Any]:
        """The settings of a site on this server, on another port where that leads to it."""
        return {
            "ansible_port": port or server.port,
            "ansible_ssh_private_key_file": str(server.client_key),
            "ansible_ssh_common_args": (
                f"-F /dev/null -o IdentitiesOnly=yes -o IdentityAgent=none -o ConnectTimeout=3"
                f" -o UserKnownHostsFile={server.known_hosts} -o GlobalKnownHostsFile=/dev/null"
                f" -o HostKeyAlias=[{server.address}]:{server.port} -o StrictHostKeyChecking=yes"
                " -o ServerAliveInterval=1 -o ServerAliveCountMax=2"
            ),
        }

    def link(self) -> Link:
        """A link to the host, whole as yet."""
        link = Link(self.gpu_host.port)
        self._close.append(link.close)
        return link

    def own_sshd(self) -> sshd_host.Sshd:
        """A server that nobody else's connections go through."""
        folder = self.folder / "sshd"
        server = sshd_host.start(folder)
        self._close.append(lambda: sshd_host.stop(folder))
        return server

    def at_end(self, act: Callable[[], Any]) -> None:
        """Do something when the fault is over, however that went."""
        self._close.append(act)

    # Commands -------------------------------------------------------------------------------

    def start(self, site: Site, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start the playbook; it is ended with the fault, if it hasn't ended before."""
        process = site.start(*arguments, **options)
        self._started.append(process)
        return process

    def killed_at(self, site: Site, when: str) -> None:
        """Start the playbook; it kills itself at a step: ``code_sync:start``."""
        process = self.start(
            site,
            env={
                "ANSIBLE_CALLBACK_PLUGINS": f"{CALLBACKS}:{PROJECT / 'plugins/callback'}",
                "FAULTS_KILL_AT": when,
            },
        )
        outcome = finish(process)
        assert outcome.status == -9, f"it was not killed at {when}:\n{outcome.output}"

    def kill(self, process: subprocess.Popen[str]) -> str:
        """Kill a controller with all that it started; what it had shown."""
        processes.kill_tree(process.pid)
        shown, _ = process.communicate(timeout=20)
        return shown

    def kill_all(self, site: Site) -> None:
        """Kill all that runs on the host for a site, as a machine does that loses its power."""

        def gone() -> bool:
            left = self.left(site)
            processes.kill(*left)
            return not left

        until(gone, "their end")

    # What is waited for ---------------------------------------------------------------------

    def training(self, site: Site) -> dict[str, Any]:
        """Wait until the stage's command is in its middle; its status."""
        until(site.trained, "the start of the stage")
        return self.running(site)

    def running(self, site: Site) -> dict[str, Any]:
        """Wait until the status has a training process; the status."""
        return dict(until(lambda: self._with_child(site), "a running stage"))

    def _with_child(self, site: Site) -> dict[str, Any]:
        status = self.status(site)
        return status if status.get("state") == "running" and status.get("child") else {}

    def status(self, site: Site) -> dict[str, Any]:
        """What the host says of the stage now."""
        return live.read_json(live.path(str(site.root), "status.json"))

    def ended(self, site: Site) -> dict[str, Any]:
        """Wait until the stage has ended; the status."""
        until(lambda: self.status(site).get("state") in live.ENDED, "the stage's end")
        return self.status(site)

    def held_at(self, site: Site, name: str = "hold.real") -> Path:
        """A file for the fault ``hold``."""
        path = site.folder / name
        path.touch()
        return path

    # What has to hold -----------------------------------------------------------------------

    def settle(
        self,
        site: Site,
        trained: int | None = 1,
        adapter: bytes | None = STUB_ADAPTER,
    ) -> Outcome:
        """Give the same command again until nothing is left to do; all must be right then.

        :param trained: how often the stage's command has run in all; None for the real training.
        :param adapter: the bytes that came out.
        """
        again = site.run()
        assert again.status == 0, again.output
        last = again
        for _ in range(2):
            if last.recap["gpu"]["changed"] == 0:
                break
            last = site.run()
            assert last.status == 0, last.output
        assert last.recap["gpu"]["changed"] == 0, f"it is never done:\n{last.output}"
        if trained is not None:
            assert len(site.trained()) == trained, "\n".join([*site.trained(), again.output])
        self.check(site, adapter)
        return again

    def check(self, site: Site, adapter: bytes | None) -> None:
        """A whole marker, the right bytes there and at home, nothing half, nothing running."""
        marker = self.marker(site)
        assert marker["status"] == "done"
        assert markers.damaged_outputs(str(site.root), marker) == []
        assert marker["fingerprint"].startswith("sha256:")
        weights = site.adapter("style").read_bytes()
        if adapter is not None:
            assert weights == adapter, "the adapter's bytes are not those of an undisturbed run"
        at_home = site.home / "adapter/adapter_style/adapter_model.safetensors"
        assert at_home.read_bytes() == weights
        assert (site.home / "training_sync/stages/style.json").read_bytes() == site.marker(
            "style"
        ).read_bytes()
        self.logs_are_home(site)
        for place in (site.root, site.home):
            half = [str(p) for p in place.rglob("*") if p.name.endswith(HALF)]
            assert half == [], "half files are left"
        checkpoints = site.sync / "checkpoints"
        assert list(checkpoints.rglob("step_*")) == [], "checkpoints are left of a stage that ended"
        until(lambda: not self.left(site), f"the end of {self.left(site)}")
        assert not live.is_held(str(site.root))

    def marker(self, site: Site) -> dict[str, Any]:
        """The stage's marker."""
        marker, warning = markers.read(str(site.root), "style")
        assert marker is not None, warning or "there is no marker"
        return marker

    def logs_are_home(self, site: Site) -> None:
        """Every finished log is at home, byte for byte, and so is the run's record."""
        for log in (site.root / "outputs/logs").glob("*.log"):
            assert (site.home / "logs" / log.name).read_bytes() == log.read_bytes(), log
        latest = site.home / "training_sync" / site.runs()[-1].name
        for line in (latest / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            content = (latest / name.removeprefix("./")).read_bytes()
            assert hashlib.sha256(content).hexdigest() == digest, name

    def left(self, site: Site) -> dict[int, str]:
        """What still runs of this site."""
        return processes.of(str(site.folder))

    def issues(self, site: Site) -> list[dict[str, Any]]:
        """Every issue of every run that came home."""
        found = []
        for file in sorted((site.home / "training_sync").glob("run_*/issues.jsonl")):
            found += [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return found

    def issue(self, site: Site, pattern: str) -> dict[str, Any]:
        """The issue whose symptom or cause has a word."""
        said = self.issues(site)
        for issue in said:
            if pattern.lower() in f"{issue['symptom']} {issue['cause']}".lower():
                return issue
        raise AssertionError(f"no issue says {pattern!r}: {[i['symptom'] for i in said]}")

    def close(self) -> None:
        """End what the fault has left, whatever became of it."""
        for process in self._started:
            if process.poll() is None:
                processes.kill_tree(process.pid)
            with contextlib.suppress(ValueError, subprocess.TimeoutExpired):
                process.communicate(timeout=10)
        for act in reversed(self._close):
            act()
        for site in self._sites:
            processes.kill(*self.left(site))


def faulty_python(place: Path) -> Path:
    """A Python with the packages of this one, that loads hooks/ when it starts."""
    venv.create(place, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    lines = [sysconfig.get_paths()["purelib"], str(HOOKS), "import trainer_hook"]
    (place / "lib" / version / "site-packages" / "faults.pth").write_text("\n".join(lines) + "\n")
    return place / "bin/python"


def few_chats(project: Path) -> None:
    """Keep eight chats to train on and two to score."""
    data = project / "data/training"
    for name, count in (("processed/style_sft.jsonl", 8), ("eval/style_benchmark.jsonl", 2)):
        path = data / name
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:count]), encoding="utf-8")


def shown_until(process: subprocess.Popen[str], text: str) -> str:
    """What a playbook shows up to the line that has ``text``."""
    assert process.stdout is not None
    shown = ""
    for line in process.stdout:
        shown += line
        if text in line:
            return shown
    raise AssertionError(f"{text!r} was not shown:\n{shown}")
