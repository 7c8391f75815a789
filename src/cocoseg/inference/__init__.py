"""Model file in, predictions and other file formats out. No Lightning, no Hydra.

Start with `predictor.py`, for single images. `predict_folder.py` is for thousands, `onnx_export.py` for ONNX.
"""
