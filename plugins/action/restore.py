"""Give a run back to a host: what it lacks of it is sent, verified and applied, as by a sync."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller import whole_run
from controller.action import Result
from controller.delivery import Delivery
from controller.progress import SHOWN_AFTER, Meter, size
from controller.scratch import scratch
from remote_train import bundle, markers, restore_place
from remote_train.errors import TrainError
from remote_train.offer import Offer
from remote_train.project_files import ProjectFile


class ActionModule(Delivery):
    """``restore:`` with the request, ``home`` and ``run`` (empty: the newest that is whole)."""

    def act(self, task_vars: Result) -> Result:
        """Choose the run, look at the host, and bring it what it lacks."""
        self._vars = task_vars
        request = self.argument("request")
        self.connect(
            request["project_root"],
            self.line_for(task_vars, SHOWN_AFTER),
            float(request["reconnect_timeout"]),
        )
        home = os.path.abspath(os.path.expanduser(self.argument("home")))
        try:
            return self.while_reached(
                lambda: self._restore(whole_run.choose(home, self.argument("run", ""))),
                "the run was not restored",
            )
        except OSError as error:
            raise TrainError(
                f"The run can't be packed: {error.strerror or error} ({error.filename}).",
                f"See to it that {home} can be read, and that {tempfile.gettempdir()} has room.",
                "infra",
            ) from error

    def _restore(self, run: whole_run.WholeRun) -> Result:
        asked = {"root": self._root, "run": run.name, "digests": run.digests}
        found = self._link(lambda: self.call("restore", asked, self._vars))
        force = self.argument("request")["force"]
        if found["done"] and not force:
            raise TrainError(
                f"On the host, {', '.join(found['done'])} is done with something else than"
                f" {run.name} has.",
                "Nothing was changed there; -e force=true puts what the run has in its place.",
                "ops",
            )
        names = {*found["missing"], *found["different"]} & set(run.digests)
        files = [file for file in run.files if file.name in names]
        count, length = len(files), size(sum(file.size for file in files))
        stages = ", ".join(_stages(run)) or "no stage"
        result = {"changed": bool(files), "run": run.name, "sent": sorted(names)}
        if self.check:
            self._line.keep(
                f"  would restore {run.name} ({stages}): {count} files to send, {length}"
                if files
                else f"  {run.name} ({stages}) is there already"
            )
            return result
        if files:
            self._send(run, files)
        done = self._link(lambda: self.call("restore", {**asked, "finish": True}, self._vars))
        for sentence in done["problems"]:
            self.warn(sentence)
        self._line.keep(
            f"  {run.name} ({stages}): {done['verified']} files verified on the host"
            f" ({count} sent, {length})"
        )
        return {**result, "verified": done["verified"]}

    def _send(self, run: whole_run.WholeRun, files: list[ProjectFile]) -> None:
        """Send files of the run as a delta: the way in which a sync sends what has changed."""
        state = os.path.join(self._root, restore_place.FOLDER, run.name)
        terms = {
            "root": self._root,
            "state_dir": state,
            "keep": 0,
            "offer": Offer((name, digest, False) for name, digest in run.digests.items()).packed(),
        }
        made = {
            "offer": {"label": run.name, "bytes": sum(file.size for file in files)},
            "sync": {},
        }
        meter = Meter(self._line, f"packing {run.name}:", sum(file.size for file in files))
        with scratch() as folder:
            path = os.path.join(folder, "run.delta")
            sha256 = bundle.build_delta("/", files, run.digests, path, meter.add)
            self.deliver([path], sha256, terms, made)
        # The outputs are the host's own from here on: nothing that comes later counts as a change
        # to what was restored, or removes it.
        self._forget(state)


def _stages(run: whole_run.WholeRun) -> list[str]:
    """The stages whose markers the run brings."""
    return sorted(
        os.path.basename(name)[: -len(".json")]
        for name in run.digests
        if os.path.dirname(name) == markers.STAGES
    )
