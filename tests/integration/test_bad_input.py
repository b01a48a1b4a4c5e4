"""Bad input: one clear sentence that names it, at once, and nothing changed on the host."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.sites import PROJECT, Outcome, Site, tree, write_yaml

if TYPE_CHECKING:
    from tests.integration.conftest import GpuHost

pytestmark = pytest.mark.ssh

STYLE = "data/training/processed/style_sft.jsonl"
SECONDS = 20
"""What counts as at once: a run that fails takes one, on a machine that is busy some more."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing that is wrong with a request, and what has to be said of it.

    :param said: the whole sentence.
    :param hint: the whole hint; None where the sentence says what to do by itself.
    :param prepare: changes the site before the run, and may return more arguments.
    :param settings: of the inventory.
    :param extra: given with ``-e``.
    """

    name: str
    said: str
    hint: str | None = None
    arguments: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prepare: Callable[[Site], list[str] | None] = lambda _site: None
    status: int = 2


def replace_data(text: str | bytes | None) -> Callable[[Site], None]:
    """Put ``text`` in place of the stage's training data, or nothing."""

    def prepare(site: Site) -> None:
        path = site.src / STYLE
        path.unlink()
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return prepare


def append_line(line: str) -> Callable[[Site], None]:
    """Add a 37th line to the training data."""

    def prepare(site: Site) -> None:
        path = site.src / STYLE
        path.write_bytes(path.read_bytes() + line.encode() + b"\n")

    return prepare


def link_file(site: Site) -> None:
    """Put a link among the project's files."""
    (site.src / "data/training/link.txt").symlink_to("/etc/hostname")


def second_host(site: Site) -> list[str]:
    """Another host beside the one in the inventory."""
    host = {"ansible_host": "192.0.2.1", "project_root": "/srv/tutor"}
    other = write_yaml(site.folder / "other.yml", {"gpu_hosts": {"hosts": {"other": host}}})
    return ["-i", str(other)]


MISSING = "project_root is missing: the training project's folder on the GPU host."
GIVE_ROOT = (
    "Give it with -e project_root=/srv/tutor, in the inventory, or as TRAIN_SYNC_PROJECT_ROOT."
)
TAGS = "The tags are sample, style, writing, multitask, precheck, sync, provision, collect."
OWN = "A variable of your own is named in own_variables."

