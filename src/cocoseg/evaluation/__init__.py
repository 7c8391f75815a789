"""Model and prepared data in, scores with intervals and their report out.

Start with `evaluate.py`.
"""
