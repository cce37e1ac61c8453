"""From an encoded image to pixels of the size of the model. `augment.py` puts the steps together."""
