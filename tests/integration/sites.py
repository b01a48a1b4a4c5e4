"""A training project with a place on the GPU host and one at home, and the playbooks over them.

The stages run a few lines of shell in place of a training: what is tested is everything around
it, and torch alone would take longer to load than all of that.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pexpect
import yaml

from plugins.vars.environment import ENVIRONMENT

PROJECT = Path(__file__).resolve().parents[2]
STAGES = ("sample", "style", "writing", "all")
ADAPTERS = {stage: f"adapter_{stage}" for stage in STAGES} | {"all": "adapter_multitask"}

COMMAND = """
case "$STAGE" in all) name=multitask ;; *) name=$STAGE ;; esac
folder=outputs/adapter/adapter_$name
echo "$STAGE" >> ../../trace
turns=0  # a test that fails leaves nothing behind that waits for ever
while [ -e "../../hold.$STAGE" ] && [ $turns -lt 4000 ]; do sleep 0.05; turns=$((turns + 1)); done
[ ! -e "../../fail.$STAGE" ] || { echo "out of luck"; exit 7; }
mkdir -p "$folder"
rm -rf "$folder/adapter_model.safetensors"  # whatever is in its place
printf '%s\\n' "$STAGE at $LEARNING_RATE" > "$folder/adapter_model.safetensors"
printf '{}\\n' > "$folder/adapter_config.json"
echo "trained $STAGE"
"""
"""What trains a stage here: it can be held in the middle and made to fail, by a file each.

