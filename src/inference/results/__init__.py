"""The files of a prediction.

``inputs`` finds photos, ``jobs`` what earlier runs have left of theirs, ``outputs`` and ``png`` write, and ``work``
goes from photo to photo.
"""
