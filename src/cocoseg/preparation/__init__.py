"""Annotation file in, chosen images and label masks on disk out. No torch.

Start with `prepare.py`, the steps in order; `rasterize.py` holds the overlap rules.
"""
