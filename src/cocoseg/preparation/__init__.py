"""Annotation file or mask images in, chosen images and label masks on disk out. No torch.

Start with `prepare.py`, the steps in order; `paint_mask.py` holds the overlap rules.
"""
