"""Figures for people, drawn with Pillow: labels and scores in, images or an HTML page out.

Start with `comparison.py`: an image beside its target, its prediction and the errors.
"""
