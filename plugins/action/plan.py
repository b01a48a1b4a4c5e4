"""Plan a run: look at both sides, in one round trip, and change nothing on either."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller import project, source
from controller.action import Result, TrainAction
from controller.progress import SHOWN_AFTER, waiting
from remote_train import (
    chats,
    fingerprint,
    gate,
    gate_data,
    gate_facts,
    gate_limits,
    gate_model,
    git_tree,
    request,
    runs,
)
from remote_train.errors import TrainError
from remote_train.file_names import first_of, shown
from remote_train.offer import Offer


class ActionModule(TrainAction):
    """``plan:`` with the request; returns the plan.

    ``data`` says what is done about wrong data: ``stop`` at it, ``warn`` of it, leave it to the
    ``gate`` that follows, or ``skip`` the look, for what only brings results home.
    """

    def act(self, task_vars: Result) -> Result:
        """Check the local data, then ask the host."""
        wanted = self.argument("request")
        sync = wanted["sync"]
        data = str(self.argument("data", "stop"))
        check_data = data != "skip"
        self._checked: list[Result] = []
        self._leaks: list[Result] = []
        line = self._line = self.line_for(task_vars, SHOWN_AFTER)
        brings = check_data and self._brings(sync, wanted["project_root"])
        if brings:
            source.allowed_signers(sync)  # what is missing there is said before anything is read
        with source.opened(sync, wanted["data_base"], line) if brings else _nothing() as found:
            git = None
            if brings and sync["mode"] == "git":
                git = source.pulled_from(sync, self.setting("sync_git_url", task_vars))
            on_host = self._check_data(wanted, found, git) if check_data else []
            if data in ("stop", "warn"):
                self._judge_data(wanted, stops=data == "stop")
            requirements = project.requirements_for(wanted)
            state = git_tree.UNTRACKED if git else runs.SYNC
            with waiting(line, "the host looks at what it has"):
                made = self.call(
                    "plan",
                    {
                        "request": wanted,
                        "code": fingerprint.code_digests(project.ENGINE_PARTS["training"]),
                        "requirements": requirements,
                        "python": self.argument("python", ""),
                        "offer": found.offer.packed() if found else None,
                        "state": state,
                        "git": git,
                        "cache": sync["cache"],
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
            if made["sync"] is not None:
                _require_places(made["sync"], len(found.offer) if found else 0)
            result = self._result(wanted, made, found, on_host)
            return {**result, "state": state, "requirements": requirements}

    def _brings(self, sync: Result, root: str) -> bool:
        """Whether sync has anything to bring: not where the project is the folder on the host."""
        folder = source.folder_of(sync)
        if sync["bundle"] or sync["mode"] == "git":
            return True
        local = self._connection.transport == "local"
        return bool(folder) and not (local and os.path.realpath(root) == os.path.realpath(folder))

    def _check_data(
        self, wanted: Result, found: source.Source | None, git: Result | None
    ) -> list[dict[str, str]]:
        """Look at the data that sync brings; what it doesn't bring is for the gate on the host.

        A step that sees to the data by itself, without a stage, sees to that of all stages.
        """
        if not wanted["selected"] and {"precheck", "sync"} & set(wanted["steps"]):
            names = [s["name"] for s in wanted["stages"] if s["name"] not in wanted["left_out"]]
            wanted = {**wanted, "selected": names}
        files = request.data_files(wanted)
        if git:
            # Nobody knows yet what git brings. What lies in the project here comes near to it.
            folder = source.folder_of(wanted["sync"])
            here = [file for file in files if _lies_in(folder, file["name"])] if folder else []
        else:
            folder = found.folder if found else ""
            here = [file for file in files if found and file["name"] in found.offer]
        reports, leaks = chats.check_files(folder, here)
        missing: dict[str, chats.FileReport] = {}
        if found and not git:
            for name in (file["name"] for file in files if file not in here):
                # A file that exists here but isn't synced may lie on the host already.
                if name not in missing and not _lies_in(folder, name):
                    missing[name] = chats.FileReport(name)
                    place = found.bundle or found.folder
                    missing[name].add(None, f"there is no such file in {place}")
        self._checked = [
            {**report.facts(), "stages": chats.trained_by(report.file, files)}
            for report in (*missing.values(), *reports)
        ]
        self._leaks = [leak.as_dict() for leak in leaks]
        if git:
            return []
        return [file for file in files if file not in here and file["name"] not in missing]

    def _judge_data(self, wanted: Result, stops: bool) -> None:
        """Say what the gate's checks of the data say, where no gate follows that would.

        :param stops: whether a failed one ends it.
        :raises TrainError: then.
        """
        names = [check.name for check in gate_data.DATA_CHECKS]
        given = self.argument("silence") or {}
        ours = {name: reason for name, reason in given.items() if name in names}
        context = gate_model.Context(
            data=gate_facts.from_controller(self._checked, self._leaks),
            stages=tuple(wanted["stages"]),
        )
        silenced = gate_limits.silenced(ours, names)
        findings = gate.run_table(context, gate_model.STRICT, gate_data.DATA_CHECKS, silenced)
        stop, stopping = gate.judge(findings, gate_model.STRICT)
        for finding in findings:
            result = finding.would_be or finding.result
            if result in (gate_model.FAIL, gate_model.WARN) and not (stops and stop):
                self.warn(f"The check {finding.check}: {finding.seen} {finding.action}".strip())
        if stops and stop:
            raise TrainError(*gate.sentence(stopping), "data")

    def _result(
        self,
        wanted: Result,
        made: Result,
        found: source.Source | None,
        on_host: list[dict[str, str]],
    ) -> Result:
        places = made["sync"] or {key: [] for key in (*_BY_PLACE, "remove", "kept")}
        names = found.offer.names if found else []
        sync = {key: [shown(names[place]) for place in places[key]] for key in _BY_PLACE}
        sync["remove"] = places["remove"]
        git = made["git"]
        differs = any(sync.values())
        sends = bool(differs or made["engine_changed"] or (git and git["changes"]))
        due = _due(wanted, made, sends)
        here = source.not_pulled(wanted["sync"], git["after"]) if git else []
        if made["is_clone"] and differs and not git:
            here.append(
                f"{wanted['project_root']} is a clone of git's, which then has changes:"
                " code_sync_mode=git brings it what it tracks."
            )
        if places["kept"]:
            here.append(
                "Stays on the host, since it was changed there, though the project no longer has"
                f" it: {first_of(places['kept'])}."
            )
        for sentence in (*made["interrupted"], *(found.warnings if found else ()), *here):
            self.warn(sentence)
        lines = list(_lines(made, sync, sends))
        for line in lines:
            self._line.keep(line)
        for stage in made["stages"]:
            for warning in stage["warnings"]:
                self.warn(warning)
        return {
            "changed": made["changed"],
            **{k: made[k] for k in ("stages", "work", "live", "python", "home", "uncollected")},
            "provision": made["provision"],
            "bare": made["bare"],
            "pythons_tried": made["pythons_tried"],
            "sync": sync,
            "offer": self._offered(wanted["sync"], found, made, differs),
            "git": git,
            "engine_changed": made["engine_changed"],
            "sends": sends,
            "due": due,
            "empty": not (due or made["live"]),
            # Where no stage was ever asked for or trained, there is nothing to keep a record of.
            "records": bool(wanted["selected"] or made["uncollected"]),
            "data_on_host": on_host,
            "data_checked": self._checked,
            "data_leaks": self._leaks,
            "run": made["uncollected"] or runs.new_name(),
            "lines": lines,
        }

    def _offered(
        self, sync: Result, found: source.Source | None, made: Result, sends: bool
    ) -> Result | None:
        """What code_sync needs to know of the offer."""
        if found is None:
            return None
        places = made["sync"]["add"] + made["sync"]["change"]
        names = [found.offer.names[place] for place in places]
        part = ""
        # So few of so many that it is worth not looking at all of them again, as signing would.
        few = len(names) <= FEW and made["offer_kept"]
        if few and sends and not (sync["follow_links"] or sync["signing_key"]):
            runs_there = found.offer.executable
            part = Offer((name, found.offer[name], name in runs_there) for name in names).packed()
        sizes = {file.name: file.size for file in found.files}
        return {
            "sha256": found.offer.sha256,
            "kept": made["offer_kept"],
            "label": found.label,
            "archive": found.sha256,
            "bytes": sum(sizes[name] for name in names),
            "places": [] if part else places,
            "part": part,
        }


FEW = 1000
"""Files up to which the plan itself hands on what is to be sent."""

_BY_PLACE = ("add", "change", "mode")
"""What the host says of files by their places in the offer."""


def _require_places(sync: Any, count: int) -> None:
    """:raises TrainError: where the host says what it can't have been asked for."""
    places = [place for key in _BY_PLACE for place in sync[key]]
    if any(type(place) is not int or not 0 <= place < count for place in places):
        raise TrainError(
            "The host speaks of files that it was not offered.",
            "Don't trust this host.",
            "integrity",
        )


