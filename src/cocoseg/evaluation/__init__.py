"""Model and prepared data in; scores, their intervals and a report out.

Start with `evaluate.py`.
"""
