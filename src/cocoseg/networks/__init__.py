"""Image tensor (B, 3, H, W) in, logits (B, C, H, W) out: networks, their contract, weights and files.

Start with `unet.py`; `model_file.py` is the format of `segmentation_model.pth`.
"""