CASES = (
    # Where ---------------------------------------------------------------------------------------
    Case("project_root missing", MISSING, GIVE_ROOT, settings={"project_root": None}),
    Case("project_root empty", MISSING, GIVE_ROOT, extra={"project_root": ""}),
    Case(
        "project_root relative",
        "project_root is 'srv/tutor', which is not a plain absolute path.",
        "Give an absolute path such as /srv/tutor.",
        extra={"project_root": "srv/tutor"},
    ),
    Case(
        "project_src that isn't there",
        "project_src is /nowhere/tutor, and there is no such folder.",
        "Give the folder that holds the training project on this machine.",
        extra={"project_src": "/nowhere/tutor"},
    ),
    # What to run ---------------------------------------------------------------------------------
    Case(
        "tag misspelt",
        "The tag stile names no stage and no step.",
        f"Did you mean style? {TAGS}",
        arguments=("--tags", "stile"),
    ),
    Case(
        "skipped tag misspelt",
        "The tag writting names no stage and no step.",
        f"Did you mean writing? {TAGS}",
        arguments=("--skip-tags", "writting"),
    ),
    Case(
        "symlink in the project",
        "data/training/link.txt in the training project is a symlink.",
        "Put the file itself there, name the link in sync_exclude, or sync what it leads to with "
        "sync_follow_links.",
        prepare=link_file,
    ),
    # Settings ------------------------------------------------------------------------------------
    Case(
        "unknown setting by -e",
        "There is no setting colour.",
        OWN,
        extra={"colour": "green"},
    ),
    Case(
        "misspelt setting by -e",
        "There is no setting lerning_rate.",
        f"Did you mean learning_rate? {OWN}",
        extra={"lerning_rate": 1},
    ),
    Case(
        "misspelt setting in the inventory",
        "There is no setting lerning_rate.",
        f"Did you mean learning_rate? {OWN}",
        settings={"lerning_rate": 1},
    ),
    Case(
        "unknown stage in stage_settings",
        "stage_settings names the stage stile, and there is none.",
        "Did you mean style?",
        extra={"stage_settings": {"stile": {"seed": 1}}},
    ),
    Case(
        "unknown setting in stage_settings",
        "The stage style has no setting lerning_rate.",
        "Did you mean learning_rate?",
        extra={"stage_settings": {"style": {"lerning_rate": 1}}},
    ),
    Case(
        "stage_settings no mapping",
        "stage_settings must be a mapping of names.",
        extra={"stage_settings": "style"},
    ),
    Case(
        "stage that lacks fields",
        "An item of extra_stages lacks adapter, train.",
        extra={"extra_stages": [{"name": "mine"}]},
    ),
    Case(
        "stage with a field that doesn't exist",
        "An item of extra_stages has no field trane; the fields are adapter, ask_after, code, "
        "command, evaluate, name, needs, settings, tag, thresholds, train, trial.",
        extra={
            "extra_stages": [{"name": "mine", "adapter": "a", "train": ["x.jsonl"], "trane": 1}]
        },
    ),
    Case(
        "gate mode by -e",
        "gpu_gate is 'lax'; it must be one of strict, warn, off.",
        extra={"gpu_gate": "lax"},
    ),
    Case(
        "gate mode by the environment",
        "gpu_gate is 'lax'; it must be one of strict, warn, off.",
        env={"TRAIN_SYNC_GPU_GATE": "lax"},
    ),
    Case(
        "acceptance gate mode by the environment",
        "acceptance_gate is 'maybe'; it must be one of strict, warn, off.",
        env={"TRAIN_SYNC_ACCEPTANCE_GATE": "maybe"},
    ),
    Case(
        "boolean by -e",
        "skip_sample must be true or false.",
        extra={"skip_sample": "maybe"},
    ),
    Case(
        "boolean by the environment",
        "assume_yes must be true or false.",
        env={"TRAIN_SYNC_ASSUME_YES": "perhaps"},
    ),
    Case(
        "learning rate by -e",
        "learning_rate must be a number.",
        extra={"learning_rate": "fast"},
    ),
    Case(
        "learning rate by the environment",
        "learning_rate must be a number.",
        env={"LEARNING_RATE": "fast"},
    ),
    Case(
        "learning rate of a stage",
        "learning_rate is 'fast', which is not a number.",
        "Give it a number.",
        extra={"stage_settings": {"style": {"learning_rate": "fast"}}},
    ),
    # The host ------------------------------------------------------------------------------------
    Case(
        "host name that doesn't resolve",
        "gpu can't be reached: there is no host of that name.",
        "Check ansible_host in the inventory, or REMOTE_HOST.",
        env={"REMOTE_HOST": "no-such-host.invalid"},
        status=4,
    ),
    Case(
        "nothing listens",
        "gpu can't be reached: nothing listens for SSH at that address and port.",
        "Check ansible_host and ansible_port, and whether the machine is running.",
        env={"REMOTE_PORT": "1"},
        status=4,
    ),
)


def check(site: Site, outcome: Outcome, before: Mapping[str, Any], said: str, status: int) -> None:
    """What holds for every bad input."""
    assert outcome.status == status, outcome.output
    assert outcome.seconds < SECONDS
    assert outcome.failures == [said], outcome.output
    for wall in ("Traceback", '{"changed"', "=> {", "[ERROR]", "fatal:", "<class"):
        assert wall not in outcome.output
    # After the sentence and its hint come the recap and nothing else.
    _, _, after = outcome.output.partition(f"FAILED: {said}\n")
    rest = [line for line in after.splitlines() if line and not line.startswith("  Hint: ")]
    assert rest[0].startswith("PLAY RECAP ")
    assert all(re.match(r"\S+ +: ok=\d+ +changed=0 ", line) for line in rest[1:]), rest
    assert tree(site.host) == before
    assert not site.root.exists()
    assert not site.home.exists()