The files lie beside the site's ``host`` and are named from ``project_root``: the command is in
the fingerprint, and so has to be the same in a clone.
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a playbook ended, and all that it showed, standard error included."""

    status: int
    output: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """The lines with something on them, without the blanks around it."""
        return [line.strip() for line in self.output.splitlines() if line.strip()]

    @property
    def failures(self) -> list[str]:
        """What stands behind each ``FAILED:``."""
        return [line.removeprefix("FAILED: ") for line in self.lines if line.startswith("FAILED: ")]

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """The counts of the recap, by host."""
        _, _, tail = self.output.rpartition("PLAY RECAP")
        counts = {}
        for line in tail.splitlines()[1:]:
            host, colon, rest = line.partition(" : ")
            if colon:
                pairs = (pair.split("=") for pair in rest.split())
                counts[host.strip()] = {name: int(count) for name, count in pairs}
        return counts

    def plan_of(self, stage: str) -> str:
        """What the last plan that was shown says of a stage."""
        verbs = "trains|skips|left out|is evaluated again"
        found = [line for line in self.lines if re.match(rf"{stage} +({verbs}): ", line)]
        return found[-1]


class Playbooks:
    """Runs the playbooks as a user does, with nothing of this machine's own settings.

    :param folder: where Ansible keeps what it keeps in a user's home.
    :param control: a folder with a short path, for the connections' sockets.
    """

    def __init__(self, folder: Path, control: Path) -> None:
        self.folder = folder
        self.control = control

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a run: this one without any setting, and with ``extra``."""
        ours = {name for names in ENVIRONMENT.values() for name in names}
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in ours and not name.startswith(("ANSIBLE_", "PYTHON", "AWX_"))
        }
        return kept | {
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.folder),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.control),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")]),
            **(extra or {}),
        }

    def command(self, *arguments: str, playbook: str | Path = "train_all.yml") -> list[str]:
        """The command line; a relative ``playbook`` is one of the checkout's."""
        program = Path(sys.executable).with_name("ansible-playbook")
        return [str(program), *arguments, str(PROJECT / playbook)]

    def start(
        self,
        *arguments: str,
        playbook: str | Path = "train_all.yml",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Start a playbook in a process group of its own, without a terminal."""
        return subprocess.Popen(
            self.command(*arguments, playbook=playbook),
            cwd=cwd or self.folder,
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="surrogateescape",
            start_new_session=True,
        )

    def run(self, *arguments: str, **options: Any) -> Outcome:
        """Run a playbook to its end; the options are those of :meth:`start`."""
        started = time.monotonic()
        return finish(self.start(*arguments, **options), started)

    def spawn(self, *arguments: str, cwd: Path) -> pexpect.spawn:
        """Run a playbook in a terminal, as a person would."""
        program, *rest = self.command(*arguments)
        return pexpect.spawn(
            program,
            rest,
            cwd=str(cwd),
            env=self.environment(),
            encoding="utf-8",
            timeout=180,
            dimensions=(50, 160),
        )


def finish(process: subprocess.Popen[str], started: float | None = None) -> Outcome:
    """Wait for a playbook that was started, and read all it has shown."""
    started = started or time.monotonic()
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        raise AssertionError(f"The playbook did not end:\n{output}") from None
    return Outcome(process.returncode, output, time.monotonic() - started)


@dataclasses.dataclass(frozen=True)
class Site:
    """A training project, its folder on the host, and where its results come home to."""

    playbooks: Playbooks
    write_inventory: Callable[..., Path]
    folder: Path
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def src(self) -> Path:
        """The training project on the controller."""
        return self.folder / "src"

    @property
    def host(self) -> Path:
        """The folder on the host that ``project_root`` lies in."""
        return self.folder / "host"

    @property
    def root(self) -> Path:
        """``project_root``."""
        return self.host / "tutor"

    @property
    def home(self) -> Path:
        """``collect_dest``."""
        return self.folder / "home"

    @property
    def sync(self) -> Path:
        """Where this project keeps its own files on the host."""
        return self.root / "outputs" / "training_sync"

    def make(self) -> Site:
        """Lay out the project and write the inventory."""
        shutil.copytree(PROJECT / "examples" / "tutor", self.src)
        self.host.mkdir()
        (self.host / "neighbour.txt").write_text("not ours\n", encoding="utf-8")
        return self.configure()

    def configure(self) -> Site:
        """Write the inventory."""
        path = self.write_inventory(
            **{
                "project_src": str(self.src),
                "project_root": str(self.root),
                "collect_dest": str(self.home),
                "gpu_gate": "off",
                # Other tests may keep this machine busy: that is no issue of these runs.
                "gpu_gate_warn_load": 1000,
                "gpu_gate_max_load": 1000,
                "provision_python": "{{ ansible_playbook_python }}",
                "stage_command": ["sh", "-c", COMMAND],
                **self.settings,
            }
        )
        path.replace(self.folder / "hosts.yml")
        return self

    def clone(self, folder: Path, **settings: Any) -> Site:
        """The same project with all that has been trained and collected, somewhere else."""
        folder.mkdir(parents=True)
        copy = dataclasses.replace(self, folder=folder, settings={**self.settings, **settings})
        for part in ("src", "host", "home"):
            if (self.folder / part).exists():
                shutil.copytree(self.folder / part, folder / part, symlinks=True)
        return copy.configure()

    def arguments(self, *arguments: str) -> list[str]:
        """The command line's options for this site."""
        return ["-i", str(self.folder / "hosts.yml"), *arguments]

    def run(self, *arguments: str, **options: Any) -> Outcome:
        """Run a playbook, by default ``train_all.yml``, on this site."""
        return self.playbooks.run(*self.arguments(*arguments), cwd=self.folder, **options)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start one, without waiting for it."""
        return self.playbooks.start(*self.arguments(*arguments), cwd=self.folder, **options)

    def spawn(self, *arguments: str) -> pexpect.spawn:
        """Run one in a terminal."""
        return self.playbooks.spawn(*self.arguments(*arguments), cwd=self.folder)

    def runs(self) -> list[Path]:
        """The run folders on the host, oldest first."""
        return sorted(self.sync.glob("run_*"))

    def adapter(self, stage: str) -> Path:
        """A stage's adapter on the host."""
        return self.root / "outputs/adapter" / ADAPTERS[stage] / "adapter_model.safetensors"

    def marker(self, stage: str) -> Path:
        """A stage's marker on the host."""
        return self.sync / "stages" / f"{stage}.json"

    def trained(self) -> list[str]:
        """The stages whose command ran, in order."""
        trace = self.folder / "trace"
        return trace.read_text(encoding="utf-8").split() if trace.exists() else []

    def hold(self, stage: str) -> Path:
        """Make the stage wait in its middle until the file that is returned is gone."""
        path = self.folder / f"hold.{stage}"
        path.touch()
        return path

    def fail(self, stage: str) -> None:
        """Make the stage fail."""
        (self.folder / f"fail.{stage}").touch()


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder with its bytes, every link with its target, every folder."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = path.read_bytes() if path.is_file() else "folder"
    return found


def until(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """Wait for something to hold, and return it.

    :raises AssertionError: when it doesn't come about in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come about in {seconds:.0f} s")


def write_yaml(path: Path, content: Any) -> Path:
    """Write a YAML file."""
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path
