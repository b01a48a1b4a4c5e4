"""The code behind the modules and action plugins: plain Python, standard library only.

Everything here also runs on the GPU host before anything is installed there, so it keeps to
Python 3.9 and to the standard library (held by the linter's target and by vermin).
"""
