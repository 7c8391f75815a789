"""Image file in, RGB pixels of 8 bits out: turned by EXIF rotation and scaled from more bits. No torch.

Start with `image_files.py`, which checks and reads files.
"""
