"""Fetching a model: the real huggingface_hub against a hub on loopback that misbehaves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from remote_train import detached, fetch_model, model_cache, provision
from remote_train.errors import TrainError
from tests.unit.command_lines import command_lines
from tests.unit.hub_server import COMMIT, Handler, Repository, hub_server
from tests.unit.small_disk import small_disk

NAME = "owner/Model-1B"
WEIGHTS = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(93_750))
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"a": 1}',
    "tokenizer_config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "README.md": b"words",
    "pytorch_model.bin": b"pickle",
    "original/consolidated.safetensors": b"the same again",
}
MODEL = {"name": NAME, "revision": "main", "modelscope": False}


@pytest.fixture
def hub():
    with hub_server() as server:
        server.models[NAME] = Repository(dict(FILES))
        yield server


class Host:
    """A host with a cache of its own and the provisioning's own way to fetch."""

    def __init__(self, folder: Path, hub: Any) -> None:
        self.root = folder / "project"
        self.base = folder / "data"
        self.wanted = provision.Wanted(
            str(self.root),
            {},
            storage={"runtime_base": str(self.base), "hf_home": "", "modelscope_cache": ""},
            endpoint=hub.url,
            secrets={"HF_TOKEN": "hf_s3cret"},
            models=[MODEL],
        )
        (self.root / detached.FOLDER).mkdir(parents=True)

    def fetch(self, patience: float = 3.0, **model: Any) -> str:
        reporter = detached.Reporter(str(self.root), "token", ("hf_s3cret",))
        text = Path(fetch_model.__file__).read_text(encoding="utf-8")
        asked = {**MODEL, "patience": patience, **model}
        return provision.fetch(self.wanted, asked, sys.executable, reporter, text)

    def start(self) -> subprocess.Popen[bytes]:
        """The fetch as a process of its own."""
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.wanted.endpoint,
            "HF_HOME": str(self.base / "huggingface"),
        }
        command = [sys.executable, fetch_model.__file__]
        child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
        assert child.stdin
        child.stdin.write(json.dumps(MODEL).encode())
        child.stdin.close()
        return child

    def put_on(self, folder: Path) -> None:
        """Keep models in another folder."""
        self.base = folder
        storage = {**self.wanted.storage, "runtime_base": str(folder)}
        self.wanted = dataclasses.replace(self.wanted, storage=storage)

    @property
    def part(self) -> Path:
        digest = hashlib.sha256(WEIGHTS).hexdigest()
        repository = "models--" + NAME.replace("/", "--")
        return self.base / "huggingface/hub" / repository / "blobs" / f"{digest}.part"

    @property
    def log(self) -> str:
        return (self.root / detached.FOLDER / "work.log").read_text(encoding="utf-8")

    def cached(self) -> bool:
        return model_cache.is_cached(MODEL, self.wanted.storage, {})


@pytest.fixture
def host(tmp_path, hub):
    return Host(tmp_path, hub)


def test_a_model_is_fetched_once_without_pickle_and_copies(host, hub):
    assert not host.cached()
    folder = Path(host.fetch())
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.fetched("model.safetensors") == [""]
    assert host.cached()
    assert model_cache.place(MODEL, host.wanted.storage, {}) == str(folder)
    assert not host.part.exists()