def hints(outcome: Outcome) -> list[str]:
    """The hints that were given."""
    return [line.removeprefix("Hint: ") for line in outcome.lines if line.startswith("Hint: ")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_named_and_nothing_changes(case: Case, new_site: Callable[..., Site]) -> None:
    site = new_site(**case.settings)
    before = tree(site.host)
    more = case.prepare(site) or []
    extra = ["-e", json.dumps(dict(case.extra))] if case.extra else []
    outcome = site.run(*more, *extra, *case.arguments, env=case.env)
    said = f"[gpu] {case.said.format(src=site.src)}"
    check(site, outcome, before, said, case.status)
    assert hints(outcome) == ([] if case.hint is None else [case.hint])


# Data, which the gate's checks judge wherever they look at it -----------------------------------


def leak(site: Site) -> None:
    """Put a benchmark's question into the training data."""
    benchmark = site.src / "data/training/eval/style_benchmark.jsonl"
    item = json.loads(benchmark.read_text(encoding="utf-8").splitlines()[0])
    asked = [message for message in item["messages"] if message["role"] == "user"]
    answered = {"role": "assistant", "content": "Yes."}
    append_line(json.dumps({"id": "leaks", "messages": [*asked, answered]}))(site)


WRONG_DATA = [
    (replace_data(None), "data_files", f"{STYLE}: there is no such file in {{src}}"),
    (replace_data(""), "data_files", f"{STYLE}: it is empty"),
    (
        append_line('{"id": "x", "messages": ['),
        "data_files",
        f"{STYLE}, line 37: not JSON (Expecting value at column 26)",
    ),
    (
        append_line('{"id": "x", "mode": "style"}'),
        "data_files",
        f"{STYLE}, line 37: it has no messages",
    ),
    (
        replace_data("{}\n[]\n3\n"),
        "data_files",
        f"{STYLE}, line 1: it has no id. {STYLE}, line 2: not a JSON object but a list.",
    ),
    (
        leak,
        "data_leak",
        "data/training/eval/style_benchmark.jsonl, line 1: the same question is in the training "
        f"data ({STYLE}, line 37)",
    ),
]
PUT_RIGHT = {
    "data_files": ("Correct the named lines.", "out of the stage's settings."),
    "data_leak": "Take those chats out of one of the two files.",
}


@pytest.mark.parametrize(
    ("prepare", "name", "said"),
    WRONG_DATA,
    ids=["missing", "empty", "not_json", "no_messages", "no_records", "leak"],
)
def test_wrong_data_here_stops_before_anything_is_changed_there(
    new_site: Callable[..., Site], prepare: Callable[[Site], None], name: str, said: str
) -> None:
    site = new_site()
    before = tree(site.host)
    prepare(site)
    outcome = site.run()
    assert outcome.status == 2, outcome.output
    assert outcome.seconds < SECONDS
    said = said.format(src=site.src)
    first, last = outcome.failures
    assert first.startswith(f"[gpu] The check {name} failed: {said}"), outcome.output
    assert first.endswith(PUT_RIGHT[name])
    assert last.startswith(f"[gpu] The run did not end well: The check {name} failed: {said}")
    assert last.endswith("; nothing was changed on the host.")
    assert "Traceback" not in outcome.output
    assert tree(site.host) == before
    # What was found is at home, though the host has no record of it.
    (run,) = (site.home / "training_sync").iterdir()
    record = json.loads((run / "precheck.json").read_text(encoding="utf-8"))
    (finding,) = [one for one in record["findings"] if one["check"] == name]
    assert (finding["result"], finding["seen"].startswith(said)) == ("fail", True)
    assert {file["where"] for file in record["data"]} == {"controller"}
    assert f"{name}: {said}" in (run / "ISSUES.md").read_text(encoding="utf-8")


def test_a_leak_is_silenced_with_a_reason_wherever_the_data_lies(site: Site) -> None:
    """The run goes on, and the reason is on record; other wrong data stops it all the same."""
    leak(site)
    why = {"gpu_gate_silence": {"data_leak": "a greeting, both need it"}}
    outcome = site.run("-e", json.dumps(why), "--tags", "style")
    assert outcome.status == 0, outcome.output
    (run,) = (site.home / "training_sync").glob("run_*")
    record = json.loads((run / "precheck.json").read_text(encoding="utf-8"))
    (finding,) = [one for one in record["findings"] if one["check"] == "data_leak"]
    assert (finding["result"], finding["would_be"]) == ("skipped", "fail")
    assert finding["silenced"] == "a greeting, both need it"
    append_line("no JSON")(site)
    outcome = site.run("-e", json.dumps(why))
    assert outcome.status == 2, outcome.output
    assert f"The check data_files failed: {STYLE}, line 38: not JSON" in outcome.failures[0]


@pytest.mark.parametrize("silenced", [False, True])
@pytest.mark.parametrize(
    ("playbook", "arguments", "stops"),
    [
        ("playbooks/plan.yml", [], False),
        ("playbooks/sync.yml", [], True),
        ("train_all.yml", ["--skip-tags", "precheck", "--check"], True),
        ("playbooks/precheck.yml", [], True),
    ],
)
def test_wrong_data_without_a_gate(
    site: Site, playbook: str, arguments: list[str], stops: bool, silenced: bool
) -> None:
    """A plan says it; where data would be sent without a gate, it stops. So it is silenced, too."""
    leak(site)
    before = tree(site.host)
    why = {"gpu_gate_silence": {"data_leak": "known"}} if silenced else {}
    outcome = site.run("-e", json.dumps(why), *arguments, playbook=playbook)
    assert outcome.status == (2 if stops and not silenced else 0), outcome.output
    assert "data_leak" in outcome.output
    assert ("silenced: known" in outcome.output) == silenced
    if not silenced or playbook != "playbooks/sync.yml":
        assert tree(site.host) == before
    if stops and not silenced:
        assert outcome.failures[0].startswith("[gpu] The check data_leak failed: ")


# The host's key, and ours -----------------------------------------------------------------------


def key_fingerprint(public_key: Path) -> str:
    """``SHA256:...`` of a key, as ssh-keygen says it."""
    done = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(public_key)], capture_output=True, text=True, check=True
    )
    return done.stdout.split()[1]


