"""The audit: whether the stores agree, sale by sale, while the pipeline runs or at rest. Reads only.

`facts.py` says what is read and `rules.py` judges it, both pure. `reading.py` reads the stores once: sums and
fingerprints of everything, rows only of what does not fit together. `live.py` takes two readings, because in one of
them a running pipeline is never quite in step; `timeline.py` tells the story of what is broken.
"""
