"""The fingerprint: what changes weights changes it, and nothing else does, under every Python."""

from __future__ import annotations

import ast
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import fingerprint
from remote_train.errors import TrainError
from tests.unit.stage_host import BENCHMARK, CODE, HOUSE, TRAIN, build, project, put, stage_of

TRAINING = HOUSE / "training"
MODULES = sorted(path.name for path in TRAINING.glob("*.py"))

keys = st.text(max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(keys, json_values, max_size=4)


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# Digests and differences


@given(json_objects, json_objects)
def test_different_inputs_have_different_digests_and_a_line_that_says_so(before, after):
    differ = canonical(before) != canonical(after)
    assert (fingerprint.digest(before) != fingerprint.digest(after)) is differ
    assert bool(fingerprint.difference(before, after)) is differ


@given(json_objects, st.data())
def test_one_changed_field_is_one_line_with_its_path(inputs, data):
    settings = {"seed": 42, **inputs}
    name = data.draw(st.sampled_from(sorted(settings)))
    value = data.draw(json_values.filter(lambda v: not isinstance(v, dict)))
    after = {**settings, name: value}
    lines = fingerprint.difference({"settings": settings}, {"settings": after})
    if isinstance(settings[name], dict):
        assert len(lines) == 1
    if canonical(after) != canonical(settings):
        assert lines[0].startswith(f"settings.{name} ")
    else:
        assert lines == []


@given(json_objects)
def test_the_order_of_keys_and_a_trip_through_json_change_nothing(inputs):
    turned = dict(reversed(list(inputs.items())))
    assert fingerprint.digest(turned) == fingerprint.digest(inputs)
    assert fingerprint.digest(json.loads(json.dumps(inputs))) == fingerprint.digest(inputs)


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ({"a": 1}, {"a": 1}, []),
        (
            {"settings": {"learning_rate": 0.0001}},
            {"settings": {"learning_rate": 0.0002}},
            ["settings.learning_rate 0.0001 -> 0.0002"],
        ),
        (
            {"code": "sha256:" + "a" * 64},
            {"code": "sha256:" + "b" * 64},
            ["code sha256:aaaaaaaa -> sha256:bbbbbbbb"],
        ),
        ({"data": {}}, {"data": {"a.jsonl": "x"}}, ["data.a.jsonl (absent) -> x"]),
        ({"data": {"a": "x"}}, {"data": {}}, ["data.a x -> (absent)"]),
        ({"packages": None}, {"packages": {}}, ["packages (none) -> {}"]),
        ({"x": None}, {}, ["x (none) -> (absent)"]),
        ({"x": 1}, {"x": True}, ["x 1 -> True"]),
        ({"x": 4}, {"x": 4.0}, ["x 4 -> 4.0"]),
        ({"m": ["a"]}, {"m": ["a", "b"]}, ["m ['a'] -> ['a', 'b']"]),
        ({"b": 1, "a": 1}, {"a": 2, "b": 2}, ["a 1 -> 2", "b 1 -> 2"]),
    ],
)
def test_differences_in_words(before, after, lines):
    assert fingerprint.difference(before, after) == lines


def test_names_in_other_encodings_have_digests_of_their_own():
    raw, text = b"\xc3\xa9".decode("ascii", "surrogateescape"), "é"
    assert fingerprint.digest({raw: 1}) != fingerprint.digest({text: 1})
    assert fingerprint.digest("\ud800").startswith("sha256:")


# What is ignored

INPUTS = {
    "code": "c",
    "data": {"data/a.b.jsonl": "1", "data/a": {"b.jsonl": 2}},
    "settings": {"seed": 1, "lora_r": 2},
    "packages": None,
}


@pytest.mark.parametrize(
    ("field", "kept"),
    [
        ("code", {k: v for k, v in INPUTS.items() if k != "code"}),
        ("settings", {k: v for k, v in INPUTS.items() if k != "settings"}),
        ("settings.seed", {**INPUTS, "settings": {"lora_r": 2}}),
        ("data.data/a.b.jsonl", {**INPUTS, "data": {"data/a": {}}}),
        ("settings.sed", INPUTS),
        ("packages.torch", INPUTS),
        ("settings.seed.deeper", INPUTS),
        ("", INPUTS),
    ],
)
def test_ignored_fields_are_left_out(field, kept):
    before = json.dumps(INPUTS)
    assert fingerprint.without(INPUTS, [field]) == kept
    assert json.dumps(INPUTS) == before


