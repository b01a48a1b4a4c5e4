#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_probe
short_description: Say whether a machine is fit for a training, before anything on it is changed
description:
  - The passive part of the GPU gate, in one round trip. Looks at the NVIDIA driver and its GPUs
    (through C(nvidia-smi)), at the kernel's log, at disks, memory, load and clock, at the packages
    of the training's Python and, where they are named, at the data files.
  - Each check gives one finding, with what was seen, what was expected and what to do.
  - A finding never makes the module fail, wrong settings do. It says in RV(stop) whether the run
    should stop, and the role decides.
  - Ends within a minute, whatever hangs, since everything that can is done in children.
  - Needs nothing but Python's standard library.
  - The action plugin of the same name asks again where the connection breaks, for
    C(reconnect_timeout) seconds, and adds O(controller_time).
version_added: 0.1.0
author: remote-train
options:
  project_root:
    description:
      - The training project's folder on the GPU host. Where it isn't there yet, its nearest
        parent that is there stands for it.
    type: path
    required: true
  mode:
    description:
      - What a failed check of the GPU does. V(strict) stops, V(warn) reports it and goes on,
        V(off) leaves those checks out and doesn't run C(nvidia-smi) at all.
      - Failed checks of disk, memory, packages and data stop in every mode.
    type: str
    choices: [strict, warn, "off"]
    default: strict
  limits:
    description:
      - The thresholds, by name. They are the settings of the role C(gpu_gate) without their
        prefix, and are explained there; what is left out has the role's default.
    type: dict
    default: {}
  silence:
    description:
      - Checks that are not to count, each with the reason why. They are run all the same, and what
        they found is in the finding.
      - A name that is no check of either part of the gate, and an empty reason, are errors.
    type: dict
    default: {}
  stages:
    description:
      - The stages that run, as the request has them, for the
        estimates of memory and disk.
    type: list
    elements: dict
    default: []
  models_lost:
    description: The base models that are given as folders, are not there, and that sync doesn't bring.
    type: list
    elements: str
    default: []
  data_files:
    description:
      - The data files of the stages, to be checked on this machine. Leave it out where they were
        checked on the controller.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The file's path, relative to O(project_root).
        type: str
        required: true
      role:
        description: Whether a stage trains on it or is scored on it.
        type: str
        choices: [train, evaluate]
        required: true
      stage:
        description:
          - The stage that it belongs to. A stage's training files are searched for the items of
            its benchmarks; a stage that is scored on the files it trains on is exempt.
        type: str
        default: ""
  only_data:
    description: Whether nothing but the data is looked at; the findings are those of the data then.
    type: bool
    default: false
  data_checked:
    description:
      - The facts of data files that were checked on the controller, as RV(data) has them.
    type: list
    elements: dict
    default: []
  data_leaks:
    description:
      - The benchmark items that were found in the training data on the controller, each with
        C(file), C(line) and C(reason).
    type: list
    elements: dict
    default: []
  packages:
    description:
      - The versions of the packages that the training's Python has, by name. Leave it out while
        there is no such Python; the check is then V(unknown), since provisioning sees to it.
    type: dict
  bare:
    description:
      - What provisioning will do about a missing Python, as the module M(plan) returns it. What it
        would refuse fails the check of packages, in its words; what it will install counts as
        space on the disk.
    type: dict
    default: {}
  requirements:
    description: The version bounds that they have to satisfy, by name, such as C(">=5,<6").
    type: dict
    default: {}
  storage:
    description: Where models lie, by the settings' names (runtime_base, hf_home, modelscope_cache).
    type: dict
    default: {}
  controller_time:
    description: The controller's clock as it sends this, in seconds since 1970; V(0) for unknown.
    type: float
    default: 0
  nvidia_smi:
    description: The name or path of the program.
    type: str
    default: nvidia-smi
  timeout:
    description:
      - For how many seconds that program is waited for, at most 45. It is killed after that.
    type: float
    default: 20
  seconds:
    description:
      - For how many seconds anything is waited for, O(timeout) included, at most 50.
    type: float
    default: 50
