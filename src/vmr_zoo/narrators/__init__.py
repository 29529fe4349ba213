"""Narrators describe what happens in a video, with times.

`base` is the interface; `vision_language` narrates with an image or video language model from `transformers`,
`shapes` with the simulated narrator of the rendered world. `vmr narrate` runs one of them on many videos.
"""

from vmr_zoo.narrators.base import Narrated, Narrator
from vmr_zoo.narrators.shapes import ShapesNarrator
from vmr_zoo.narrators.vision_language import VisionLanguageNarrator

__all__ = ["Narrated", "Narrator", "ShapesNarrator", "VisionLanguageNarrator"]
