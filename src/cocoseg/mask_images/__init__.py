"""Folders of images and of mask images in, label masks of a prepared folder out. No torch.

Start with `mask_folder.py`, which reads a set; `convert.py` inspects and converts its files.
"""
