"""Fetch one base model into the training's cache; run by the training's own Python.

    python fetch_model.py < REQUEST.json

It knows nothing of the rest of this package, so that its text alone can be sent there. It prints a
JSON line for its progress (``text``, ``done``, ``of`` in bytes), and one at its end (``folder``,
or ``error`` with ``msg``, ``hint``, ``category``).

huggingface_hub (2.4) goes on with a cut file by a range only within one process, and deletes what
it has of it when it gives up or is ended. So the files of which the hub has a SHA-256, the weights
among them, are fetched here: into a part beside the cache's blob, gone on with after whatever cut
it, verified, and renamed to what the library would have called it. The library does the rest.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import shutil
import sys
import time
from typing import Any

PATIENCE = 600.0
"""Seconds without a new byte after which a fetch gives up."""

SILENCE = 20.0
"""Seconds that the hub gets to answer a question, where the library sets no limit."""

KINDS = (".json", ".txt", ".model", ".jinja", ".tiktoken")
"""What a model has beside its weights; no pickle, and no code."""

CHUNK = 1 << 20


class FetchError(Exception):
    """A model that can't be had: one sentence, one hint."""

    def __init__(self, message: str, hint: str, category: str = "model_download") -> None:
        super().__init__(message)
        self.fields = {"msg": message, "hint": hint, "category": category}


def tell(**facts: Any) -> None:
    """Print one line for whoever follows."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def choose(names: list[str]) -> list[str]:
    """The files of a repository that a training loads: its top folder's, weights once."""
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    whole = "model.safetensors"
    if whole in weights:
        weights = [whole]
    elif any(name.startswith("model-") for name in weights):
        # Beside these, some repositories hold the same weights in their makers' own form.
        weights = [name for name in weights if name.startswith("model-")]
    return sorted(weights + [name for name in top if name.endswith(KINDS)])


