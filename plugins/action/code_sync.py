"""Bring the training project and the engine to the host: packed, sent, verified, applied."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller import project, source
from controller.action import Result, warnings_of
from controller.delivery import Delivery
from controller.progress import SHOWN_AFTER, Meter, waiting
from controller.scratch import scratch
from remote_train import bundle, bundle_archive, offer, plan, signature
from remote_train.errors import TrainError
from remote_train.hashing import file_digest
from remote_train.offer import Offer
from remote_train.project_files import ProjectFile


class ActionModule(Delivery):
    """``code_sync:`` with the request and the plan; sends what the plan says differs."""

    def act(self, task_vars: Result) -> Result:
        """Send the project, then the engine, where they differ.

        A host that can't be reached is a failure like any other here, so that what was seen of
        the run so far is still left at home.
        """
        try:
            return self.while_reached(
                lambda: self._sync(task_vars), "the training project was not synced"
            )
        except OSError as error:
            raise TrainError(
                f"The training project can't be packed in {tempfile.gettempdir()}:"
                f" {error.strerror or error}.",
                "Make room there, or name another folder in the environment as TMPDIR.",
                "infra",
            ) from error

    def _sync(self, task_vars: Result) -> Result:
        self._vars = task_vars
        request, made = self.argument("request"), self.argument("plan")
        self._root, self._settings = request["project_root"], request["sync"]
        result: Result = {"changed": bool(made["sends"]), "sent": {}}
        if self._task.diff or self.check:
            result["diff"] = [{"prepared": _shown(made)}]
        self._line = self.line_for(task_vars, SHOWN_AFTER)
        if not made["sends"]:
            self._line.keep(f"  {_nothing(made)}")
        if self.check or not made["sends"]:
            return result
        self.connect(self._root, self._line, float(request["reconnect_timeout"]))
        with scratch() as folder:
            if made["git"] and made["git"]["changes"]:
                result["sent"]["git"] = self._pull(made["git"])
            if any(made["sync"].values()):
                result["sent"]["project"] = self._project(made, request["data_base"], folder)
            if made["engine_changed"]:
                result["sent"]["engine"] = self._engine(folder)
        return result

    # -- what is sent ---------------------------------------------------------------------------

    def _pull(self, git: Result) -> Result:
        """Let the host bring the project to its commit by itself."""
        arguments = {
            "root": self._root,
            "url": source.with_login(git["url"], self.setting("sync_git_url", self._vars)),
            "ref": git["ref"],
            "allow_dirty": self._settings["git"]["allow_dirty"],
            "allowed_signers": source.allowed_signers(self._settings),
        }
        with waiting(self._line, f"the host pulls {git['ref'] or 'its branch'}"):
            # One that was cut is taken up by the next.
            pulled = self._link(lambda: self.call("pull", arguments, self._vars))
        for warning in warnings_of(pulled):
            self.warn(warning)
        for line in pulled["lines"]:
            self._line.keep(line)
        return {key: pulled[key] for key in ("before", "after", "ref", "kind", "files")}

    def _project(self, made: Result, data_base: str, folder: str) -> Result:
        """Send what the host lacks of the project, or all of it where a bundle is wanted."""
        sync = self._settings
        terms: Result = {
            "root": self._root,
            "state_dir": os.path.join(self._root, made["state"]),
            "keep": sync["keep"],
            "cache": sync["cache"],
            "allowed_signers": source.allowed_signers(sync),
        }
        if sync["bundle"]:
            path = os.path.abspath(os.path.expanduser(sync["bundle"]))
            if file_digest(path) != made["offer"]["archive"]:
                raise _changed(f"The bundle {path}")
            beside = [name for name in bundle_archive.beside(path) if os.path.isfile(name)]
            return self.deliver([path, *beside], made["offer"]["archive"], terms, made)
        if made["offer"]["part"] and sync["mode"] != "bundle":
            part = offer.unpack(made["offer"]["part"])
            place = source.folder_of(sync)
            files = source.files_in(place, part)
            terms["offer_sha256"] = made["offer"]["sha256"]
            return self._delta(place, files, part, folder, terms, made)
        with source.opened(sync, data_base, self._line) as found:
            if found is None or found.offer.sha256 != made["offer"]["sha256"]:
                raise _changed("The training project")
            if terms["allowed_signers"] is not None:
                if not sync["signing_key"]:  # git's own commits are signed, what goes beside isn't
                    raise source.unsigned()
                signed = signature.sign(found.offer.raw, sync["signing_key"])
                # As the host will do it again; but here it is known before anything is sent.
                signature.check(found.offer.raw, signed, terms["allowed_signers"], found.label)
                terms["signature"] = signed.decode("ascii")
            if sync["mode"] == "bundle":
                meter = self._packing(found.label, found.files)
                # A folder's name may hold what an archive's may not.
                built = bundle.build(found.folder, found.files, folder, "project", meter.add)
                return self.deliver([built.paths[0]], built.sha256, terms, made)
            chosen = {found.offer.names[place] for place in made["offer"]["places"]}
            files = [file for file in found.files if file.name in chosen]
            if made["offer"]["kept"]:
                terms["offer_sha256"] = found.offer.sha256
            else:
                terms["offer"] = found.offer.packed()
            return self._delta(found.folder, files, found.offer, folder, terms, made)

    def _delta(
        self,
        place: str,
        files: list[ProjectFile],
        digests: Offer,
        folder: str,
        terms: Result,
        made: Result,
    ) -> Result:
        """Send these files alone."""
        path = os.path.join(folder, "project.delta")
        meter = self._packing(made["offer"]["label"], files)
        sha256 = bundle.build_delta(place, files, digests, path, meter.add)
        return self.deliver([path], sha256, terms, made)

    def _engine(self, folder: str) -> Result:
        """Send this project's own code, all of it."""
        laid = os.path.join(folder, "engine")
        built = bundle.build(laid, project.lay_engine(laid), folder, "engine")
        terms = {
            "root": os.path.join(self._root, plan.ENGINE),
            "state_dir": os.path.join(self._root, plan.ENGINE, ".state"),
            "keep": 0,
        }
        asked = {"offer": {"label": "engine", "bytes": built.bytes}, "sync": {}}
        return self.deliver([built.paths[0]], built.sha256, terms, asked)

    def _packing(self, label: str, files: list[ProjectFile]) -> Meter:
        return Meter(self._line, f"packing {label}:", sum(file.size for file in files))


def _nothing(made: Result) -> str:
    """Why there is nothing to send."""
    if made["offer"] is None and made["git"] is None:
        return "no project is synced: there is no project_src, or it is project_root itself"
    return "nothing to send: all of it is there already"


def _changed(what: str) -> TrainError:
    return TrainError(
        f"{what} changed after the plan was made.",
        "Run it again when nothing writes there.",
        "data",
    )


def _shown(made: Result) -> str:
    """What would be sent, a line a path, as ``--diff`` shows it."""
    signs = (("add", "+"), ("change", "~"), ("mode", "x"), ("remove", "-"))
    lines: list[Any] = [f"{sign} {name}" for key, sign in signs for name in made["sync"][key]]
    if made["git"] and made["git"]["changes"]:
        lines.append(f"~{made['git']['lines'][0]}")
    if made["engine_changed"]:
        lines.append(f"~ {plan.ENGINE}/ (this project's own code)")
    return "".join(f"{line}\n" for line in lines)
