"""docs/gate.md and the table of checks say the same.

``python -m tests.unit.test_gate_docs`` writes the tables into the document anew.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "plugins" / "module_utils"))  # also run by hand, without pytest's

from remote_train import active_gate, gate  # noqa: E402
from remote_train.kernel_log import KernelLog, Line  # noqa: E402
from remote_train.xid import FATAL, PROGRAM, SERIOUS, SEVERITIES  # noqa: E402
from tests.unit import smi_documents as docs  # noqa: E402
from tests.unit import test_gate as cases  # noqa: E402

DOCUMENT = ROOT / "docs" / "gate.md"
SPECS = ROOT / "roles" / "gpu_gate" / "meta" / "argument_specs.yml"


def options() -> dict[str, Any]:
    specs = yaml.safe_load(SPECS.read_text())
    return dict(specs["argument_specs"]["main"]["options"])


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def checks() -> str:
    """The table of checks."""
    text = row("check", "about", "looks at", "fails when", "warns when", "thresholds")
    text += row(*["---"] * 6)
    for check in gate.CHECKS:
        limits = ", ".join(f"`{name}`" for name in check.limits)
        looks = check.looks_at.removeprefix("Whether ").replace("``", "`")
        text += row(f"`{check.name}`", check.scope, looks, check.fails, check.warns, limits)
    return text


def thresholds() -> str:
    """The table of the role's settings."""
    text = row("setting", "default", "meaning") + row("---", "---", "---")
    for name, option in options().items():
        meaning = " ".join(option["description"])
        meaning = re.sub(r"[A-Z]\(([^)]*)\)", r"`\1`", meaning)
        default = option["default"]
        shown = str(default).lower() if isinstance(default, bool) else default
        text += row(f"`{name}`", f"`{shown}`", meaning)
    return text


def severities() -> str:
    """The table of Xid numbers by severity."""
    text = row("severity", "numbers") + row("---", "---")
    for severity in (FATAL, SERIOUS, PROGRAM):
        numbers = [str(number) for number, (found, _) in SEVERITIES.items() if found == severity]
        text += row(severity, ", ".join(numbers))
    return text


def healthy() -> str:
    """What is seen on a healthy machine: every check, as precheck.yml shows it."""
    found = gate.run_checks(cases.healthy())
    return f"```\n{gate.table(found, everything=True)}\n```\n"


def broken() -> str:
    """What is seen on a machine in which much is wrong, and how the run ends there."""
    context = cases.card(
        docs.put(
            ecc_errors__volatile__dram_uncorrectable="2",
            persistence_mode="Disabled",
            fb_memory_usage__free="31531 MiB",
            pci__pci_gpu_link_info__link_widths__current_link_width="8x",
        ),
        docs.process(name="python3", pid=4242, memory="49477 MiB"),
        kernel=KernelLog("kmsg", (Line(7200.0, "NVRM: Xid (PCI:0000:3b:00): 48, pid=7, DBE"),)),
        host=cases.disk("outputs", free=cases.GIB // 5).host,
    )
    silenced = {"gpu_persistence": "the container can't switch it on"}
    found = gate.run_checks(context, silenced=silenced)
    message, hint = gate.sentence(gate.judge(found, "strict")[1])
    return f"```\n{gate.table(found)}\n\nFAILED: {message} {hint}\n```\n"


def active() -> str:
    """The table of the active gate's checks."""
    text = row("check", "about", "looks at", "fails when", "warns when") + row(*["---"] * 5)
    for check in active_gate.CHECKS:
        looks = check.looks_at.removeprefix("Whether ")
        text += row(f"`{check.name}`", check.scope, looks, check.fails, check.warns)
    return text


TABLES = {
    "checks": checks,
    "active": active,
    "thresholds": thresholds,
    "severities": severities,
    "healthy": healthy,
    "broken": broken,
}


def written(name: str, document: str) -> str:
    """What stands between a table's marks."""
    match = re.search(f"<!-- {name} -->\n(.*?)<!-- /{name} -->\n", document, re.S)
    assert match, f"docs/gate.md has no marks for {name}"
    return match.group(1)


@pytest.mark.parametrize("name", TABLES)
def test_document_has_the_tables_of_today(name: str) -> None:
    advice = "write it anew: python -m tests.unit.test_gate_docs"
    assert written(name, DOCUMENT.read_text()) == TABLES[name](), advice


def test_defaults_file_names_every_setting_in_order() -> None:
    defaults = yaml.safe_load((ROOT / "roles/gpu_gate/defaults/main.yml").read_text())
    assert list(defaults) == list(options())


def main() -> None:
    """Write the tables into the document."""
    document = DOCUMENT.read_text()
    for name, table in TABLES.items():
        old = f"<!-- {name} -->\n{written(name, document)}<!-- /{name} -->\n"
        document = document.replace(old, f"<!-- {name} -->\n{table()}<!-- /{name} -->\n")
    DOCUMENT.write_text(document)


if __name__ == "__main__":
    main()
