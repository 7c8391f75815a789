"""Search space and time limit in, many runs and their comparison out. No torch but where a trial is pruned.

Start with `search.py`.
"""
