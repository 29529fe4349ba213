"""Narrators describe what happens in a video, with times.

`base` is the interface. `vision_language` runs a model from `transformers`, `server` prompts a model of a
server; both show it one segment of a video after the other (`segments`). `shapes` is the simulated narrator
of the rendered world. `vmr narrate` runs one of them on many videos.
"""

from vmr_zoo.narrators.base import Narrated, Narrator
from vmr_zoo.narrators.server import ServerNarrator
from vmr_zoo.narrators.shapes import ShapesNarrator
from vmr_zoo.narrators.vision_language import VisionLanguageNarrator

__all__ = ["Narrated", "Narrator", "ServerNarrator", "ShapesNarrator", "VisionLanguageNarrator"]
