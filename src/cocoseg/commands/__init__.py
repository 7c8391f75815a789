"""Command line in, files out: the programs, called by train.py and the like and by the installed commands.

Start with `train.py`; `cli.py` of the ground floor is the frame of those that Hydra configures.
"""
