#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_probe
short_description: Say whether a machine is fit for a training, before anything on it is changed
description:
  - The passive part of the GPU gate, in one round trip. Looks at the NVIDIA driver and its GPUs
    (through one call of C(nvidia-smi -q -x)), at the disk and the memory, at the packages of the
    training's Python and, where they are named, at the data files.
  - Each check gives one finding, with what was seen, what was expected and what to do.
  - A finding never makes the module fail. It says in RV(stop) whether the run
    should stop, and the role decides.
  - Needs nothing but Python's standard library.
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
  gpu_count:
    description: How many usable GPUs there have to be, at least.
    type: int
    default: 1
  gpu_memory_gib:
    description:
      - The memory that each of them has to have, and have free, in GiB. V(0) asks for nothing.
      - Nine tenths are enough, since a card sold with 24 GB shows 22.5 GiB.
    type: float
    default: 0
  min_disk_gib:
    description: The space that has to be free on the disk of O(project_root), in GiB.
    type: float
    default: 1
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
  packages:
    description:
      - The versions of the packages that the training's Python has, by name. Leave it out while
        there is no such Python; the check is then V(unknown), since provisioning sees to it.
    type: dict
  requirements:
    description: The version bounds that they have to satisfy, by name, such as C(">=5,<6").
    type: dict
    default: {}
  nvidia_smi:
    description: The name or path of the program.
    type: str
    default: nvidia-smi
  timeout:
    description: For how many seconds that program is waited for. It is killed after that.
    type: float
    default: 20
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
    gpu_memory_gib: 24
    min_disk_gib: 20
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
  sample:
    - check: gpu_ecc
      scope: gpu
      result: fail
      seen: "GPU 0: 2 uncorrected"
      expected: 0 uncorrected
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
  description: For each of O(data_files) its lines, chats, digest and problems.
  returned: success
  type: list
  elements: dict
  sample:
    - file: data/training/processed/style_sft.jsonl
      lines: 36
      chats: 35
      digest: "sha256:..."
      problem_count: 1
      problems:
        - {file: data/training/processed/style_sft.jsonl, line: 7, reason: it has no messages}
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
from ansible.module_utils.remote_train import chats, gate, host_facts, nvidia_smi
from ansible.module_utils.remote_train.gate_model import OFF, Context


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "project_root": {"type": "path", "required": True},
            "mode": {"type": "str", "choices": ["strict", "warn", "off"], "default": "strict"},
            "gpu_count": {"type": "int", "default": 1},
            "gpu_memory_gib": {"type": "float", "default": 0},
            "min_disk_gib": {"type": "float", "default": 1},
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
            "packages": {"type": "dict"},
            "requirements": {"type": "dict", "default": {}},
            "nvidia_smi": {"type": "str", "default": "nvidia-smi"},
            "timeout": {"type": "float", "default": 20},
        },
        supports_check_mode=True,
    )
    started = time.monotonic()
    wanted = module.params
    smi = None
    if wanted["mode"] != OFF:
        smi = nvidia_smi.ask(wanted["nvidia_smi"], wanted["timeout"])
    reports, leaks = chats.check_files(wanted["project_root"], wanted["data_files"])
    context = Context(
        smi=smi,
        gpu_count=wanted["gpu_count"],
        gpu_memory_gib=wanted["gpu_memory_gib"],
        min_disk_gib=wanted["min_disk_gib"],
        host=host_facts.gather(wanted["project_root"]),
        packages=wanted["packages"],
        requirements=wanted["requirements"],
        data_files=tuple(reports),
        leaks=tuple(leaks),
    )
    findings = gate.run_checks(context, wanted["mode"])
    stop, stopping = gate.judge(findings, wanted["mode"])
    message, hint = gate.sentence(stopping)
    module.exit_json(
        changed=False,
        findings=[finding.as_dict() for finding in findings],
        stop=stop,
        stopping=[finding.as_dict() for finding in stopping],
        message=message,
        hint=hint,
        summary=gate.count_results(findings),
        table=gate.table(findings),
        full_table=gate.table(findings, everything=True),
        gpus=[dataclasses.asdict(gpu) for gpu in context.gpus],
        driver_version=smi.snapshot.driver_version if smi else None,
        cuda_version=smi.snapshot.cuda_version if smi else None,
        data=[report.facts() for report in reports],
        mode=wanted["mode"],
        seconds=round(time.monotonic() - started, 3),
    )


if __name__ == "__main__":
    main()
