"""Prepared folder in, augmented batches on the device out.

Start with `datamodule.py`; `augment.py` changes whole batches on the device.
"""
