"""Trains one LoRA adapter and scores it: ``python -m training JOB.json``.

Runs on the GPU host, on Python 3.10 and newer. It knows nothing of Ansible: a job comes in as one
JSON file, an adapter folder and a ``result.json`` go out.
"""
