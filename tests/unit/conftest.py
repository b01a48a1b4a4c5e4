"""What the unit tests share as fixtures."""

import importlib.util
import json
from pathlib import Path

import ansible.module_utils.common.warnings
import pytest
from ansible.module_utils.testing import patch_module_args

HOUSE = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_module(monkeypatch, capsys):
    """Runs a module in this process; gives what it printed for Ansible."""
    monkeypatch.setattr(
        ansible.module_utils,
        "__path__",
        [*ansible.module_utils.__path__, str(HOUSE / "plugins" / "module_utils")],
    )

    # Other tests of this process import plugins of the controller; a module runs on the host.
    monkeypatch.setattr(ansible.module_utils._internal, "is_controller", False)
    # Ansible gathers a process's warnings in one place, since a process is one module there.
    monkeypatch.setattr(ansible.module_utils.common.warnings, "_global_warnings", {})

    def run(name, check=False, diff=False, **arguments):
        spec = importlib.util.spec_from_file_location(
            f"module_{name}", HOUSE / "plugins" / "modules" / f"{name}.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        arguments.update(_ansible_check_mode=check, _ansible_diff=diff)
        with patch_module_args(arguments), pytest.raises(SystemExit) as ended:
            module.main()
        result = json.loads(capsys.readouterr().out)
        assert bool(ended.value.code) == bool(result.get("failed"))
        return result

    return run
