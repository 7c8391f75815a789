"""Image file in, RGB pixels of 8 bits out, turned by EXIF and scaled as asked for; label masks as PNG.

Start with `image_files.py`, which checks and reads images; `mask_files.py` writes and reads label masks,
`regions.py` outlines what is in them. No torch.
"""
