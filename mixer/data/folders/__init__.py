"""Class folders as a dataset, local or in a bucket: `folder.py` is the reader."""
