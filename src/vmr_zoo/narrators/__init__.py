"""Narrators: they watch a video and say, with times, what happens in it.

`narrator` is the interface, `model` narrates with an image or video language model out of `transformers`,
`shapes` with the simulated narrator of the rendered world. `vmr narrate` runs one of them over many videos.
"""

from vmr_zoo.narrators.base import Narrated, Narrator
from vmr_zoo.narrators.shapes import ShapesNarrator
from vmr_zoo.narrators.vision_language import ModelNarrator

__all__ = ["ModelNarrator", "Narrated", "Narrator", "ShapesNarrator"]
