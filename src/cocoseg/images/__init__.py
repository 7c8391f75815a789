"""Image file in, RGB pixels of 8 bits out, turned by EXIF rotation where asked for; label masks as PNG.

Start with `image_files.py`, which checks and reads images. `mask_files.py` writes and reads label masks, and
`regions.py` outlines the regions in them. No torch.
"""
