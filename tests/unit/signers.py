"""Keys, signatures and lists of signers as their owners make them: with ssh-keygen itself."""

import subprocess

from remote_train.signature import NAMESPACE

ME = "me@example.org"


def keygen(*arguments, **options):
    """Run the real ssh-keygen, which must succeed; what it printed."""
    return subprocess.run(
        ["ssh-keygen", *map(str, arguments)], capture_output=True, check=True, **options
    ).stdout


def make_key(folder, name="key", kind="ed25519", passphrase=""):
    """A new key; the path of its private half."""
    folder.mkdir(parents=True, exist_ok=True)
    keygen("-q", "-t", kind, "-N", passphrase, "-C", "", "-f", folder / name)
    return folder / name


def public(key):
    """The path of the other half."""
    return key.with_name(key.name + ".pub")


def line(key, principals=ME, options=""):
    """A line of an allowed-signers file."""
    words = [principals, options, *public(key).read_text().split()[:2]]
    return " ".join(word for word in words if word) + "\n"


def signed(message, key, namespace=NAMESPACE):
    """A signature."""
    return keygen("-Y", "sign", "-q", "-n", namespace, "-f", key, input=message)


def certified(key, authority, validity="-1h:+1h", principals=ME):
    """The path of a certificate for a key, to sign with."""
    names = ("-s", authority, "-I", "certificate", "-n", principals, "-V", validity)
    keygen("-q", *names, public(key))
    # ssh-keygen looks for the private half under the name of the certificate.
    certificate = key.with_name(key.name + "-cert")
    certificate.write_bytes(key.read_bytes())
    certificate.chmod(0o600)
    return public(certificate)