class Hub:
    """One model on a Hugging Face hub, or on a mirror of one."""

    def __init__(self, name: str, revision: str, patience: float = PATIENCE) -> None:
        # What is fetched by ranges has to come over plain HTTP.
        os.environ["HF_HUB_DISABLE_XET"] = "1"
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        self.library: Any = importlib.import_module("huggingface_hub")
        self.errors: Any = importlib.import_module("huggingface_hub.errors")
        self.tools: Any = importlib.import_module("huggingface_hub.utils")
        self.constants: Any = importlib.import_module("huggingface_hub.constants")
        self.name = name
        self.revision = revision
        self.patience = patience
        self.done = 0
        self.of = 0
        self.shown = 0.0
        self.endpoint = str(self.constants.ENDPOINT)
        self._limit_silence(min(SILENCE, patience))

    def _limit_silence(self, seconds: float) -> None:
        """See to it that no question waits for ever: the library (2.4) sets some no limit."""

        def limit(request: Any) -> None:
            limits = request.extensions.get("timeout") or {}
            kinds = ("connect", "read", "write", "pool")
            request.extensions["timeout"] = {kind: limits.get(kind) or seconds for kind in kinds}

        def client() -> Any:
            made = importlib.import_module("huggingface_hub.utils._http").default_client_factory()
            made.event_hooks["request"].append(limit)
            return made

        self.library.set_client_factory(client)

    def fetch(self) -> str:
        """Bring the model into the cache; the folder of its snapshot."""
        try:
            return self._fetch()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full(str(error.strerror)) from error
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and not self._is_cut(error):
                cache = os.path.expanduser(self.constants.HF_HUB_CACHE)
                raise FetchError(
                    f"The model {self.name} can't be kept in {cache}: {error.strerror}.",
                    "Set runtime_base to a folder on a disk that this user can write to.",
                    "infra",
                ) from error
            raise self._words(error) from error
        except FetchError:
            raise
        except Exception as error:
            raise self._words(error) from error

    def _fetch(self) -> str:
        info = self._retried(
            lambda: self.library.HfApi().model_info(
                self.name, revision=self.revision, files_metadata=True
            )
        )
        sizes = {file.rfilename: file for file in info.siblings}
        wanted = choose(list(sizes))
        if not any(name.endswith(".safetensors") for name in wanted):
            raise FetchError(
                f"The model {self.name} on {self.endpoint} has no weights in safetensors.",
                "Use a model that has: pickled weights can run code, and are not loaded.",
            )
        self.of = sum(sizes[name].size or 0 for name in wanted)
        large = [name for name in wanted if sizes[name].lfs is not None]
        repository = self._repository()
        self._check_room(repository, large, sizes)
        for name in large:
            self._large(repository, name, info.sha, str(sizes[name].lfs.sha256), sizes[name].size)
        self._show("the small files")
        return str(
            self._retried(
                lambda: self.library.snapshot_download(
                    self.name, revision=self.revision, allow_patterns=wanted
                )
            )
        )

    def _repository(self) -> str:
        cache = self.constants.HF_HUB_CACHE
        return os.path.join(
            os.path.expanduser(cache), "models--" + self.name.replace("/", "--"), "blobs"
        )

    def _check_room(self, folder: str, large: list[str], files: dict[str, Any]) -> None:
        missing = 0
        for name in large:
            blob = os.path.join(folder, str(files[name].lfs.sha256))
            there = max(_size(blob), _size(blob + ".part"))
            missing += max(0, (files[name].size or 0) - there)
        os.makedirs(folder, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if missing > free:
            raise self._full(f"{missing / 1e9:.1f} GB are missing, {free / 1e9:.1f} GB are free")

    def _large(self, folder: str, name: str, commit: str, digest: str, size: int) -> None:
        """One file that the hub has a digest of, over whatever cuts it."""
        blob = os.path.join(folder, digest)
        if os.path.exists(blob):
            self.done += size
            return
        part = blob + ".part"
        url = self.library.hf_hub_url(self.name, name, revision=commit, endpoint=self.endpoint)
        last, seen = time.monotonic(), _size(part)
        if seen:
            tell(log=f"{name}: goes on at {seen} of {size} bytes")
        self.done += seen
        while _size(part) < size:
            try:
                self._stream(url, part, name, size)
            except Exception as error:
                if not self._is_cut(error):
                    raise
                tell(log=f"{name}: cut at {_size(part)} of {size} bytes ({_first(error)})")
                if _size(part) > seen:
                    last, seen = time.monotonic(), _size(part)
                elif time.monotonic() - last > self.patience:
                    raise
                time.sleep(min(2.0, self.patience / 10))
        self._verify(part, name, digest)
        os.replace(part, blob)

    def _stream(self, url: str, part: str, name: str, size: int) -> None:
        have = _size(part)
        headers = dict(self.tools.build_hf_headers())
        # Packed bytes have other ranges than plain ones.
        headers["Accept-Encoding"] = "identity"
        if have:
            headers["Range"] = f"bytes={have}-"
        session = self.library.get_session()
        with session.stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=30
        ) as answer:
            self.tools.hf_raise_for_status(answer)
            whole = answer.status_code == 200  # it doesn't know ranges: from the beginning
            with open(part, "wb" if whole else "ab") as stream:
                if whole:
                    self.done -= have
                # In pieces as they arrive: what is gathered first is lost where it is cut.
                for chunk in answer.iter_bytes():
                    stream.write(chunk)
                    self.done += len(chunk)
                    self._show(name)
        if _size(part) < size:
            raise ConnectionError("the answer ended early")

    def _verify(self, part: str, name: str, digest: str) -> None:
        found = hashlib.sha256()
        with open(part, "rb") as stream:
            while chunk := stream.read(CHUNK):
                found.update(chunk)
        if found.hexdigest() != digest:
            os.unlink(part)
            raise FetchError(
                f"{name} of {self.name} arrived with another SHA-256 than {self.endpoint} says.",
                "Give the same command again; if that says the same, use another endpoint.",
                "integrity",
            )

    def _retried(self, ask: Any) -> Any:
        """``ask()``, again while the hub can't be reached or is busy, within the patience."""
        since = time.monotonic()
        while True:
            try:
                return ask()
            except Exception as error:
                # A wrong name, or no way at all from here to the hub, is said soon.
                within = self.patience if self.done else min(self.patience, 30.0)
                if not self._is_cut(error) or time.monotonic() - since > within:
                    raise
                tell(log=f"{self.endpoint}: {_first(error)}; trying again")
                time.sleep(min(2.0, self.patience / 10))

    def _is_cut(self, error: Exception) -> bool:
        """Whether it may go better the next time."""
        if isinstance(error, self.errors.HfHubHTTPError):
            status = getattr(error.response, "status_code", 0)
            return status in (408, 429) or status >= 500
        if isinstance(error, (ConnectionError, TimeoutError)):
            return True
        return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore")

    def _full(self, cause: str) -> FetchError:
        cache = os.path.expanduser(self.constants.HF_HUB_CACHE)
        return FetchError(
            f"The disk of {cache} has no room for the model {self.name}: {cause}.",
            "Make room there, or set runtime_base to a folder on a larger disk.",
            "infra",
        )

    def _words(self, error: Exception) -> FetchError:
        """Why the model can't be had, for a person."""
        known = self.errors
        which = f"The model {self.name}"
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if isinstance(error, known.GatedRepoError):
            return FetchError(
                f"{which} is gated on {self.endpoint}, and this token may not read it.",
                f"Accept its terms at {self.endpoint}/{self.name}, and set hf_token to a token of "
                "that account.",
            )
        if isinstance(error, known.RevisionNotFoundError):
            return FetchError(
                f"{which} has no revision {self.revision} on {self.endpoint}.",
                "Correct model_revision: a branch, a tag or a commit.",
            )
        if isinstance(error, known.RepositoryNotFoundError) or status in (401, 403, 404):
            return FetchError(
                f"There is no model {self.name} on {self.endpoint}, or it is private "
                f"(status {status}).",
                "Check model_name_or_path; a private model takes a valid hf_token.",
            )
        if isinstance(error, getattr(known, "HFValidationError", ())):
            return FetchError(
                f"{self.name!r} can't be the name of a model, and no folder has it.",
                "Set model_name_or_path to owner/name, or to a folder on the host.",
            )
        return FetchError(
            f"{which} can't be fetched from {self.endpoint}: {_first(error)}.",
            "Check the host's way to it: hf_endpoint names a mirror, use_modelscope another hub, "
            "and model_name_or_path may be a folder on the host. What has arrived is kept.",
        )

    def _show(self, name: str) -> None:
        now = time.monotonic()
        if now - self.shown >= 0.5 or name == "the small files":
            self.shown = now
            tell(text=f"{self.name}: {name}", done=self.done, of=self.of)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _first(error: BaseException) -> str:
    text = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    return text or type(error).__name__


