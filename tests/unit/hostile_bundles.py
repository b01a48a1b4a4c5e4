"""Bundles made byte by byte: sound ones of any kind, and such as no good program would make."""

import gzip
import hashlib
import io
import tarfile

from remote_train.manifest import MODERN


def tar_of(path, files, manifest_name=MODERN, algorithm="sha256", executable=()):
    """A sound bundle of ``files`` with one kind of manifest; its path."""
    listing = "".join(
        f"{hashlib.new(algorithm, data).hexdigest()}  {name}\n" for name, data in files.items()
    )
    members = [(manifest_name, listing.encode(), 0o644)] + [
        (name, data, 0o755 if name in executable else 0o644) for name, data in files.items()
    ]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data, mode in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(gzip.compress(stream.getvalue(), 1))
    return path
