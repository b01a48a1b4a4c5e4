"""Bring the training project and the engine to the host: packed, sent, verified, applied."""

from __future__ import annotations

import base64
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from ansible.errors import AnsibleConnectionFailure

from controller import link, project, source
from controller.action import (
    GaveUpError,
    Result,
    TrainAction,
    failed,
    warnings_of,
)
from controller.progress import SHOWN_AFTER, Meter, size, waiting
from controller.upload import Upload
from remote_train import bundle, bundle_archive, offer, plan, runs
from remote_train.errors import TrainError
from remote_train.hashing import file_digest
from remote_train.offer import Offer
from remote_train.project_files import ProjectFile

INCOMING = f"{runs.SYNC}/incoming"
"""Where what is sent arrives on the host, under the project root and on its file system."""

INLINE = 256 * 1024
"""Bytes up to which an archive comes along with the module, and costs no round trip of its own."""


class ActionModule(TrainAction):
    """``code_sync:`` with the request and the plan; sends what the plan says differs."""

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
        except GaveUpError as error:
            return failed(error)

    def _sync(self, task_vars: Result) -> Result:
        self._vars = task_vars
        request, made = self.argument("request"), self.argument("plan")
        self._root, self._settings = request["project_root"], request["sync"]
        result: Result = {"changed": bool(made["sends"]), "sent": {}}
        if self._task.diff or self.check:
            result["diff"] = [{"prepared": _shown(made)}]
        self._line = self.line_for(task_vars, SHOWN_AFTER)
        if not made["sends"]:
            self._line.keep("  nothing to send: all of it is there already")
        if self.check or not made["sends"]:
            return result
        self._link = link.Link(
            lambda _line: "",
            self._connection.reset,
            float(request["reconnect_timeout"]),
            self._line.keep,
            "what was sent stays there",
            "it goes on from there",
        )
        with tempfile.TemporaryDirectory(prefix="remote-train-") as folder:
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
            "url": git["url"],
            "ref": git["ref"],
            "allow_dirty": self._settings["git"]["allow_dirty"],
        }
        with waiting(self._line, f"the host pulls {git['ref'] or 'its branch'}"):
            pulled = self.call("pull", arguments, self._vars)
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
            "signature": made["offer"]["signature"],
            "allowed_signers": source.allowed_signers(sync),
        }
        if sync["bundle"]:
            path = os.path.abspath(os.path.expanduser(sync["bundle"]))
            label = os.path.basename(path)
            return self._deliver(self._with_its_own(path), file_digest(path), terms, label)
        if made["offer"]["part"] and sync["mode"] != "bundle":
            part = offer.unpack(made["offer"]["part"])
            place = source.folder_of(sync)
            files = source.files_in(place, part)
            terms["offer_sha256"] = made["offer"]["sha256"]
            return self._delta(place, files, part, folder, terms)
        with source.opened(sync, data_base, self._line) as found:
            if found is None or found.offer.sha256 != made["offer"]["sha256"]:
                raise TrainError(
                    "The training project changed after the plan was made.",
                    "Run it again when nothing writes there.",
                    "data",
                )
            if sync["mode"] == "bundle":
                meter = self._packing(found.label, found.files)
                # A folder's name may hold what an archive's may not.
                built = bundle.build(found.folder, found.files, folder, "project", meter.add)
                return self._deliver([built.paths[0]], built.sha256, terms, found.label)
            chosen = {found.offer.names[place] for place in made["offer"]["places"]}
            files = [file for file in found.files if file.name in chosen]
            if made["offer"]["kept"]:
                terms["offer_sha256"] = found.offer.sha256
            else:
                terms["offer"] = found.offer.packed()
            return self._delta(found.folder, files, found.offer, folder, terms)

    def _delta(
        self, place: str, files: list[ProjectFile], digests: Offer, folder: str, terms: Result
    ) -> Result:
        """Send these files alone."""
        path = os.path.join(folder, "project.delta")
        label = os.path.basename(place)
        meter = self._packing(label, files)
        sha256 = bundle.build_delta(place, files, digests, path, meter.add)
        return self._deliver([path], sha256, terms, label)

    def _engine(self, folder: str) -> Result:
        """Send this project's own code, all of it."""
        laid = os.path.join(folder, "engine")
        built = bundle.build(laid, project.lay_engine(laid), folder, "engine")
        terms = {
            "root": os.path.join(self._root, plan.ENGINE),
            "state_dir": os.path.join(self._root, plan.ENGINE, ".state"),
            "keep": 0,
        }
        return self._deliver([built.paths[0]], built.sha256, terms, "engine")

    def _with_its_own(self, path: str) -> list[str]:
        """A bundle that was given, and the files beside it that speak of it."""
        return [path, *(name for name in bundle_archive.beside(path) if os.path.isfile(name))]

    def _packing(self, label: str, files: list[ProjectFile]) -> Meter:
        return Meter(self._line, f"packing {label}:", sum(file.size for file in files))

    # -- how it is sent -------------------------------------------------------------------------

    def _deliver(self, paths: list[str], sha256: str, terms: Result, label: str) -> Result:
        """Bring an archive, and what speaks of it, to the host, and apply it there.

        :param label: what it is called, for a person and in the list of versions.
        """
        archive = paths[0]
        length = os.path.getsize(archive)
        meter = Meter(self._line, f"sending {label}:", length)
        terms = {**terms, "sha256": sha256, "label": label, "project_root": self._root}
        folder = sha256[:32]
        sent = length > INLINE or len(paths) > 1
        if sent:
            upload = Upload(self._on_host, self._link, os.path.join(self._root, INCOMING))
            terms["src"] = upload.send(archive, folder, meter)
            for path in paths[1:]:
                upload.place(path, folder)
        else:
            with open(archive, "rb") as stream:
                terms["content"] = base64.b64encode(stream.read()).decode("ascii")
        rate = f" at {meter.rate}" if meter.seconds >= SHOWN_AFTER else ""
        try:
            with waiting(self._line, f"the host verifies and applies {label}, {size(length)}"):
                applied = self._link(lambda: self.call("apply_bundle", terms, self._vars))
        finally:
            if sent:
                self._forget(os.path.join(self._root, INCOMING, folder))
        for warning in warnings_of(applied):
            self.warn(warning)
        keys = ("added", "replaced", "removed", "kept")
        counts = ", ".join(f"{len(applied[key])} {key}" for key in keys if applied[key])
        signer = f", signed by {applied['signer']}" if applied["signer"] else ""
        self._line.keep(
            f"  {label}: {length:,} bytes sent{rate}, verified{signer} and applied"
            f" ({counts or 'same'})"
        )
        return {key: applied[key] for key in (*keys, "unchanged", "bytes", "sha256", "signer")}

    def _on_host(self, words: list[str], stdin: bytes) -> str:
        return self.shell(words, stdin, os.path.join(self._root, INCOMING))

    def _forget(self, folder: str) -> None:
        """Remove what was sent; where the host is gone, the next day's sync does it."""
        try:
            self.shell(["rm", "-r", "-f", "--", folder])
        except (AnsibleConnectionFailure, TrainError) as error:
            self.warn(f"{folder} is left on the host: {error}")


def _shown(made: Result) -> str:
    """What would be sent, a line a path, as ``--diff`` shows it."""
    signs = (("add", "+"), ("change", "~"), ("mode", "x"), ("remove", "-"))
    lines: list[Any] = [f"{sign} {name}" for key, sign in signs for name in made["sync"][key]]
    if made["git"] and made["git"]["changes"]:
        lines.append(f"~{made['git']['lines'][0]}")
    if made["engine_changed"]:
        lines.append(f"~ {plan.ENGINE}/ (this project's own code)")
    return "".join(f"{line}\n" for line in lines)