def from_modelscope(name: str, revision: str) -> str:
    """The same from ModelScope, by its own library, which goes on with what it has of a file."""
    try:
        library: Any = importlib.import_module("modelscope")
    except ImportError:
        raise FetchError(
            "use_modelscope needs the package modelscope.",
            "Let provisioning install it, or set use_modelscope to false.",
            "ops",
        ) from None
    tell(text=f"{name}: from ModelScope", done=0, of=0)
    # Hugging Face's name for the default branch is not ModelScope's.
    wanted = "master" if revision == "main" else revision
    try:
        return str(library.snapshot_download(name, revision=wanted))
    except Exception as error:  # its library has no common error class
        raise FetchError(
            f"The model {name} can't be fetched from ModelScope: {_first(error)}.",
            "Check its name there and the host's way to it, or name a folder on the host. What has "
            "arrived is kept.",
        ) from error


def main() -> int:
    """Exit status 0 with the model in the cache, 1 without it."""
    asked = json.loads(sys.stdin.read())
    try:
        if asked["modelscope"]:
            folder = from_modelscope(asked["name"], asked["revision"])
        else:
            folder = Hub(
                asked["name"], asked["revision"], float(asked.get("patience", PATIENCE))
            ).fetch()
    except FetchError as error:
        tell(error=error.fields)
        return 1
    tell(folder=folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