def _lies_in(folder: str, name: str) -> bool:
    return os.path.exists(os.path.join(folder, name))


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield None


def _due(wanted: Result, made: Result, sends: bool) -> list[str]:
    """The steps among those asked for that have something to do, the gate apart: it always looks.

    A Python is made for a stage that runs, or where nothing but the steps was asked for.
    """
    due = {
        "sync": sends,
        "provision": bool(made["provision"])
        or (made["python"] is None and bool(made["work"] or not wanted["selected"])),
        "train": bool(made["work"]),
        "collect": bool(made["uncollected"]),
    }
    return [step for step, has in due.items() if has and step in (*wanted["steps"], "train")]


_VERBS = {"train": "trains", "evaluate": "is evaluated again", "skip": "skips", "leave": "left out"}


def _lines(made: Result, sync: dict[str, list[str]], sends: bool) -> Any:
    """The plan for a person: a line a stage, then git, sync and Python."""
    wide = max((len(stage["name"]) for stage in made["stages"]), default=0)
    for stage in made["stages"]:
        reasons = "; ".join(stage["reasons"])
        hint = ""
        if stage["action"] == "skip":
            hint = " (-e force=true trains it again)"
        yield f"  {stage['name']:<{wide}}  {_VERBS[stage['action']]}: {reasons}{hint}"
    if made["git"]:
        # The commits that a pull brings are shown when it has brought them.
        yield from made["git"]["lines"][: 1 if made["git"]["changes"] else None]
    if sends:
        does = {**dict.fromkeys(("add", "change", "remove")), "mode": "make executable or not"}
        counts = [f"{len(sync[key])} to {word or key}" for key, word in does.items() if sync[key]]
        engine = ["this project's own code"] if made["engine_changed"] else []
        if counts or engine:
            yield f"  sync sends: {', '.join(counts + engine)}"
    for step in made["provision"]:
        yield f"  provision {step}"
    if made["python"]:
        yield f"  Python: {made['python']['path']}"
    elif len(made["pythons_tried"]) == 1:
        tried = made["pythons_tried"][0]
        yield f"  Python: {tried['path']} lacks {', '.join(tried['missing'])}"
    else:
        yield "  Python: none on the host has what the training needs; provision makes one"
