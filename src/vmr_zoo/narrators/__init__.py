"""Narrators: they watch a video and say, with times, what happens in it.

`narrator` is the interface, `model` narrates with an image or video language model out of `transformers`,
`shapes` with the simulated narrator of the rendered world. `vmr narrate` runs one of them over many videos.
"""

from vmr_zoo.narrators.model import ModelNarrator
from vmr_zoo.narrators.narrator import Narrated, Narrator
from vmr_zoo.narrators.shapes import ShapesNarrator

__all__ = ["ModelNarrator", "Narrated", "Narrator", "ShapesNarrator"]
