"""Bring the training project and the engine to the host: packed, sent, verified, applied."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from ansible.errors import AnsibleConnectionFailure

from controller import project
from controller.action import GaveUpError, Result, TrainAction, failed, warnings_of
from remote_train import bundle, plan, runs, versions

INCOMING = f"{runs.SYNC}/incoming"
"""Where a bundle waits on the host, under the project root and on its file system."""


class ActionModule(TrainAction):
    """``code_sync:`` with the plan; sends what the plan says differs."""

    def act(self, task_vars: Result) -> Result:
        """Send the project, then the engine, where they differ.

        A host that can't be reached is a failure like any other here, so that what was seen of
        the run so far is still left at home.
        """
        try:
            return self._sync(task_vars)
        except AnsibleConnectionFailure:
            return failed(
                GaveUpError(
                    "The host can't be reached, so the training project was not synced.",
                    "Give the same command again when the host is back.",
                    "infra",
                )
            )

    def _sync(self, task_vars: Result) -> Result:
        self._vars = task_vars
        self._root = self.argument("project_root")
        made = self.argument("plan")
        source, sync = made["source"], made["sync"]
        result: Result = {"changed": bool(made["sends"]), "sent": {}}
        if self._task.diff or self.check:
            result["diff"] = [{"prepared": _shown(sync, made["engine_changed"])}]
        if self.check or not made["sends"]:
            return result
        with tempfile.TemporaryDirectory(prefix="remote-train-") as folder:
            if source and any(sync.values()):
                files = project.project_files(
                    source, self.argument("whitelist", ""), self.argument("exclude", [])
                )
                built = bundle.build(source, files, folder, "project")
                result["sent"]["project"] = self._deliver(
                    built, self._root, runs.SYNC, int(self.argument("keep", versions.KEEP))
                )
            if made["engine_changed"]:
                laid = os.path.join(folder, "engine")
                built = bundle.build(laid, project.lay_engine(laid), folder, "engine")
                engine = os.path.join(self._root, plan.ENGINE)
                result["sent"]["engine"] = self._deliver(built, engine, f"{plan.ENGINE}/.state", 0)
        return result

    def _deliver(self, built: bundle.Bundle, root: str, state: str, keep: int) -> Result:
        """Send one bundle and apply it; it is removed from the host again."""
        incoming = os.path.join(self._root, INCOMING)
        there = os.path.join(incoming, os.path.basename(built.paths[0]))
        self.shell(["mkdir", "-p", "-m", "0700", "--", incoming])
        self._connection.put_file(built.paths[0], there)
        try:
            applied = self.call(
                "apply_bundle",
                {
                    "src": there,
                    "root": root,
                    "state_dir": os.path.join(self._root, state),
                    "sha256": built.sha256,
                    "keep": keep,
                },
                self._vars,
            )
        finally:
            self.shell(["rm", "-f", "--", there])
        for warning in warnings_of(applied):
            self.warn(warning)
        keys = ("added", "replaced", "removed", "kept")
        counts = ", ".join(f"{len(applied[key])} {key}" for key in keys if applied[key])
        what = os.path.basename(built.paths[0]).partition(".")[0]
        self.say(f"  {what}: {built.size:,} bytes sent, verified and applied ({counts or 'same'})")
        return {key: applied[key] for key in (*keys, "unchanged", "bytes", "sha256")}


def _shown(sync: dict[str, list[str]], engine: bool) -> str:
    """What would be sent, a line a path, as ``--diff`` shows it."""
    signs = (("add", "+"), ("change", "~"), ("remove", "-"))
    lines = [f"{sign} {name}" for key, sign in signs for name in sync[key]]
    if engine:
        lines.append(f"~ {plan.ENGINE}/ (this project's own code)")
    return "".join(f"{line}\n" for line in lines)
