"""For every suite."""

import os

# Suites run side by side. Threads that spin while they wait for each other take minutes there for
# what takes a second otherwise; the bytes are the same. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# ansible-core puts an object in the place of sys.intern when its module_utils are imported, and
# torch._dynamo, imported after that, refuses it. In this order both work; outside of the tests
# they never share a process.
import torch._dynamo  # noqa: F401

# Molecule, when it is imported, asks Ansible for colours in the whole process.
os.environ["ANSIBLE_FORCE_COLOR"] = "0"