@pytest.fixture(scope="module")
def strangers_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key that nobody knows."""
    key = tmp_path_factory.mktemp("stranger") / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=20
    )
    return key


@pytest.fixture
def fresh_connection(site: Site, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which no connection of an earlier run is used again."""
    folder = site.playbooks.control / site.folder.name
    folder.mkdir()
    return {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder)}


@pytest.fixture
def site(new_site: Callable[..., Site]) -> Site:
    """A project that has never been synced."""
    return new_site()


def with_known_hosts(site: Site, gpu_host: GpuHost, line: str) -> list[str]:
    """Arguments that put one line in place of the known host keys."""
    path = site.folder / "known_hosts"
    path.write_text(line, encoding="ascii")
    text = (site.folder / "hosts.yml").read_text(encoding="utf-8")
    assert str(gpu_host.known_hosts) in text
    text = text.replace(str(gpu_host.known_hosts), str(path))
    (site.folder / "hosts.yml").write_text(text, encoding="utf-8")
    return []


@pytest.mark.parametrize("checking", ["True", "False"])
def test_an_unknown_host_key_ends_the_run_with_its_fingerprint(
    site: Site, gpu_host: GpuHost, fresh_connection: dict[str, str], checking: str
) -> None:
    """No setting accepts one, Ansible's own for it included."""
    with_known_hosts(site, gpu_host, "")
    before = tree(site.host)
    outcome = site.run(env={**fresh_connection, "ANSIBLE_HOST_KEY_CHECKING": checking})
    said = (
        "[gpu] gpu can't be reached: the host's key is not known yet, so it can't be told from "
        "somebody else's."
    )
    check(site, outcome, before, said, 4)
    (hint,) = hints(outcome)
    shown = key_fingerprint(gpu_host.sshd.folder / "host_key.pub")
    assert hint.startswith(f"It shows ED25519 {shown}. Only if your provider shows the same ")
    assert "known_hosts" in hint


def test_a_changed_host_key_ends_the_run_with_its_fingerprint(
    site: Site, gpu_host: GpuHost, fresh_connection: dict[str, str], strangers_key: Path
) -> None:
    kind, key = strangers_key.with_suffix(".pub").read_text(encoding="ascii").split()[:2]
    with_known_hosts(site, gpu_host, f"[127.0.0.1]:{gpu_host.port} {kind} {key}\n")
    before = tree(site.host)
    outcome = site.run(env=fresh_connection)
    said = "[gpu] gpu can't be reached: the host's key is not the one that is pinned for it."
    check(site, outcome, before, said, 4)
    (hint,) = hints(outcome)
    shown = key_fingerprint(gpu_host.sshd.folder / "host_key.pub")
    assert hint.startswith(f"It shows ED25519 {shown}. If the machine was rented anew ")


def test_a_refused_key_ends_the_run(
    site: Site, fresh_connection: dict[str, str], strangers_key: Path
) -> None:
    before = tree(site.host)
    outcome = site.run("-e", f"ansible_ssh_private_key_file={strangers_key}", env=fresh_connection)
    check(site, outcome, before, "[gpu] gpu can't be reached: the host refuses the login.", 4)
    assert hints(outcome) == [
        "Check the user and the key (ansible_user, ansible_ssh_private_key_file)."
    ]


