"""Wall clock of a run: time used in; when to validate, when to stop and the learning rate out.

Start with `budget.py`, the arithmetic; `pacing.py` applies it to a training, `schedule.py` is the rate.
"""
