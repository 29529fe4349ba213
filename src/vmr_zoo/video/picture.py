"""Single pictures of a video, found by seeking: decoding a long video to its end takes minutes."""

from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path

import av

from vmr_zoo.errors import printable
from vmr_zoo.video.container import VideoError, open_video
from vmr_zoo.video.cut import first_stamp, pictures
from vmr_zoo.video.decode import upright


def picture_at(path: str | Path, seconds: float, height: int = 90) -> bytes:
    """Returns the picture that is shown at a time, as JPEG.

    Args:
        path: any video that PyAV decodes.
        seconds: on the clock of `video.decode`.
        height: of the JPEG, in pixels.

    Raises:
        VideoError: if the file cannot be decoded, or ends before.
    """
    with closing(pictures(path, seconds, seconds + 1e-6, first_stamp(path))) as found:
        shown = next(found, None)
    if shown is None:
        raise VideoError(
            "empty", f"{printable(path)} ends before {seconds:.2f} s: it shows no picture there."
        )
    frame = upright(shown.frame)
    width = max(1, round(height * frame.width / frame.height))
    out = io.BytesIO()
    frame.reformat(width=width, height=height).to_image().save(out, "JPEG", quality=80)
    return out.getvalue()


def first_picture(path: str | Path) -> float:
    """Returns when a player shows the first picture, in seconds: later than 0 if sound comes first.

    Raises:
        VideoError: if the file cannot be decoded.
    """
    first = first_stamp(path)
    with open_video(path) as opened:
        begins = opened.container.start_time
    return 0.0 if first is None or begins is None else max(0.0, float(first) - begins / av.time_base)