# The inventory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, {"others": {"hosts": {"a": {}}}}, {"gpu_hosts": {}}])
def test_an_inventory_without_gpu_hosts_is_no_silent_success(
    site: Site, content: dict[str, Any] | None
) -> None:
    inventory = site.folder / "other.yml"
    if content is not None:
        write_yaml(inventory, content)
    before = tree(site.host)
    outcome = site.playbooks.run(
        *("-i", str(inventory), "-e", f"project_root={site.root}"), cwd=site.folder
    )
    said = (
        f"The inventory {inventory} has no host in the group gpu_hosts. Check the path after -i; "
        "inventory/example shows how one looks."
    )
    check(site, outcome, before, said, 2)


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (
            second_host,
            {"REMOTE_HOST": "127.0.0.1"},
            "[ERROR]: REMOTE_HOST names one host, but the inventory has several GPU hosts. "
            "Unset it, or give an inventory with one host.",
        ),
        (
            lambda _site: ["--limit", "nowhere"],
            {},
            "[ERROR]: Specified inventory, host pattern and/or --limit leaves us with no hosts "
            "to target.",
        ),
    ],
    ids=["REMOTE_HOST with two hosts", "limit that matches nothing"],
)
def test_what_ansible_itself_refuses_is_one_sentence_too(
    site: Site, arguments: Callable[[Site], list[str]], env: dict[str, str], said: str
) -> None:
    before = tree(site.host)
    outcome = site.run(*arguments(site), env=env)
    assert outcome.status not in (0, None)
    assert outcome.seconds < SECONDS
    assert outcome.lines[-1] == said
    assert "Traceback" not in outcome.output
    assert "=> {" not in outcome.output
    assert tree(site.host) == before


# What is in the way on the host ------------------------------------------------------------------


def test_a_project_root_that_is_a_file_is_named(site: Site) -> None:
    site.root.write_text("a file\n", encoding="utf-8")
    before = tree(site.host)
    outcome = site.run()
    assert outcome.status == 2, outcome.output
    assert outcome.failures == [f"[gpu] {site.root} has 1 problem: {site.root} is not a folder"]
    assert tree(site.host) == before


def test_an_outputs_that_is_a_file_is_named(site: Site) -> None:
    site.root.mkdir()
    (site.root / "outputs").write_text("a file\n", encoding="utf-8")
    before = tree(site.host)
    outcome = site.run()
    assert outcome.status == 2, outcome.output
    failed = (
        f"[gpu] The check disk_writable failed: {site.root}/outputs is not a folder (outputs); "
    )
    assert outcome.failures[0].startswith(f"{failed}expected: writable, not full.")
    assert "=> {" not in outcome.output
    assert tree(site.host) == before


# On the GPU machine itself ----------------------------------------------------------------------


def run_locally(site: Site, *arguments: str) -> Outcome:
    """The playbook on this machine, which nothing is synced to."""
    given = {
        "project_root": str(site.root),
        "collect_dest": str(site.home),
        "gpu_gate": "off",
        "provision_python": "{{ ansible_playbook_python }}",
    }
    local = str(PROJECT / "inventory" / "local")
    return site.playbooks.run("-i", local, "-e", json.dumps(given), *arguments, cwd=site.folder)


@pytest.mark.parametrize("arguments", [[], ["--check"]], ids=["run", "check"])
def test_a_missing_file_where_nothing_is_synced_is_said_before_anything_is_changed(
    site: Site, arguments: list[str]
) -> None:
    before = tree(site.host)
    outcome = run_locally(site, *arguments)
    assert outcome.status == 2, outcome.output
    assert outcome.failures[0].startswith(
        "The check data_files failed: data/training/processed/style_sft_sample.jsonl: "
        "there is no such file."
    )
    (last,) = outcome.failures[1:]
    assert last.startswith("The run did not end well: The check data_files failed: ")
    assert last.endswith("; nothing was changed on the host.")
    assert "=> {" not in outcome.output
    assert tree(site.host) == before
    # A check writes nothing anywhere; a run keeps here what it found.
    assert site.home.exists() != ("--check" in arguments)


def test_a_bad_line_where_nothing_is_synced_is_named(site: Site) -> None:
    append_line("no JSON")(site)
    shutil.copytree(site.src, site.root)
    before = tree(site.host)
    outcome = run_locally(site)
    assert outcome.status == 2, outcome.output
    said = f"The check data_files failed: {STYLE}, line 37: not JSON (Expecting value at column 1)"
    assert outcome.failures[0].startswith(said)
    assert outcome.failures[0].endswith(PUT_RIGHT["data_files"])
    assert tree(site.host) == before
