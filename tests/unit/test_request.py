"""The request: every setting checked, and every mistake answered by one sentence."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import request
from remote_train.errors import TrainError
from tests.unit.stage_host import build, kinds, stage_of, values
from training.errors import JobError
from training.settings import read_settings

OWN = {"name": "physics", "train": ["data/p.jsonl"], "adapter": "adapter_physics"}


def own_stage(**changes: Any) -> list[dict[str, Any]]:
    return [{**OWN, **changes}]


def refused(**changes: Any) -> TrainError:
    with pytest.raises(TrainError) as caught:
        build(**changes)
    return caught.value


def test_the_defaults_give_the_four_stages():
    made = build()
    assert [stage["name"] for stage in made["stages"]] == ["sample", "style", "writing", "all"]
    assert [stage["tag"] for stage in made["stages"]] == ["sample", "style", "writing", "multitask"]
    assert made["selected"] == ["sample", "style", "writing", "all"]
    assert made["steps"] == list(request.STEPS)
    style = stage_of(made)
    assert style["train"] == ["data/training/processed/style_sft.jsonl"]
    assert style["adapter_dir"] == "outputs/adapter/adapter_style"
    assert style["command"] == []
    assert stage_of(made, "all")["adapter_dir"] == "outputs/adapter/adapter_multitask"


def test_a_request_travels_as_json_unchanged():
    made = build(stage_command="bash run.sh {stage}", extra_stages=own_stage())
    assert json.loads(json.dumps(made)) == made


def test_each_training_setting_is_in_exactly_one_part_of_a_stage():
    style = stage_of(build())
    names = Counter(
        name
        for part in ("settings", "model", "evaluation", "evaluation_speed")
        for name in style[part]
    )
    assert set(names.values()) == {1}
    assert set(names) == {
        *request.TRAINING_SETTINGS,
        *request.MODEL_SETTINGS,
        *request.EVALUATION_SETTINGS,
        *request.EVALUATION_SPEED,
    }


def test_where_models_lie_is_an_absolute_path():
    given = {"runtime_base": "/data/", "hf_home": "~/hf", "modelscope_cache": ""}
    assert build(**given)["storage"] == {**given, "runtime_base": "/data"}
    for name, value in (("runtime_base", "~/data"), ("runtime_base", "data"), ("hf_home", "hf")):
        assert (
            f"{name} is {value!r}, which is not an absolute path"
            in refused(**{name: value}).message
        )


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("", "project_root is missing"),
        (None, "project_root is missing"),
        ("relative/path", "not a plain absolute path"),
        ("~/tutor", "not a plain absolute path"),
        ("/srv/../etc", "not a plain absolute path"),
        ("/srv//tutor", "not a plain absolute path"),
    ],
)
def test_the_project_root_is_asked_for_by_name(root, words):
    error = refused(project_root=root)
    assert words in error.message
    assert "project_root" in str(error)
    assert error.hint


def test_a_slash_at_the_end_of_the_project_root_means_nothing():
    assert build(project_root="/srv/tutor/") == build(project_root="/srv/tutor")


@pytest.mark.parametrize(
    ("value", "meant"),
    [(v, True) for v in ("1", "true", "True", "YES", "y", "on", " on ", 1, True)]
    + [(v, False) for v in ("0", "false", "FALSE", "no", "N", "off", 0, False)],
)
def test_booleans_as_people_write_them(value, meant):
    assert request.boolean("force", value) is meant


@pytest.mark.parametrize("value", ["", "maybe", "2", None, [], 0.5])
def test_anything_else_names_the_setting(value):
    with pytest.raises(TrainError, match=r"^assume_yes is "):
        request.boolean("assume_yes", value)


@given(st.text())
def test_a_text_is_a_boolean_or_refused(text):
    known = {"1", "true", "yes", "y", "on", "0", "false", "no", "n", "off"}
    if text.strip().lower() in known:
        assert isinstance(request.boolean("x", text), bool)
    else:
        with pytest.raises(TrainError, match=re.escape(repr(text))):
            request.boolean("x", text)


@pytest.mark.parametrize("setting", ["gpu_gate", "acceptance_gate"])
@pytest.mark.parametrize(
    ("value", "meant"),
    [("strict", "strict"), ("warn", "warn"), ("off", "off"), (False, "off")],
)
def test_gate_modes(setting, value, meant):
    assert build(**{setting: value})[setting] == meant


@pytest.mark.parametrize("setting", ["gpu_gate", "acceptance_gate"])
@pytest.mark.parametrize("value", ["loose", True, None, "", "STRICT"])
def test_a_gate_mode_that_does_not_exist(setting, value):
    error = refused(**{setting: value})
    assert error.message.startswith(f"{setting} is ")
    assert "strict, warn, off" in error.hint


@pytest.mark.parametrize(
    ("value", "kind", "meant"),
    [
        ("8", "int", 8),
        (8, "int", 8),
        (8.0, "int", 8),
        ("0.5", "float", 0.5),
        (1, "float", 1.0),
        ("1e-4", "float", 0.0001),
        ("yes", "bool", True),
        (5, "str", "5"),
        (["a"], "raw", ["a"]),
        (["a"], "list", ["a"]),
        ("packages.torch, code", "list", ["packages.torch", "code"]),  # -e name=a,b
        ({"a": 1}, "dict", {"a": 1}),
        ('{"style": {}}', "dict", {"style": {}}),
    ],
)
def test_values_get_the_type_of_their_spec(value, kind, meant):
    typed = request.typed("name", value, kind)
    assert typed == meant
    assert type(typed) is type(meant)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("many", "int"),
        ("", "int"),
        (None, "int"),
        ([], "int"),
        (2.5, "int"),  # nothing is cut off in silence
        ("2.5", "int"),
        (float("inf"), "int"),
        (float("nan"), "int"),
        (True, "int"),
        ("fast", "float"),
        ("nan", "float"),
        ("inf", "float"),
        (None, "float"),
        (True, "float"),
        ("maybe", "bool"),
        (3, "list"),
        ({"a": 1}, "list"),
        ("style", "dict"),
        ([], "dict"),
    ],
)
def test_a_value_of_another_type_is_refused(value, kind):
    with pytest.raises(TrainError, match=r"^max_length is "):
        request.typed("max_length", value, kind)


@given(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())
    ),
    st.sampled_from(["int", "float", "bool", "str", "raw", "list", "dict"]),
)
def test_no_value_breaks_the_check(value, kind):
    try:
        typed = request.typed("x", value, kind)
    except TrainError:
        return
    if kind == "int":
        assert isinstance(typed, int)
    if kind == "float":
        assert typed - typed == 0  # finite


# Settings of single stages


def test_a_setting_of_one_stage_leaves_the_others():
    made = build(stage_settings={"style": {"learning_rate": "2e-4"}}, max_length=512)
    assert stage_of(made)["settings"]["learning_rate"] == 0.0002
    assert stage_of(made, "writing")["settings"]["learning_rate"] == 0.0001
    assert stage_of(made)["settings"]["max_length"] == 512


def test_the_inventory_beats_what_a_stage_brings_along():
    stages = own_stage(settings={"seed": 1, "lora_r": 4})
    made = build(extra_stages=stages, stage_settings={"physics": {"seed": 2}}, seed=3)
    settings = stage_of(made, "physics")["settings"]
    assert (settings["seed"], settings["lora_r"]) == (2, 4)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        (
            {"stage_settings": {"style": {"learning_rat": 1}}},
            "The stage style has no setting learning_rat.",
            "learning_rate",
        ),
        (
            {"stage_settings": {"style": {"force": 1}}},
            "The stage style has no setting force.",
            "The settings are learning_rate",
        ),
        (
            {"stage_settings": {"styl": {}}},
            "stage_settings names the stage styl, and there is none.",
            "Did you mean style?",
        ),
        (
            {"stage_settings": {"style": {"seed": "x"}}},
            "seed is 'x', which is not a whole number.",
            "",
        ),
        ({"stage_settings": {"style": [1]}}, "stage_settings", "style"),
        (
            {"stage_thresholds": {"style": {"coverage": 1}}},
            "The stage style has a threshold on coverage, which is no score.",
            "key_point_coverage",
        ),
        (
            {"stage_thresholds": {"style": {"response_format": "high"}}},
            "response_format is 'high', which is not a number.",
            "",
        ),
        ({"stage_thresholds": {"style": 0.5}}, "stage_thresholds", "style"),
        (
            {"stage_thresholds": {"nowhere": {}}},
            "stage_thresholds names the stage nowhere, and there is none.",
            "The stages are sample, style, writing, all",
        ),
        ({"extra_stages": own_stage(name="style")}, "Two stages are called style.", "Rename"),
        ({"extra_stages": own_stage(tag="style")}, "Two stages are called style.", "Rename"),
        ({"extra_stages": own_stage(tag="collect")}, "has the tag collect, which is taken", ""),
        ({"extra_stages": own_stage(tag="all")}, "has the tag all, which is taken", ""),
        (
            {"extra_stages": own_stage(needs=["styl"])},
            "needs styl, which is no stage before it",
            "style",
        ),
        ({"extra_stages": own_stage(needs=["physics"])}, "needs physics", ""),
        ({"extra_stages": own_stage(train=["/etc/passwd"])}, "train is '/etc/passwd'", ""),
        ({"extra_stages": own_stage(train=[""])}, "train is ''", ""),
        ({"extra_stages": own_stage(evaluate=["../b.jsonl"])}, "evaluate is '../b.jsonl'", ""),
        ({"extra_stages": own_stage(adapter="../../..")}, "adapter is ", ""),
        ({"extra_stages": own_stage(code=["."])}, "code is '.'", ""),
        ({"extra_stages": own_stage(command="sh -c 'x")}, "can't be split into words", "quotes"),
        ({"out_base": "/var/adapters"}, "out_base is '/var/adapters'", "relative"),
        ({"log_dir": "../logs"}, "log_dir is '../logs'", "relative"),
        ({"data_base": ""}, "data_base is ''", "relative"),
        # A stage's name becomes part of file names, and so do those of two steps.
        ({"extra_stages": own_stage(name="../up")}, "'../up'", "letters"),
        ({"extra_stages": own_stage(name="a b")}, "'a b'", "letters"),
        ({"extra_stages": own_stage(name="")}, "''", "letters"),
        ({"extra_stages": own_stage(name="collect", tag="c")}, "collect", ""),
        ({"extra_stages": own_stage(name="precheck", tag="p")}, "precheck", ""),
        # Two stages in one folder would undo each other's work for ever.
        ({"extra_stages": own_stage(adapter="adapter_style")}, "adapter_style", ""),
    ],
    ids=str,
)
def test_a_mistake_is_named(changes, message, hint):
    error = refused(**changes)
    assert message in error.message
    assert hint in error.hint or hint in error.message
    assert "\n" not in str(error)


def test_a_list_on_the_command_line_is_not_taken_apart_into_letters():
    ignored = build(fingerprint_ignore="packages.transformers,code")["fingerprint_ignore"]
    assert ignored == ["packages.transformers", "code"]


def test_thresholds_of_the_inventory_take_the_place_of_the_stages_own():
    made = build(stage_thresholds={"style": {"response_format": "0.5"}, "writing": {}})
    assert stage_of(made)["thresholds"] == {"response_format": 0.5}
    assert stage_of(made, "writing")["thresholds"] == {}
    assert stage_of(made, "all")["thresholds"]["key_point_coverage"] == 0.88


@pytest.mark.parametrize(
    ("given_modules", "meant"),
    [
        ("all-linear", "all-linear"),
        ("q_proj", "q_proj"),
        ("v_proj, q_proj", ["q_proj", "v_proj"]),
        (["v_proj", "q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (["all-linear"], "all-linear"),
    ],
)
def test_target_modules_have_one_form(given_modules, meant):
    assert stage_of(build(target_modules=given_modules))["settings"]["target_modules"] == meant


@pytest.mark.parametrize("nothing", [None, "", [], " , "])
def test_target_modules_that_name_nothing(nothing):
    assert refused(target_modules=nothing).message.startswith("target_modules ")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("bash run_train.sh {stage}", ["bash", "run_train.sh", "style"]),
        (["bash", "-c", "echo '{stage}' ; true"], ["bash", "-c", "echo 'style' ; true"]),
        ("sh -c 'a  b'", ["sh", "-c", "a  b"]),
        ([], []),
        ("", []),
        (["run", 3], ["run", "3"]),
    ],
)
def test_a_command_in_words(command, words):
    assert stage_of(build(stage_command=command))["command"] == words


def test_a_stages_own_command_beats_the_common_one():
    made = build(
        stage_command="common",
        stage_code=["a.py"],
        extra_stages=own_stage(command="own {stage}", code=["code/./b.py"]),
    )
    assert stage_of(made, "physics")["command"] == ["own", "physics"]
    assert stage_of(made, "physics")["code"] == ["code/b.py"]
    assert stage_of(made)["code"] == ["a.py"]


# Which steps and stages

TAGS = ("sample", "style", "writing", "multitask")
ALL_STEPS = list(request.STEPS)


@pytest.mark.parametrize(
    ("run", "skip", "steps", "stages"),
    [
        (["all"], [], ALL_STEPS, list(TAGS)),
        (["always"], [], ALL_STEPS, list(TAGS)),
        (["tagged"], [], ALL_STEPS, list(TAGS)),
        (["style"], [], ALL_STEPS, ["style"]),
        (["multitask"], [], ALL_STEPS, ["multitask"]),
        (["writing", "style"], [], ALL_STEPS, ["style", "writing"]),
        (["collect"], [], ["collect"], []),
        (["sync", "precheck"], [], ["precheck", "sync"], []),
        (["all"], ["style"], ALL_STEPS, ["sample", "writing", "multitask"]),
        (["all"], ["collect", "sample"], ["precheck", "sync", "provision"], list(TAGS[1:])),
        (["style"], ["precheck"], ["sync", "provision", "collect"], ["style"]),
        (["style", "all"], [], ALL_STEPS, list(TAGS)),
    ],
)
def test_what_tags_leave(run, skip, steps, stages):
    assert request.choose_steps(run, skip, TAGS) == (steps, stages)


@pytest.mark.parametrize("where", ["run", "skip"])
@pytest.mark.parametrize(
    ("tag", "near"), [("styl", "style"), ("multi_task", "multitask"), ("colect", "collect")]
)
def test_a_misspelt_tag(where, tag, near):
    arguments = ([tag], []) if where == "run" else (["all"], [tag])
    with pytest.raises(TrainError) as caught:
        request.choose_steps(*arguments, TAGS)
    assert caught.value.message == f"The tag {tag} names no stage and no step."
    assert caught.value.hint.startswith(f"Did you mean {near}?")


@pytest.mark.parametrize("tag", ["never", "untagged", "zzz"])
def test_a_tag_that_is_like_none(tag):
    with pytest.raises(TrainError) as caught:
        request.choose_steps([tag], [], TAGS)
    assert caught.value.hint.startswith("The tags are sample, style")


@given(st.sets(st.sampled_from([*TAGS, *ALL_STEPS])), st.sets(st.sampled_from(TAGS)))
def test_chosen_steps_keep_their_order_and_nothing_skipped_is_left(run, skip):
    steps, stages = request.choose_steps(run or {"all"}, skip, TAGS)
    assert stages == [tag for tag in TAGS if tag in stages]
    assert steps == [step for step in ALL_STEPS if step in steps]
    assert not set(stages) & skip


def test_skip_sample_leaves_out_what_is_a_trial():
    made = build(skip_sample="yes")
    assert made["selected"] == ["style", "writing", "all"]
    assert made["left_out"] == ["sample"]
    assert build()["left_out"] == []


def test_a_fifth_stage_is_one_more_item():
    made = build(tags=["physics"], extra_stages=own_stage(needs=["sample"]))
    assert made["selected"] == ["physics"]
    assert made["stages"][-1]["tag"] == "physics"
    assert made["stages"][-1]["ask_after"] is False


def test_data_files_are_those_of_the_chosen_stages():
    assert request.data_files(build(tags=["style"])) == [
        {
            "name": "data/training/processed/style_sft.jsonl",
            "role": "train",
            "stage": "style",
        },
        {
            "name": "data/training/eval/style_benchmark.jsonl",
            "role": "evaluate",
            "stage": "style",
        },
    ]
    assert len(request.data_files(build())) == 2 + 2 + 2 + 4


@pytest.mark.parametrize(
    ("terminal", "changes", "asks"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"non_interactive": "1"}, False),
        (True, {"assume_yes": "y"}, False),
        (False, {"non_interactive": False}, False),
    ],
)
def test_who_is_asked(terminal, changes, asks):
    assert build(terminal=terminal, **changes)["interactive"] is asks


# Names of settings


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", ["learning_rat", "projekt_root", "stage_setting"])
def test_a_misspelt_setting_is_refused_everywhere(name, exact):
    with pytest.raises(TrainError, match=f"^There is no setting {name}. Did you mean") as caught:
        request.check_names([name], kinds(), exact=exact)
    assert "own_variables" in caught.value.hint


@pytest.mark.parametrize("name", ["my_company", "region", "x"])
def test_a_variable_of_the_users_is_refused_on_the_command_line_alone(name):
    request.check_names([name], kinds(), exact=False)
    with pytest.raises(TrainError, match=f"There is no setting {name}."):
        request.check_names([name], kinds(), exact=True)


@pytest.mark.parametrize("name", ["ansible_port", "_hidden", "molecule_yml", "force", "stages"])
def test_names_that_are_known(name):
    request.check_names([name], kinds(), exact=True)


@given(st.dictionaries(st.sampled_from(sorted(kinds())), st.text(max_size=8), max_size=3))
def test_no_text_in_a_setting_breaks_the_request(changes):
    # Ansible's own argument spec refuses a text there before this is reached.
    stages = ("stages", "extra_stages")
    settings = {**values(), **{k: v for k, v in changes.items() if k not in stages}}
    try:
        made = request.build(settings, kinds())
    except TrainError:
        pass
    else:
        assert json.loads(json.dumps(made)) == made


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("learning_rate", 0, "above 0"),
        ("num_train_epochs", -1, "above 0"),
        ("lora_dropout", 7, "below 1"),
        ("lora_dropout", -0.1, "0 or more"),
        ("warmup_ratio", 1, "below 1"),
        ("seed", 2**63, "below"),
        ("max_length", 7, "8 or more"),
        ("data_seed", -2, "-1 or more"),
        ("init_seed", 2**63, "below 9223372036854775808"),
        ("eval_batch_size", -1, "0 or more"),
        ("dtype", "float16", "one of auto, float32, bfloat16"),
        ("lr_scheduler_type", "wave", "one of cosine, linear, constant"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_is_sent(name, value, words):
    with pytest.raises(TrainError, match=f"{name} is .*{words}"):
        build(stage_settings={"style": {name: value}})


@pytest.mark.parametrize(("least", "good"), [(request._LEAST, 0), (request._ABOVE, 1)])
def test_the_ranges_are_those_that_the_training_holds(least, good):
    base = {"model_name_or_path": "m"}
    for name, limit in least.items():
        if name in ("max_new_tokens", "eval_batch_size"):
            continue  # of the evaluation: training.job holds them
        read_settings({**base, name: limit + good})
        with pytest.raises(JobError):
            read_settings({**base, name: limit - 1})


@pytest.mark.parametrize("tag", ["all", "tagged"])
def test_leaving_out_everything_is_refused(tag):
    with pytest.raises(TrainError, match="leaves nothing to do"):
        request.choose_steps(["all"], [tag], ["sample"])


# Looking, and stopping


def test_what_is_shown_of_logs_and_how_long_a_stop_waits():
    assert build()["logs"] == {"stage": "", "lines": 100, "follow": False}
    assert build()["stop_grace"] == 60
    made = build(log_stage="all", log_lines="7", follow="yes", stop_grace="0")
    assert made["logs"] == {"stage": "all", "lines": 7, "follow": True}
    assert made["stop_grace"] == 0


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"log_lines": 0}, "log_lines is 0.", "1 or more"),
        ({"log_lines": "many"}, "log_lines is 'many'", "whole number"),
        ({"stop_grace": -1}, "stop_grace is -1.", "seconds, 0 or more"),
        ({"checkpoint_keep": 0}, "checkpoint_keep is 0.", "checkpoints, 1 or more"),
        ({"stage_retries": "-1"}, "stage_retries is -1.", "attempts, 0 or more"),
        ({"log_stage": "styl"}, "log_stage is 'styl'", "Did you mean style?"),
        ({"log_stage": "x"}, "log_stage is 'x'", "sample, style, writing, all"),
        ({"follow": "perhaps"}, "follow is 'perhaps'", "true or false"),
    ],
)
def test_wrong_settings_of_logs_and_stop(changes, message, hint):
    error = refused(**changes)
    assert message in error.message
    assert hint in error.hint
