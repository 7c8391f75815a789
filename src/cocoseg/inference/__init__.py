"""Model file in, predictions and other file formats out. No Lightning, no Hydra.

Start with `predictor.py`, a single image. `predict_folder.py` does thousands, `onnx_export.py` writes ONNX.
"""
