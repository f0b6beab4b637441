"""Datasets of captioned pictures, read in one way whatever their format, for training and for evaluation.

from mmsearch.datasets import open_dataset

data = open_dataset("flickr8k")
for picture, captions in zip(data.split("dev").pictures, data.split("dev").captions):
    print(picture.name, picture.open().size, captions)
for problem in data.problems:
    print(problem)
"""

from __future__ import annotations

from mmsearch.datasets.model import Captioned, Dataset, Picture, Problem
from mmsearch.datasets.opening import FORMATS, open_dataset

__all__ = ["FORMATS", "Captioned", "Dataset", "Picture", "Problem", "open_dataset"]
