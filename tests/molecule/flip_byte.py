"""Flip one bit in the middle of a file, as a bad disk would: its size stays, its digest doesn't.

python flip_byte.py FILE
"""

import os
import sys

with open(sys.argv[1], "r+b") as stream:
    middle = os.fstat(stream.fileno()).st_size // 2
    stream.seek(middle)
    byte = stream.read(1)[0]
    stream.seek(middle)
    stream.write(bytes([byte ^ 1]))