@given(json_objects)
def test_ignoring_nothing_changes_nothing(inputs):
    assert canonical(fingerprint.without(inputs, [])) == canonical(inputs)


# Code in a form that holds what it does


SOURCE = '''
"""What this is."""
import os  # a comment
RATE = 1e-4
"""An attribute's docstring."""

class Fit:
    """A class."""

    def step(self, x: int = 1) -> str:
        """A function."""
        text = "kept"
        return f"{x!r:>{RATE}}" + text + "A function."
'''


def form(source: str) -> str:
    return fingerprint.canonical_code(source.encode(), "fit.py")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  # a comment", ""),
        ("import os", "# more\n\n\nimport os"),
        ('"""What this is."""', '"""What it was."""'),
        ('"""What this is."""', ""),
        ('"""An attribute\'s docstring."""', '""'),
        ('    """A class."""', ""),
        ('        """A function."""', "        'Other words'"),
        ("RATE = 1e-4", "RATE = (\n    1E-4\n)"),
        ("1e-4", "0.0001"),
        ('"kept"', "'ke' 'pt'"),
        ('"kept"', '"\\x6bept"'),
        ("import os", "import os;"),
    ],
)
def test_what_a_reader_sees_changes_no_digest(before, after):
    assert SOURCE.count(before) == 1
    assert form(SOURCE.replace(before, after)) == form(SOURCE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1e-4", "2e-4"),
        ("1e-4", "None"),
        ("1e-4", "'1e-4'"),
        ("1e-4", "-1e-4"),
        ("RATE = 1e-4", "RATE = True"),
        ("x: int = 1", "x: int = 1.0"),
        ("x: int = 1", "x: int = True"),
        ("x: int = 1", "*, x: int = 1"),
        ("x: int = 1", "x: float = 1"),
        ('"kept"', '"changed"'),
        ('"kept"', 'b"kept"'),
        ("!r", "!s"),
        (":>{RATE}", ""),
        ("import os", "from os import path"),
        ("def step", "async def step"),
        ("class Fit", "class Fit(list)"),
        ("+ text", "- text"),
        ("        text =", "        if x: text ="),
        ('"A function."\n', '"Another."\n'),
    ],
)
def test_what_changes_the_program_changes_the_digest(before, after):
    assert SOURCE.count(before) == 1
    assert form(SOURCE.replace(before, after)) != form(SOURCE)


def test_no_default_is_not_a_default_of_none():
    assert form("def f(a): pass") != form("def f(a=None): pass")
    assert form("return_ = None") != form("return_ = ...")
    assert form("def f(): return") != form("def f(): return None")
    assert form("x = {**a}") != form("x = {None: a}")


@pytest.mark.parametrize("name", MODULES)
def test_formatting_of_the_real_modules_changes_nothing(name):
    source = (TRAINING / name).read_bytes()
    formatted = ast.unparse(ast.parse(source)).encode()
    assert formatted != source
    assert fingerprint.canonical_code(formatted, name) == fingerprint.canonical_code(source, name)


# The same under every Python