def test_the_cache_is_the_librarys_own(host, hub):
    """What was fetched is what the training finds, with no way to the hub at all."""
    folder = host.fetch()
    script = (
        "import os; from huggingface_hub import hf_hub_download as get;"
        "names = ['config.json', 'tokenizer.json', 'model.safetensors'];"
        f"print({{os.path.dirname(get({NAME!r}, n, local_files_only=True)) for n in names}})"
    )
    environment = {**os.environ, "HF_HOME": str(host.base / "huggingface")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str({folder})


@pytest.mark.parametrize("cuts", [[1_000_000], [1_000_000, 500_000, 0, 1_000]])
def test_a_fetch_that_is_cut_goes_on_where_it_was(host, hub, cuts):
    hub.cuts = list(cuts)
    folder = Path(host.fetch())
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    starts = [int(r.removeprefix("bytes=").rstrip("-") or 0) for r in hub.fetched("safetensors")]
    assert starts == [sum(cuts[:n]) for n in range(len(cuts) + 1)]
    assert "cut at 1000000 of 3000000 bytes" in host.log


def test_a_fetch_whose_process_was_killed_goes_on_where_it_was(host, hub):
    hub.cuts = [2_000_000, *[0] * 100]
    child = host.start()
    deadline = time.monotonic() + 20
    while not host.part.exists() or host.part.stat().st_size < 2_000_000:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    hub.cuts.clear()
    hub.asked.clear()
    assert (Path(host.fetch()) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.fetched("safetensors") == ["bytes=2000000-"]
    assert "goes on at 2000000 of 3000000 bytes" in host.log


def test_a_hub_that_knows_no_ranges_is_asked_for_all_of_it(host, hub):
    hub.ranges = False
    hub.cuts = [1_000_000]
    assert (Path(host.fetch()) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_busy_hub_is_asked_again(host, hub):
    hub.busy = 2
    assert (Path(host.fetch()) / "model.safetensors").read_bytes() == WEIGHTS


def test_other_bytes_than_the_hub_says_are_thrown_away(host, hub):
    hub.wrong = True
    with pytest.raises(TrainError, match="another SHA-256") as caught:
        host.fetch()
    assert caught.value.category == "integrity"
    assert not host.part.exists()
    assert not host.cached()


def test_a_fetch_that_gives_up_keeps_what_it_has(host, hub):
    hub.cuts = [1_000_000, *[0] * 1000]
    with pytest.raises(TrainError, match="can't be fetched") as caught:
        host.fetch(patience=1.0)
    assert "What has arrived is kept" in caught.value.hint
    assert host.part.stat().st_size == 1_000_000


@pytest.mark.parametrize(
    ("change", "model", "words", "hint"),
    [
        ({}, {"name": "owner/none"}, "There is no model owner/none on", "hf_token"),
        ({"token": "hf_other"}, {}, "There is no model owner/Model-1B on", "private"),
        ({"token": "hf_other", "gated": True}, {}, "is gated on", "Accept its terms"),
        ({}, {"revision": "v9"}, "has no revision v9", "model_revision"),
        ({}, {"name": "a b/c"}, "'a b/c' can't be the name of a model", "owner/name"),
        ({"files": {"config.json": b"{}", "pytorch_model.bin": b""}}, {}, "no weights", "pickled"),
    ],
    ids=["404", "401", "gated", "revision", "name", "pickle"],
)
def test_why_a_model_cannot_be_had(host, hub, change, model, words, hint):
    hub.models[NAME] = Repository(**{"files": dict(FILES), **change})
    with pytest.raises(TrainError) as caught:
        host.fetch(**model)
    assert words in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.category == "model_download"
    assert "\n" not in caught.value.message


def test_a_token_opens_what_is_private(host, hub):
    hub.models[NAME] = Repository(dict(FILES), token=host.wanted.secrets["HF_TOKEN"])
    assert host.fetch()
    for path in (host.root / detached.FOLDER).iterdir():
        assert b"s3cret" not in path.read_bytes(), path


def test_a_hub_that_cannot_be_reached(host, hub):
    host.wanted = dataclasses.replace(host.wanted, endpoint="http://127.0.0.1:9")
    with pytest.raises(TrainError, match=r"can't be fetched from http://127.0.0.1:9") as caught:
        host.fetch(patience=1.0)
    assert "hf_endpoint" in caught.value.hint


def test_a_disk_without_room_is_said_before_anything_is_fetched(host, hub, tmp_path):
    program = tmp_path / "small.py"
    program.write_text(
        "import sys, shutil, collections\n"
        "usage = collections.namedtuple('usage', 'total used free')\n"
        "shutil.disk_usage = lambda _path: usage(10**7, 9 * 10**6, 10**6)\n"
        + Path(fetch_model.__file__)
        .read_text(encoding="utf-8")
        .replace("from __future__ import annotations", "")
    )
    reporter = detached.Reporter(str(host.root), "token")
    with pytest.raises(TrainError, match="no room") as caught:
        provision.fetch(host.wanted, MODEL, sys.executable, reporter, program.read_text())
    assert "0.0 GB are missing" in caught.value.message
    assert caught.value.category == "infra"
    assert hub.fetched("safetensors") == []


def test_a_disk_that_fills_on_the_way_is_said(host, hub):
    """The small files are in no look at the room."""
    hub.models[NAME] = Repository({**FILES, "tokenizer.json": bytes(3_000_000)})
    hub.models[NAME].files["model.safetensors"] = b"x" * 1000
    with small_disk("size=1m") as disk:
        host.put_on(disk)
        with pytest.raises(TrainError, match="no room for the model") as caught:
            host.fetch()
        assert f"The disk of {disk}/huggingface/hub has" in caught.value.message
        assert "runtime_base" in caught.value.hint
        assert caught.value.category == "infra"


def test_a_disk_that_can_only_be_read_is_said(host, hub):
    with small_disk("ro") as disk:
        host.put_on(disk)
        with pytest.raises(TrainError, match=r"can't be kept in .*: Read-only") as caught:
            host.fetch()
        assert str(disk) in caught.value.message
        assert "runtime_base" in caught.value.hint
        assert caught.value.category == "infra"


def test_a_hub_that_never_answers_is_given_up(host):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        host.wanted = dataclasses.replace(host.wanted, endpoint=endpoint)
        began = time.monotonic()
        with pytest.raises(TrainError, match="can't be fetched from " + endpoint) as caught:
            host.fetch(patience=1.0)
        assert time.monotonic() - began < 30
    assert "hf_endpoint" in caught.value.hint
    assert caught.value.category == "model_download"


def test_a_token_is_on_no_command_line_and_in_no_file(host, hub, monkeypatch):
    seen = []
    secret = b"hf_" + b"s3cret"
    answer = Handler._answer

    def looked_at(self: Any) -> None:
        seen.append(secret in command_lines())
        answer(self)

    monkeypatch.setattr(Handler, "_answer", looked_at)
    hub.models[NAME] = Repository(dict(FILES), token=secret.decode())
    hub.cuts = [1_000_000]
    host.fetch()
    hub.models[NAME] = Repository(dict(FILES), token="hf_other")  # noqa: S106
    with pytest.raises(TrainError) as caught:
        host.fetch()
    assert secret.decode() not in str(caught.value)
    assert seen
    assert not any(seen)
    for folder in (host.root, host.base):
        for path in folder.rglob("*"):
            if path.is_file():
                assert secret not in path.read_bytes(), path


def test_progress_is_in_bytes_and_reaches_all_of_them(host, hub, monkeypatch):
    shown = []
    monkeypatch.setattr(
        detached.Reporter, "show", lambda _self, text, **facts: shown.append((text, facts))
    )
    hub.cuts = [1_000_000, 500_000]
    host.fetch()
    counted = [facts for _text, facts in shown if facts.get("of")]
    sizes = [facts["done"] for facts in counted]
    assert sizes == sorted(sizes)
    assert len(WEIGHTS) <= sizes[-1] <= counted[-1]["of"]
    assert counted[-1]["of"] == sum(
        len(FILES[n])
        for n in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    )
    assert any(text == f"fetching {NAME}: model.safetensors" for text, _ in shown)


# ModelScope, through its own library


@pytest.fixture
def modelscope(host, tmp_path):
    """The library's one function that is used, which notes how it was called."""
    library = tmp_path / "library" / "modelscope"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text(
        "import os\n"
        "def snapshot_download(name, revision):\n"
        "    if name == 'owner/none': raise ValueError('no such model\\nmore')\n"
        "    folder = os.path.join(os.environ['MODELSCOPE_CACHE'], 'models', name, revision)\n"
        "    os.makedirs(folder)\n"
        "    return folder\n"
    )
    host.wanted.secrets["PYTHONPATH"] = str(library.parent)
    return host


def test_modelscope_is_asked_by_its_own_names(modelscope):
    folder = modelscope.fetch(modelscope=True)
    assert folder == f"{modelscope.base}/modelscope/models/{NAME}/master"


def test_modelscope_says_no(modelscope):
    with pytest.raises(TrainError, match=r"from ModelScope: no such model\. ") as caught:
        modelscope.fetch(modelscope=True, name="owner/none")
    assert caught.value.category == "model_download"


def test_modelscope_without_its_library(host):
    with pytest.raises(TrainError, match="needs the package modelscope"):
        host.fetch(modelscope=True)


# Which files, which models, and whether they are there


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (
            list(FILES),
            ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"],
        ),
        (
            ["model-1-of-2.safetensors", "model-2-of-2.safetensors", "consolidated.safetensors"],
            ["model-1-of-2.safetensors", "model-2-of-2.safetensors"],
        ),
        (["other.safetensors", "vocab.txt", "a.py", "b.pt"], ["other.safetensors", "vocab.txt"]),
        ([], []),
    ],
)
def test_which_files_are_fetched(names, chosen):
    assert fetch_model.choose(names) == chosen


def stage(name: str = NAME, **more: Any) -> dict[str, Any]:
    model = {"model_name_or_path": name, "model_revision": "main", "use_modelscope": False}
    return {"command": [], "model": {**model, **more.pop("model", {})}, **more}


def test_models_by_name_are_each_fetched_once_and_folders_never(tmp_path, monkeypatch):
    (tmp_path / "models/mine").mkdir(parents=True)
    stages = [
        stage(),
        stage(),
        stage(model={"model_revision": "v2"}),
        stage("models/mine"),
        stage("/nowhere/model"),
        stage("./nowhere"),
        stage("other/model", command=["sh"]),
    ]
    found = model_cache.by_name(stages, str(tmp_path))
    assert found == [MODEL, {**MODEL, "revision": "v2"}]
    # On the controller no folder is looked for: the one that it stands in says nothing of the host.
    monkeypatch.chdir(tmp_path)
    assert len(model_cache.by_name([stage("models/mine")], None)) == 1
    # A folder that sync will bring is one already.
    for coming, named in (
        (["models/new/config.json"], False),
        (["models/newer/x"], True),
        (["models/new"], True),
    ):
        names = [one["name"] for one in model_cache.by_name([stage("models/new")], "/no", coming)]
        assert names == (["models/new"] if named else []), coming


def test_where_the_hubs_files_lie_is_what_its_library_says(tmp_path):
    """The real huggingface_hub as the oracle."""
    script = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    base = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    for storage, more in (
        ({}, {}),
        ({}, {"XDG_CACHE_HOME": "/x"}),
        ({}, {"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}),
        ({}, {"HF_HOME": "~/h"}),
        ({}, {"HF_HUB_CACHE": "/big/hub", "HF_HOME": "/h"}),
        ({"runtime_base": "/data"}, {}),
        ({"runtime_base": "/data", "hf_home": "/own"}, {"HF_HOME": "/h"}),
        ({"runtime_base": "/data"}, {"HF_HUB_CACHE": "/big/hub"}),
    ):
        environment = {**base, **more, **model_cache.folders(storage)}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found = model_cache.cache_folder(False, storage, {**base, **more})
        assert found.replace(os.path.expanduser("~"), str(tmp_path)) == done.stdout.strip(), more


def lay(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".").replace("_safe", ".safe")).write_text(content)


INDEX = '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'


@pytest.mark.parametrize(
    ("files", "whole"),
    [
        (["config.json", "tokenizer.json", "model.safetensors"], True),
        (["config.json", "tokenizer_config.json", "model.safetensors"], True),
        (["config.json", "model.safetensors"], False),
        (["tokenizer.json", "model.safetensors"], False),
        (["config.json", "tokenizer.json"], False),
        (["config.json", "tokenizer.json", "index", "one.safetensors", "two.safetensors"], True),
        (["config.json", "tokenizer.json", "index", "one.safetensors"], False),
        (["config.json", "tokenizer.json", "model-00001-of-00001.safetensors"], False),
        (["config.json", "tokenizer.json", "adapter_model.safetensors"], False),
    ],
)
def test_a_model_is_there_when_all_that_is_loaded_is(tmp_path, files, whole):
    snapshot = tmp_path / "hub" / "models--owner--Model-1B" / "snapshots" / COMMIT
    refs = snapshot.parents[1] / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    snapshot.mkdir(parents=True)
    for name in files:
        target = "model.safetensors.index.json" if name == "index" else name
        (snapshot / target).write_text(INDEX if name == "index" else "{}")
    assert model_cache.is_cached(MODEL, {"hf_home": str(tmp_path)}, {}) is whole
    assert model_cache.is_cached(MODEL, {}, {"HF_HOME": str(tmp_path)}) is whole
    by_commit = {**MODEL, "revision": COMMIT}
    assert model_cache.is_cached(by_commit, {}, {"HF_HUB_CACHE": str(tmp_path / "hub")}) is whole
    assert not model_cache.is_cached({**MODEL, "revision": "v2"}, {}, {"HF_HOME": str(tmp_path)})


def test_a_model_of_modelscope_is_found_by_its_name_there(tmp_path):
    model = {**MODEL, "name": "owner/Model-1.5B", "modelscope": True}
    storage = {"runtime_base": str(tmp_path)}
    assert not model_cache.is_cached(model, storage, {})
    folder = tmp_path / "modelscope/models/owner/Model-1___5B"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    assert model_cache.place(model, storage, {}) == str(folder)
