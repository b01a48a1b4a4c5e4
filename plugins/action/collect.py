"""Bring a run home: gather on the host, fetch what is not here, verify every byte."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from ansible.errors import AnsibleConnectionFailure

from controller import download, signing
from controller.action import GaveUpError, Result, TrainAction, failed
from controller.home import home_path
from controller.link import Link
from controller.progress import SHOWN_AFTER, Meter
from remote_train import bundle, gather, issues, kept, retention, runs
from remote_train.atomic import write_json, write_text
from remote_train.bundle_apply import Delivery
from remote_train.errors import TrainError

LARGE = 4 * 1024 * 1024
"""Bytes from which on a file comes by itself: an adapter hardly gets smaller in a bundle."""

ATTEMPTS = 4
"""How often a run is gathered before what was fetched has to agree with it."""


class ActionModule(TrainAction):
    """``collect:`` gathers and fetches; with ``expected``, it verifies what is at home.

    With ``untouched`` nothing is asked of the host, on which nothing has changed: what was seen
    from here is written at home.
    """

    def act(self, task_vars: Result) -> Result:
        """Gather unless there is nothing new, then make home equal to the host."""
        self._vars = task_vars
        self._line = self.line_for(task_vars, SHOWN_AFTER)
        self._request = self.argument("request")
        self._run = self.argument("run")
        self._home = os.path.abspath(os.path.expanduser(self.argument("dest")))
        if self.argument("expected") == []:
            self._line.keep("  nothing to collect: nothing has been trained on the host yet")
            return {"changed": False}
        untouched = bool(self.argument("untouched", False))
        if self.check and untouched:
            return {"changed": False}
        if self.check:
            self._line.keep(f"  would bring adapters, logs and reports to {self._home}")
            return {"changed": False}
        try:
            if untouched:
                self._leave_record(self.argument("controller"), [])
                self._line.keep(f"  what was found is in {self._record_folder()}")
                return {"changed": False}
            return self._collect()
        except OSError as error:
            raise TrainError(
                f"Results can't be written to {self._home}: {error.strerror}.",
                "Make room there, or name another folder with collect_dest; then give the same "
                "command again.",
                "infra",
            ) from error

    def _collect(self) -> Result:
        expected = self.argument("expected")
        controller = self.argument("controller")
        try:
            if expected is not None:
                return self._again(expected)
            gathered, brought = self._gather(controller)
            self._keep(self._run)
        except AnsibleConnectionFailure:
            seen = ""
            if expected is None:
                gone = issues.make("collect", "The host could not be reached.", category="infra")
                self._leave_record(controller, [] if controller["failure"] else [gone])
                seen = f"What was seen from here is in {self._record_folder()}. "
            return failed(
                GaveUpError(
                    "The host can't be reached, so nothing was collected.",
                    f"{seen}Give the same command again when the host is back, and it collects.",
                    "infra",
                )
            )
        except GaveUpError as error:
            if expected is None:
                broke = issues.make("collect", error.message, category="infra")
                self._leave_record(controller, [broke])
            return failed(error)
        except TrainError as error:
            if expected is not None:
                raise
            # A disk that takes nothing more, for one: the evidence is not lost with it.
            category, hint = error.category, error.hint
            refused = issues.make("collect", error.message, category=category, action=hint)
            self._leave_record(controller, [refused])
            seen = f"What was seen from here is in {self._record_folder()}."
            raise TrainError(error.message, f"{hint} {seen}".strip(), category) from error
        self._tell(gathered)
        report = self.draw_page(self._home, self._run, self._request["report_language"])
        report = report or os.path.join(self._home, home_path(gathered["summary"]))
        return {
            **brought,
            "changed": True,
            "verdict": gathered["verdict"],
            "against": gathered["against"],
            "report": report,
        }

    def _tell(self, gathered: Result) -> None:
        """Show what the host says of the run as a whole."""
        if gathered["removed"]:
            self._line.keep(
                f"  old runs removed there (keep_runs): {', '.join(gathered['removed'])}"
            )
        for sentence in gathered["not_removed"]:
            self.warn(sentence)
        self.say("")
        for line in gathered["table"].splitlines():
            self._line.keep(line)

    def _again(self, expected: list[Result]) -> Result:
        """Make sure of what was collected before; a run that comes home anew gets its page."""
        brought = self._bring(expected)
        for run in _runs_in([file["path"] for file in expected]):
            self._keep(run)
        for run in _runs_in(brought["fetched"]):
            self.draw_page(self._home, run, self._request["report_language"])
        return brought

    def _keep(self, run: str) -> None:
        """Keep adapters, markers and logs with the run at home as well, and let old ones go."""
        sync = os.path.join(self._home, "training_sync")
        listed = runs.listed(os.path.join(sync, run, "outputs.sha256"))
        if listed is None:
            return
        problems = kept.fill(
            sync, run, listed, lambda name: os.path.join(self._home, home_path(name))
        )
        keep, pinned = self._request["keep_runs"], self._request["pinned_runs"]
        pruned = retention.prune(sync, keep, pinned, {run, self._run})
        if pruned.removed:
            self._line.keep(f"  old runs removed here (keep_runs): {', '.join(pruned.removed)}")
        for sentence in (*problems, *pruned.problems, *self._sign(listed)):
            self.warn(sentence)

    def _sign(self, listed: dict[str, str]) -> list[str]:
        """Sign the adapters that a run lists, where there is a key; why one is not signed."""
        key = self._request["sign_adapters_key"]
        folders = [stage["adapter_dir"] for stage in self._request["stages"] if key]
        there = [f for f in folders if any(name.startswith(f"{f}/") for name in listed)]
        found = (signing.sign(os.path.join(self._home, home_path(f)), key) for f in there)
        return [sentence for sentence in found if sentence]

    def _gather(self, controller: Result) -> tuple[Result, Result]:
        """What gather answered and what was brought home, from one and the same gathering.

        Two controllers that have followed one training to its end gather its run at the same
        time, each of them writing over what the other one fetches.
        """
        arguments = {"request": self._request, "run": self._run, "controller": controller}
        for left in reversed(range(ATTEMPTS)):
            gathered = self.call("gather", arguments, self._vars)
            try:
                return gathered, self._bring(gathered["files"])
            except TrainError as error:
                if error.category != "integrity" or not left:
                    raise
            time.sleep(secrets.randbelow(1000) / 1000)  # so that they don't meet again
        raise AssertionError("the loop above returns or raises")

    def _bring(self, files: list[Result]) -> Result:
        """Fetch what is not here as it should be, in one bundle; then verify all of it."""
        wanted = {home_path(file["path"]): file["sha256"] for file in files}
        there = {home_path(file["path"]): file for file in files}
        missing = self._missing(wanted)
        size = 0
        if missing:
            size = self._fetch([there[name] for name in missing], wanted)
        wrong = self._missing(wanted)
        if wrong:
            raise TrainError(
                f"{wrong[0]} in {self._home} is not what the host has.",
                "Give the same command again.",
                "integrity",
            )
        if wanted:
            self._line.keep(
                f"  {len(wanted)} files verified in {self._home} ({len(missing)} fetched)"
            )
        return {
            "changed": bool(missing),
            "verified": len(wanted),
            "fetched": missing,
            "bytes": size,
        }

    def _missing(self, wanted: dict[str, str]) -> list[str]:
        found = bundle.compare(self._home, wanted)
        return sorted(found["missing"] + found["different"])

    def _fetch(self, files: list[Result], wanted: dict[str, str]) -> int:
        """Fetch ``files``, each verified before it is put into place; the bytes of all.

        Small ones come in one bundle, which costs one round trip. Large ones come as they lie
        there: they need no room on the host's disk, and what has come of one counts.
        """
        large = [file for file in files if _size(file) >= LARGE]
        small = [file["path"] for file in files if _size(file) < LARGE]
        os.makedirs(self._home, exist_ok=True)
        with download.incoming(self._home, self._line.keep) as folder:
            fetcher = download.Download(self._read_bytes, self._link(), folder)
            total = sum(_size(file) for file in files)
            needed = sum(fetcher.left(_size(file), file["sha256"]) for file in large)
            download.require_room(self._home, needed)
            meter = Meter(self._line, "fetching results:", total)
            if small:
                self._fetch_small(small, wanted, fetcher, meter)
            for file in large:
                there = os.path.join(self._request["project_root"], file["path"])
                name = home_path(file["path"])
                self._place(fetcher.fetch(there, _size(file), wanted[name], meter), name)
            download.clear(folder)
            if meter.skipped:
                self._line.keep(f"  {meter.skipped:,} bytes were here already")
        return total

    def _fetch_small(
        self,
        paths: list[str],
        wanted: dict[str, str],
        fetcher: download.Download,
        meter: Meter,
    ) -> None:
        """One bundle with ``paths``, fetched, verified and only then put into place."""
        packed = self.call(
            "gather",
            {"request": self._request, "run": self._run, "pack": paths},
            self._vars,
        )
        try:
            here = fetcher.fetch(packed["bundle"], int(packed["size"]), packed["sha256"], meter)
        finally:
            # What can't be removed now, the packing of another day removes.
            with contextlib.suppress(AnsibleConnectionFailure, TrainError):
                self._remove(packed["bundle"])
        with tempfile.TemporaryDirectory(dir=os.path.dirname(here)) as folder:
            unpacked = os.path.join(folder, "files")
            label = Delivery(label=os.path.basename(packed["bundle"]))
            state = os.path.join(folder, "state")
            bundle.apply(here, unpacked, state, packed["sha256"], keep=0, delivery=label)
            right = bundle.compare(unpacked, {path: wanted[home_path(path)] for path in paths})
            if right["missing"] or right["different"]:
                raise TrainError(
                    f"{(right['missing'] + right['different'])[0]} changed while it was fetched.",
                    "Give the same command again.",
                    "integrity",
                )
            for path in paths:
                self._place(os.path.join(unpacked, path), home_path(path))
        os.unlink(here)

    def _link(self) -> Link:
        """The connection, while files come over it."""
        return Link(
            lambda _line: "",
            self._connection,
            float(self._request["reconnect_timeout"]),
            self._line.keep,
            "what was fetched stays here",
            "it goes on from there",
        )

    def _read_bytes(self, words: list[str]) -> bytes:
        """Run one program on the host; the bytes that it printed, which are no text."""
        answer: tuple[int, bytes, bytes] = self._connection.exec_command(
            shlex.join(words), in_data=None, sudoable=False
        )
        status, printed, complaint = answer
        if status != 0:
            said = complaint.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no word"]
            raise TrainError(
                f"What was collected can't be read on the host: {said[0]}",
                "Give the same command again: it collects anew what there is.",
                "integrity",
            )
        return printed

    def _remove(self, there: str) -> None:
        """Remove a bundle that was fetched, and what stands in a folder of its own beside it."""
        folder = os.path.dirname(there)
        if os.path.dirname(folder) == os.path.join(self._request["project_root"], gather.OUTGOING):
            self.shell(["rm", "-r", "-f", "--", folder])

    def _place(self, source: str, name: str) -> None:
        """Put one verified file into place, by a rename on the same file system."""
        target = os.path.join(self._home, name)
        folder = os.path.dirname(target)
        try:
            os.makedirs(folder, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise TrainError(
                f"A file is in the place of the folder {error.filename}.",
                "Move it away, or give another collect_dest; then give the same command again.",
                "integrity",
            ) from error
        if os.path.realpath(folder) != os.path.join(
            os.path.realpath(self._home), os.path.dirname(name)
        ).rstrip("/"):
            raise TrainError(
                f"A link on the way to {target} leads elsewhere.",
                "Replace it by a real folder, or give another collect_dest.",
                "integrity",
            )
        if os.path.isdir(target) and not os.path.islink(target):
            try:
                os.rmdir(target)  # an empty one is nobody's
            except OSError as error:
                raise TrainError(
                    f"A folder that isn't empty is in the place of {target}.",
                    "Move it away, or give another collect_dest; then give the same command again.",
                    "integrity",
                ) from error
        os.replace(source, target)

    def _record_folder(self) -> str:
        return os.path.join(self._home, "training_sync", self._run)

    def _leave_record(self, controller: Result, more: list[Result]) -> None:
        """The controller's own part of the record, where the host gives none.

        :param more: issues beside those that the controller has told of.
        """
        # How a stage ended is in the host's own record, which isn't here.
        own = [{**one, "recorded": False} for one in controller.get("failed") or []]
        failure = controller["failure"] or {}
        if failure.get("stage"):
            failure = {**failure, "recorded": False}
        known = gather.controllers_issues({**controller, "failed": own, "failure": failure})
        folder = self._record_folder()
        # An earlier command may have collected a part of this run.
        found = issues.add(issues.read(os.path.join(folder, "issues.jsonl")), [*known, *more])
        text = "".join(f"{issues.line(issue)}\n" for issue in found)
        write_text(os.path.join(folder, "issues.jsonl"), text)
        write_text(os.path.join(folder, "ISSUES.md"), issues.render(found))
        if controller["findings"]:
            write_json(os.path.join(folder, "precheck.json"), gather.gate_record(controller))
        self.draw_page(self._home, self._run, self._request["report_language"])


def _runs_in(paths: list[str]) -> list[str]:
    """The runs that these files are of."""
    parts = {part for path in paths for part in path.split("/")}
    return sorted(part for part in parts if runs.is_name(part))


def _size(file: Result) -> int:
    """The bytes of a file, as the host has said."""
    return max(0, int(file.get("size") or 0))