ZOO = '''
import asyncio, os.path as p
from . import a
from ..b import (c as d,)
global_name: "list[int]" = [1_000, 0x1F, 1e400, 1j, -0.0, 10**30]
text = "a" f"{x}" 'b' f"{x!r:>{width}.{n}f} {{}} {y = } {f'{z}'}" "c"
empty = f"" f"{x:}"
more = """a
\\t\\N{DIGIT ONE}\\ud800é""" r"\\n" u"kind"
raw = b"\\xff" rb"\\n"
@decorated(1, *args, k=2, **more)
async def f(a, b=1, /, c=..., *rest: int, d, e=None, **others) -> "x":
    global global_name
    async with a as b, c:
        await b
    async for i in x:
        yield i
    else:
        return
    def inner():
        nonlocal a
        a += 1
        return [y async for y in z if y if not y], {k: v for k, v in w}, {*q}, (g for g in h)
class K(Base, metaclass=M):
    field: int
    _: 'str' = lambda *, a, b=2: (yield)
while (n := next(it)) is not None and n not in (1,) or not n:
    if a < b <= c != d: break
    elif x: continue
    else: pass
for i, (j, *k) in enumerate(l): del i, j[0], k.m
try:
    raise E from e
except (A, B) as error:
    assert x, "words"
except:
    pass
else: ...
finally:
    s[1:2, ::3, ..., -1], s[()], s[a, b], s[*t] if False else s[:]
with open(p) as (q, r), s: x = y = z = 1; x @= y; x //= 2; x **= ~y << 2 | z ^ 1 & +w
print(*a, sep="", **b, end="" if c else d)
ﬁ = 1
'''.replace(", s[*t] if False else s[:]", ", s[:]")  # not for Python 3.9 and 3.10

SCRIPT = """
import json, sys
from remote_train import fingerprint
training, zoo = sys.argv[1:]
print(json.dumps({
    "code": fingerprint.code_digests(training),
    "closure": fingerprint.import_closure(training, "stage"),
    "zoo": fingerprint.canonical_code(zoo.encode(), "zoo.py"),
    "digest": fingerprint.digest({"b": [1, 1.0, 1e-05, None, True], "a": "\\u00e9\\ud800"}),
}))
"""


