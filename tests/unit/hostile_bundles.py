"""Bundles made byte by byte: sound ones of any kind, and such as no good program would make."""

import gzip
import hashlib
import io
import struct
import tarfile
import zlib

from remote_train.manifest import MODERN

OK = ("ok", b"fine")
LINE = hashlib.sha256(b"fine").hexdigest().encode() + b"  "
LISTING = LINE + b"ok\n"


def tar_of(path, files, manifest_name=MODERN, algorithm="sha256", executable=()):
    """A sound bundle of ``files`` with one kind of manifest; its path."""
    listing = "".join(
        f"{hashlib.new(algorithm, data).hexdigest()}  {name}\n" for name, data in files.items()
    )
    members = [
        (special(name, tarfile.REGTYPE, mode=0o755 if name in executable else 0o644), data)
        for name, data in files.items()
    ]
    path.write_bytes(gzip.compress(tar_bytes(members, manifest_name, listing.encode()), 1))
    return path


def tar_bytes(members, manifest_name=MODERN, listing=None, form=tarfile.GNU_FORMAT):
    """A tar of (TarInfo or name, bytes); the manifest lists the regular ones unless given.

    Without a name for the manifest, it has none.
    """
    if listing is None:
        listing = "".join(
            f"{hashlib.sha256(data).hexdigest()}  {member}\n"
            for member, data in members
            if isinstance(member, str)
        ).encode()
    first = [(manifest_name, listing)] if manifest_name else []
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for member, data in [*first, *members]:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def special(name, kind, **fields):
    """A member's header."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def sound():
    """A bundle that nothing is wrong with."""
    return gzip.compress(tar_bytes([OK]))


def flipped(at):
    """The same with one bit of one byte changed."""
    data = bytearray(sound())
    data[at] ^= 1
    return bytes(data)


def with_member(member, data=b""):
    """One more member than the manifest lists."""
    return gzip.compress(tar_bytes([OK, (member, data)], listing=LISTING))


def manifest_of(text, name=MODERN):
    """A manifest of any bytes."""
    return gzip.compress(tar_bytes([OK], name, text))


def pax(**headers):
    """A member whose extended header holds ``headers``."""
    info = tarfile.TarInfo("p")
    info.pax_headers = headers
    return gzip.compress(tar_bytes([OK, (info, b"")], listing=LISTING, form=tarfile.PAX_FORMAT))


def damaged_pax():
    """An extended header in which a length is none."""
    data = gzip.decompress(pax(path="somewhere"))
    at = data.index(b"18 path=somewhere\n")
    return gzip.compress(data[:at] + b"xx" + data[at + 2 :])


def global_pax():
    """A header for all members, which gives them one path."""
    stream = io.BytesIO()
    headers = {"path": "evil"}
    with tarfile.open(
        fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers
    ) as archive:
        info = tarfile.TarInfo(MODERN)
        info.size = len(LISTING)
        archive.addfile(info, io.BytesIO(LISTING))
    return gzip.compress(stream.getvalue())


def header(name, size, kind=tarfile.REGTYPE):
    """A header block that says any size."""
    info = special(name, kind, mode=0o644)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def with_header(name, size, kind=tarfile.REGTYPE, listing=LISTING):
    """A bundle whose last header is followed by less than it says, or by something else."""
    data = tar_bytes([OK], listing=listing)
    end = data.index(b"fine") + tarfile.BLOCKSIZE
    return gzip.compress(data[:end] + header(name, size, kind) + bytes(1024))


def damaged_header():
    """A header whose sum is not right."""
    data = bytearray(tar_bytes([OK]))
    data[512 * 2 + 3] ^= 1
    return gzip.compress(bytes(data))


def dangling_header():
    """A long name, and then the end."""
    data = tar_bytes([OK], listing=LISTING)
    end = data.index(b"fine") + tarfile.BLOCKSIZE
    long = header("././@LongLink", 2, tarfile.GNUTYPE_LONGNAME) + b"x\0" + bytes(510)
    return gzip.compress(data[:end] + long + bytes(1024))


def bomb(start, block, times):
    """gzip data that begins with ``start`` and goes on with ``block``, ``times`` times.

    It has no end, which nobody should come to. A block is compressed once, whatever ``times``.
    """
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = deflate.compress(start) + deflate.flush(zlib.Z_FULL_FLUSH)
    unit = deflate.compress(block) + deflate.flush(zlib.Z_FULL_FLUSH)
    return struct.pack("<BBBBIBB", 0x1F, 0x8B, 8, 0, 0, 2, 255) + head + unit * times
