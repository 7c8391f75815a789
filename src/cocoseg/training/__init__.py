"""Configuration and run folder in, trained and exported model out.

Start with `recipe.py`, the training from top to bottom; `module.py` is the step.
"""