def answer_of(python: str) -> Any:
    done = subprocess.run(
        [python, "-c", SCRIPT, str(TRAINING), ZOO],
        env={"PYTHONPATH": str(HOUSE / "plugins" / "module_utils"), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@functools.cache
def our_answer() -> Any:
    return answer_of(sys.executable)


@functools.cache
def pythons_here() -> dict[str, str]:
    """The other Pythons of this machine, by ``3.x``: on the PATH, or where pyenv keeps them."""
    installed = sorted(Path.home().glob(".pyenv/versions/*/bin/python"))
    found = {}
    for version in ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14"):
        tried = [str(path) for path in installed if path.parts[-3].startswith(f"{version}.")]
        for python in filter(None, [*tried, shutil.which(f"python{version}")]):
            check = f"import sys; assert sys.version.startswith('{version}.')"
            tried_out = subprocess.run([python, "-c", check], capture_output=True, check=False)
            if tried_out.returncode == 0:
                found[version] = python
                break
    return found


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"])
def test_code_has_one_digest_under_every_python(version):
    python = pythons_here().get(version)
    if python is None:
        pytest.skip(f"there is no Python {version} on the PATH or in ~/.pyenv/versions")
    assert answer_of(python) == our_answer()


def test_the_code_of_the_training_can_be_read_by_python_3_9():
    for name in MODULES:
        ast.parse((TRAINING / name).read_bytes(), name, feature_version=(3, 9))


# Which modules count


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "training"
    shutil.copytree(TRAINING, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


IMPORTS = """
import sys, json
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

class Anything:
    '''Stands in for torch and the like, which take seconds to import.'''
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "peft", "accelerate", "safetensors"):
            return ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return MagicMock(__path__=[], __spec__=spec, __name__=spec.name)
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Anything())
import importlib
importlib.import_module("training." + sys.argv[1])
print(json.dumps(sorted(n[9:] + ".py" for n in sys.modules if n.startswith("training."))))
"""


@pytest.mark.parametrize("entry", ["fit", "evaluate", "stage"])
def test_every_module_that_python_imports_is_counted(entry):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, entry], cwd=HOUSE, capture_output=True, check=True
    )
    imported = json.loads(done.stdout)
    assert f"{entry}.py" in imported
    assert len(imported) > 3
    assert set(imported) <= set(fingerprint.import_closure(str(TRAINING), entry))


def test_every_module_of_the_training_changes_what_it_should(package, monkeypatch):
    """A constant more in one module: of the two digests, exactly the right one differs."""
    once = functools.cache(fingerprint.canonical_code)  # 25 modules in 25 versions take seconds
    monkeypatch.setattr(fingerprint, "canonical_code", once)
    weights = set(fingerprint.import_closure(str(package), "fit"))
    assert {"fit.py", "model.py", "masking.py", "template.py", "seeds.py"} <= weights
    before = fingerprint.code_digests(str(package))
    changed = {}
    for name in MODULES:
        source = (package / name).read_bytes()
        (package / name).write_bytes(source + b"\nNEW = 1\n")
        after = fingerprint.code_digests(str(package))
        (package / name).write_bytes(source)
        changed[name] = (after[0] != before[0], after[1] != before[1])
    assert {name for name, which in changed.items() if which[0]} == weights
    scorer = {name for name, which in changed.items() if which[1]}
    assert {"evaluate.py", "scores.py", "generate.py", "report.py", "card.py"} <= scorer
    assert not scorer & weights
    assert not {"__main__.py", "result.py", "progress.py"} & (weights | scorer)


def test_a_comment_in_the_training_changes_neither_digest(package):
    before = fingerprint.code_digests(str(package))
    for name in MODULES:
        with (package / name).open("a") as stream:
            stream.write("\n# a word\n")
    (package / "notes.md").write_text("more\n")
    assert fingerprint.code_digests(str(package)) == before


@pytest.mark.parametrize(
    "statement",
    [
        "from training.b import x",
        "from training.b.deeper import x",
        "from training import b",
        "import training.b",
        "import os, training.b as c",
        "from . import b",
        "from .b import x",
        "def f():\n    from training import b, os",
        "try:\n    import training.b\nexcept ImportError:\n    pass",
    ],
)
def test_each_form_of_an_import_is_followed(tmp_path, statement):
    package = tmp_path / "training"
    put(package, {"a.py": statement.encode(), "b.py": b"import training.a\n", "z.py": b""})
    assert fingerprint.import_closure(str(package), "a") == ["a.py", "b.py"]


@pytest.mark.parametrize(
    "statement",
    ["import b", "from b import x", "from other.b import x", "import training", "b = 1"],
)
def test_what_is_no_import_of_the_package_is_not_followed(tmp_path, statement):
    package = tmp_path / "training"
    put(package, {"a.py": statement.encode(), "b.py": b""})
    assert fingerprint.import_closure(str(package), "a") == ["a.py"]


def test_a_folder_without_the_training_is_named(tmp_path):
    with pytest.raises(TrainError, match="The training's code is not in") as caught:
        fingerprint.code_digests(str(tmp_path))
    assert caught.value.category == "integrity"


# The base model


def base(root: Path, name: str = "base", revision: str = "main") -> str:
    model = {"model_name_or_path": name, "model_revision": revision}
    return fingerprint.base_model(model, str(root))


MODEL = {"config.json": b"{}", "model.safetensors": b"w", "tokenizer.json": b"{}"}


def test_a_name_on_a_hub_is_what_was_asked_for(tmp_path):
    assert base(tmp_path, "Qwen/Qwen3-8B") == "Qwen/Qwen3-8B@main"
    assert base(tmp_path, "Qwen/Qwen3-8B", "v2") == "Qwen/Qwen3-8B@v2"


def test_a_folder_is_its_bytes_wherever_it_lies(tmp_path):
    put(tmp_path / "base", MODEL)
    put(tmp_path / "elsewhere", MODEL)
    there = base(tmp_path)
    assert there.startswith("sha256:")
    assert base(tmp_path, "elsewhere") == there
    assert base(Path("/"), str(tmp_path / "base")) == there
    assert base(tmp_path, revision="other") == there


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("model.safetensors", True),
        ("config.json", True),
        ("shards/model-00001.safetensors", True),
        ("chat_template.jinja", True),
        ("merges.txt", True),
        ("README.md", False),
        ("training_args.bin", False),
        (".cache/huggingface/x.json", False),
        (".gitattributes.json", False),
    ],
)
def test_which_files_of_a_model_count(tmp_path, name, counts):
    put(tmp_path / "base", MODEL)
    before = base(tmp_path)
    put(tmp_path / "base", {name: b"changed"})
    assert (base(tmp_path) != before) is counts


# The inputs of a stage


def inputs(root: Path, coming: dict[str, str] | None = None, **changes: Any) -> Any:
    stage = stage_of(build(project_root=str(root), **changes))
    return fingerprint.stage_inputs(stage, str(root), CODE, {"torch": "2"}, "Q@main", coming)