attributes:
  check_mode:
    description: Can run in check mode and changes nothing.
    support: full
  diff_mode:
    description: Shows differences.
    support: none
  platform:
    description: The systems that it runs on.
    support: full
    platforms: posix
"""

EXAMPLES = r"""
- name: See whether the machine is fit
  gpu_probe:
    project_root: /srv/tutor
    limits: {memory_gib: 24, min_disk_gib: 20}
    silence: {gpu_persistence: this container can't switch it on}
    reconnect_timeout: 60
  register: probe

- name: Check the data files on the host as well, where nothing is synced
  gpu_probe:
    project_root: /srv/tutor
    mode: warn
    data_files:
      - {name: data/training/processed/style_sft.jsonl, role: train, stage: style}
      - {name: data/training/eval/style_benchmark.jsonl, role: evaluate, stage: style}
    packages: {torch: 2.13.0+cu126, transformers: 5.23.0, peft: 0.21.2}
    requirements: {torch: ">=2.6", transformers: ">=5,<6", peft: ">=0.21"}
"""

RETURN = r"""
findings:
  description: One entry for each check, in the order of the table of checks.
  returned: success
  type: list
  elements: dict
  contains:
    check:
      description: The check's name.
      type: str
    scope:
      description: What it looks at, one of C(gpu), C(host), C(data), C(packages).
      type: str
    result:
      description: One of C(ok), C(warn), C(fail), C(unknown), C(skipped).
      type: str
    seen:
      description: What was found.
      type: str
    expected:
      description: What would have been right.
      type: str
    action:
      description: What to do about it; empty where there is nothing to do.
      type: str
    silenced:
      description: The reason for which the check was silenced; empty where it wasn't.
      type: str
    would_be:
      description: What the result of a silenced check would be.
      type: str
  sample:
    - check: gpu_ecc
      scope: gpu
      result: fail
      seen: "GPU 0: 2 uncorrected"
      expected: 0 uncorrected
      silenced: ""
      would_be: ""
      action: >-
        Reset the GPU or reboot the machine (a provider's restart does); if they come back, take
        another machine.
stop:
  description: Whether the run should stop here.
  returned: success
  type: bool
stopping:
  description: The findings that make it stop.
  returned: success
  type: list
  elements: dict
message:
  description: One sentence that says why it stops; empty where it doesn't.
  returned: success
  type: str
hint:
  description: What to do about the first of RV(stopping).
  returned: success
  type: str
closing:
  description:
    - One sentence that says how it ended where the run goes on, with the checks that warn, and
      those that fail and stop nothing; empty where it stops.
  returned: success
  type: str
summary:
  description: How many findings there are of each result.
  returned: success
  type: dict
  sample: {ok: 14, warn: 1, fail: 0, unknown: 0, skipped: 3}
table:
  description: The findings that are neither C(ok) nor C(skipped), as a text table; may be empty.
  returned: success
  type: str
full_table:
  description: All findings as a text table.
  returned: success
  type: str
gpus:
  description:
    - The GPUs, with everything that was read of them. A field that the driver doesn't tell is
      null.
  returned: success
  type: list
  elements: dict
  sample: [{index: 0, name: NVIDIA H100 80GB HBM3, memory_total_mib: 81559}]
driver_version:
  description: The driver's version; null where it doesn't answer.
  returned: success
  type: str
cuda_version:
  description: The newest CUDA that the driver can run; null where it doesn't answer.
  returned: success
  type: str
data:
  description:
    - For each data file its lines, chats, digest, longest chat (in bytes of text) and problems,
      where it was checked, and which stages train on it.
  returned: success
  type: list
  elements: dict
  sample:
    - file: data/training/processed/style_sft.jsonl
      lines: 36
      chats: 35
      digest: "sha256:..."
      longest: 2310
      longest_line: 12
      where: host
      stages: [style, all]
      problem_count: 1
      problems:
        - {file: data/training/processed/style_sft.jsonl, line: 7, reason: it has no messages}
need:
  description:
    - The memory of a GPU that the largest stage takes, by estimate, in bytes, with its parts; null
      where no size is known.
  returned: success
  type: dict
  sample:
    stage: style
    bytes: 44468942438
    parts:
      - {what: weights, bytes: 16000000000, why: "8 billion parameters in bfloat16, by its name (8B)"}
disk_need:
  description:
    - What the stages, and provisioning, will write under O(project_root), in the same form.
  returned: success
  type: dict
download:
  description: The weights that are still to be downloaded, in bytes.
  returned: success
  type: int
clock_ahead:
  description:
    - By how many seconds the machine's clock is ahead of O(controller_time), the way there
      included; null where that wasn't given. The action takes the way off.
  returned: success
  type: float
kernel_log:
  description: Where the kernel's log was read from; empty where it couldn't be.
  returned: success
  type: str
limits:
  description: The thresholds that were in force.
  returned: success
  type: dict
mode:
  description: The mode that was in force.
  returned: success
  type: str
seconds:
  description: How long it took.
  returned: success
  type: float
"""

import dataclasses
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import gate, gate_data, gate_facts, gate_module
from ansible.module_utils.remote_train.errors import TrainError
from ansible.module_utils.remote_train.gate_limits import Limits, program
from ansible.module_utils.remote_train.problems import failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **gate_module.ARGUMENTS,
            "limits": {"type": "dict", "default": {}},
            "models_lost": {"type": "list", "elements": "str", "default": []},
            "data_files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "role": {"type": "str", "choices": ["train", "evaluate"], "required": True},
                    "stage": {"type": "str", "default": ""},
                },
            },
            "only_data": {"type": "bool", "default": False},
            "data_checked": {"type": "list", "elements": "dict", "default": []},
            "data_leaks": {"type": "list", "elements": "dict", "default": []},
            "packages": {"type": "dict"},
            "bare": {"type": "dict", "default": {}},
            "requirements": {"type": "dict", "default": {}},
            "controller_time": {"type": "float", "default": 0},
            "nvidia_smi": {"type": "str", "default": "nvidia-smi"},
            "timeout": {"type": "float", "default": 20},
            "seconds": {"type": "float", "default": 50},
        },
        supports_check_mode=True,
    )
    started = time.monotonic()
    given = module.params
    try:
        silenced = gate_module.reasons(given)
        wanted = gate_facts.Wanted(
            project_root=given["project_root"],
            mode=given["mode"],
            limits=Limits.of(given["limits"]),
            stages=tuple(given["stages"]),
            models_lost=tuple(given["models_lost"]),
            data_files=tuple(given["data_files"]),
            data_checked=tuple(given["data_checked"]),
            data_leaks=tuple(given["data_leaks"]),
            packages=given["packages"],
            bare=given["bare"],
            requirements=given["requirements"],
            storage=given["storage"],
            nvidia_smi=program(given["nvidia_smi"]),
            timeout=given["timeout"],
            seconds=min(given["seconds"], gate_facts.MOST_SECONDS),
            controller_time=given["controller_time"],
        )
        gathered = gate_facts.gather_data if given["only_data"] else gate_facts.gather
        context = gathered(wanted)
    except TrainError as error:
        module.fail_json(**failure(error))
    checks = gate_data.DATA_CHECKS if given["only_data"] else gate.CHECKS
    findings = gate.run_checks(context, wanted.mode, checks, silenced)
    snapshot = context.smi.snapshot if context.smi else None
    module.exit_json(
        gpus=[dataclasses.asdict(gpu) for gpu in context.gpus],
        driver_version=snapshot.driver_version if snapshot else None,
        cuda_version=snapshot.cuda_version if snapshot else None,
        data=[dict(file) for file in context.data.files],
        need=context.need.as_dict() if context.need else None,
        disk_need=context.disk.as_dict() if context.disk else None,
        download=context.download,
        kernel_log=context.kernel.source,
        clock_ahead=context.host.clock_ahead,
        limits=dataclasses.asdict(wanted.limits),
        **gate_module.answer(findings, wanted.mode, started, "The machine"),
    )


if __name__ == "__main__":
    main()
