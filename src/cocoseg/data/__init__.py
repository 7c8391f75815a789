"""Prepared folder in, augmented batches on the device out.

Start with `datamodule.py`; `augment.py` is done to whole batches on the device.
"""
