"""Plan a run: look at both sides, in one round trip, and change nothing on either."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller import project
from controller.action import Result, TrainAction
from remote_train import chats, fingerprint, pythons, request, runs
from remote_train.errors import TrainError


class ActionModule(TrainAction):
    """``plan:`` with the request and where the training project is; returns the plan."""

    def act(self, task_vars: Result) -> Result:
        """Check the local data, then ask the host."""
        wanted = self.argument("request")
        # What only brings results home doesn't mind what lies here, nor whether it is in order.
        check_data = bool(self.argument("check_data", True))
        source = self._source(wanted["project_root"]) if check_data else ""
        coming = None
        if source:
            coming = project.project_digests(
                source, self.argument("whitelist", ""), self.argument("exclude", [])
            )
        on_host = self._check_data(wanted, source, coming or {}) if check_data else []
        requirements = self._requirements(wanted)
        made = self.call(
            "plan",
            {
                "request": wanted,
                "code": fingerprint.code_digests(project.ENGINE_PARTS["training"]),
                "requirements": requirements,
                "python": self.argument("python", ""),
                "coming": coming,
                "engine": project.engine_digests(),
            },
            task_vars,
        )
        if made["uncollected"] is not None and not runs.is_name(made["uncollected"]):
            # It becomes a part of paths here.
            raise TrainError(
                f"The host offers {made['uncollected']!r}, which is not the name of a run.",
                "Don't trust this host.",
                "integrity",
            )
        return self._result(wanted, made, source, on_host, requirements)

    def _requirements(self, wanted: Result) -> dict[str, str]:
        """What the training's Python must have; nothing where only the user's commands run."""
        chosen = [stage for stage in wanted["stages"] if stage["name"] in wanted["selected"]]
        if chosen and all(stage["command"] for stage in chosen):
            return {}
        return pythons.parse_requirements(project.requirements_text())

    def _source(self, root: str) -> str:
        """The training project's folder here, or nothing where none is synced."""
        source = self.argument("project_src", "")
        if not source:
            return ""
        source = os.path.abspath(os.path.expanduser(source))
        if not os.path.isdir(source):
            raise TrainError(
                f"project_src is {source}, and there is no such folder.",
                "Give the folder that holds the training project on this machine.",
                "data",
            )
        same = self._connection.transport == "local" and os.path.realpath(root) == os.path.realpath(
            source
        )
        return "" if same else source

    def _check_data(
        self, wanted: Result, source: str, coming: dict[str, str]
    ) -> list[dict[str, str]]:
        """Check the data that sync brings; what it doesn't bring is for the gate on the host.

        A step that sees to the data by itself, without a stage, sees to that of all stages.
        """
        if not wanted["selected"] and {"precheck", "sync"} & set(wanted["steps"]):
            names = [s["name"] for s in wanted["stages"] if s["name"] not in wanted["left_out"]]
            wanted = {**wanted, "selected": names}
        files = request.data_files(wanted)
        here = [file for file in files if file["name"] in coming]
        reports, leaks = chats.check_files(source, here)
        problems = [p for report in reports for p in report.problems] + leaks
        if problems:
            more = sum(report.problem_count for report in reports) + len(leaks) - 1
            raise TrainError(
                f"{problems[0]}" + (f" And {more} more problems of data." if more else ""),
                "Mend the file; nothing was sent.",
                "data",
            )
        missing = [
            file["name"]
            for file in files
            if source and file not in here and not self._may_be_on_host(source, file["name"])
        ]
        if missing:
            raise TrainError(
                f"{missing[0]} is missing in {source}.",
                "Put it there, or name the right file in the stage.",
                "data",
            )
        return [file for file in files if file not in here]

    def _may_be_on_host(self, source: str, name: str) -> bool:
        """A file that exists here but isn't synced may lie on the host already."""
        return os.path.exists(os.path.join(source, name))

    def _result(
        self,
        wanted: Result,
        made: Result,
        source: str,
        on_host: list[dict[str, str]],
        requirements: dict[str, str],
    ) -> Result:
        sync = made["sync"] or {"add": [], "change": [], "remove": []}
        sends = bool(any(sync.values()) or made["engine_changed"])
        due = _due(wanted, made, sends)
        for sentence in made["interrupted"]:
            self.warn(sentence)
        lines = list(_lines(made, sync, sends))
        for line in lines:
            self.say(line)
        for stage in made["stages"]:
            for warning in stage["warnings"]:
                self.warn(warning)
        return {
            "changed": made["changed"],
            **{k: made[k] for k in ("stages", "work", "live", "python", "home", "uncollected")},
            "pythons_tried": made["pythons_tried"],
            "sync": sync,
            "engine_changed": made["engine_changed"],
            "sends": sends,
            "due": due,
            "empty": not (due or made["live"]),
            # Where no stage was ever asked for or trained, there is nothing to keep a record of.
            "records": bool(wanted["selected"] or made["uncollected"]),
            "source": source,
            "data_on_host": on_host,
            "requirements": requirements,
            "run": made["uncollected"] or runs.new_name(),
            "lines": lines,
        }


def _due(wanted: Result, made: Result, sends: bool) -> list[str]:
    """The steps among those asked for that have something to do, the gate apart: it always looks.

    A Python is made for a stage that runs, or where nothing but the steps was asked for.
    """
    due = {
        "sync": sends,
        "provision": made["python"] is None and bool(made["work"] or not wanted["selected"]),
        "train": bool(made["work"]),
        "collect": bool(made["uncollected"]),
    }
    return [step for step, has in due.items() if has and step in (*wanted["steps"], "train")]


_VERBS = {"train": "trains", "evaluate": "is evaluated again", "skip": "skips", "leave": "left out"}


def _lines(made: Result, sync: dict[str, list[str]], sends: bool) -> Any:
    """The plan for a person: a line a stage, then sync and Python."""
    wide = max((len(stage["name"]) for stage in made["stages"]), default=0)
    for stage in made["stages"]:
        reasons = "; ".join(stage["reasons"])
        hint = ""
        if stage["action"] == "skip":
            hint = " (-e force=true trains it again)"
        yield f"  {stage['name']:<{wide}}  {_VERBS[stage['action']]}: {reasons}{hint}"
    if sends:
        counts = [f"{len(sync[key])} to {key}" for key in ("add", "change", "remove") if sync[key]]
        engine = ["this project's own code"] if made["engine_changed"] else []
        yield f"  sync sends: {', '.join(counts + engine)}"
    if made["python"]:
        yield f"  Python: {made['python']['path']}"
    elif len(made["pythons_tried"]) == 1:
        tried = made["pythons_tried"][0]
        yield f"  Python: {tried['path']} lacks {', '.join(tried['missing'])}"
    else:
        yield "  Python: none on the host has what the training needs; provision makes one"