def test_inputs_are_those_of_the_design_brief(tmp_path):
    trained, evaluated = inputs(project(tmp_path))
    assert list(trained) == ["code", "data", "base_model", "settings", "packages"]
    assert trained["code"] == CODE[0]
    assert list(trained["data"]) == [TRAIN]
    assert trained["data"][TRAIN].startswith("sha256:")
    assert trained["base_model"] == "Q@main"
    assert evaluated["scorer"] == CODE[1]
    assert list(evaluated["data"]) == [BENCHMARK]
    assert evaluated["settings"] == {"max_new_tokens": 512, "score_base": True}


@pytest.mark.parametrize(
    ("changes", "trains", "evaluates"),
    [
        ({"learning_rate": 1}, True, False),
        ({"seed": 43}, True, False),
        ({"target_modules": ["q_proj"]}, True, False),
        ({"stage_settings": {"style": {"lora_r": 8}}}, True, False),
        ({"max_new_tokens": 5}, False, True),
        ({"score_base": False}, False, True),
        # What changes speed, money or places, and no weight.
        ({"eval_batch_size": 1}, False, False),
        ({"hf_token": "secret", "hf_home": "/x", "hf_endpoint": "m"}, False, False),
        ({"log_dir": "logs", "runtime_base": "/data"}, False, False),
        ({"gpu_gate": "off", "acceptance_gate": "strict", "force": True}, False, False),
        ({"stage_thresholds": {"style": {"response_format": 1}}}, False, False),
        ({"stage_settings": {"writing": {"lora_r": 8}}}, False, False),
        ({"target_modules": ["all-linear"]}, False, False),
    ],
    ids=str,
)
def test_which_settings_change_which_fingerprint(tmp_path, changes, trains, evaluates):
    root = project(tmp_path)
    before, after = inputs(root), inputs(root, **changes)
    differ = [
        fingerprint.digest(b) != fingerprint.digest(a) for b, a in zip(before, after, strict=True)
    ]
    assert differ == [trains, evaluates]
    assert "secret" not in json.dumps(after)


def test_data_counts_as_sync_will_bring_it(tmp_path):
    root = project(tmp_path)
    trained, evaluated = inputs(root, coming={TRAIN: "a" * 64, BENCHMARK: "b" * 64})
    assert trained["data"] == {TRAIN: "sha256:" + "a" * 64}
    assert evaluated["data"] == {BENCHMARK: "sha256:" + "b" * 64}
    on_host, _ = inputs(root, coming={"other": "a" * 64})
    assert on_host == inputs(root)[0]


def test_data_that_is_not_there_yet_has_no_digest(tmp_path):
    assert inputs(tmp_path)[0]["data"] == {TRAIN: None}


def test_the_users_own_program_counts_by_its_files_and_its_words(tmp_path):
    root = project(tmp_path)
    put(root, {"code/run.sh": b"echo 1"})
    own = {"stage_command": "sh code/run.sh {stage}", "stage_code": ["code/run.sh"]}
    trained, evaluated = inputs(root, **own)
    assert trained["command"] == ["sh", "code/run.sh", "style"]
    assert evaluated == {"data": {}, "scorer": None, "settings": {}}
    put(root, {"code/run.sh": b"echo 2"})
    assert fingerprint.difference(trained, inputs(root, **own)[0])[0].startswith("code ")
    words = {**own, "stage_command": "sh -e code/run.sh {stage}"}
    assert inputs(root, **words)[0]["command"] != trained["command"]
    # This project's own training isn't what such a stage runs.
    other = fingerprint.stage_inputs(
        stage_of(build(**own)), str(root), ("sha256:x", "sha256:y"), {"torch": "2"}, "Q@main"
    )
    assert other[0] == inputs(root, **own)[0]


def test_code_of_the_users_that_is_missing_is_another_input(tmp_path):
    before = fingerprint.files_digest(str(tmp_path), ["run.sh"])
    put(tmp_path, {"run.sh": b""})
    assert fingerprint.files_digest(str(tmp_path), ["run.sh"]) != before
