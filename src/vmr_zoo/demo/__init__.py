"""The local page of `vmr demo`: choose a video, type a sentence, watch the moments that are found."""
