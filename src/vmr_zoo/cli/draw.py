"""`vmr draw`: draws what a run computes for one query."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmr_zoo.engine.query_details import query_details
from vmr_zoo.errors import VmrError
from vmr_zoo.report.query_picture import draw_query
from vmr_zoo.utils.console import print_notes
from vmr_zoo.utils.files import check_picture

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vmr_zoo.data.annotations.records import Query


def main(cfg: DictConfig) -> int:
    """Draws the query of the configuration composed from `conf/draw.yaml`.

    Raises:
        VmrError: as `query_details` and `draw_query` raise, or for a video that `videos` lacks.
    """
    check_picture(cfg.out, "out")
    sentence = None if cfg.sentence is None else str(cfg.sentence)
    found = query_details(Path(cfg.run), str(cfg.query), sentence, cfg.paths)
    video = None if cfg.videos is None else _find_video(cfg.videos, found.query)
    panels = draw_query(found, cfg.out, video)
    print(f"{cfg.out}: {'; '.join(panels)}")
    if sentence is None:
        print('Ask the same moments another way with sentence="…".')
    return 0


def _find_video(videos: str, query: Query) -> Path:
    """Returns the file of the query's video.

    Raises:
        VmrError: if there is none, or it is a tenth longer or shorter than annotated.
    """
    from vmr_zoo.video.decode import list_notes, timeline
    from vmr_zoo.video.files import find_videos

    found = find_videos(videos)
    if query.video_id not in found:
        raise VmrError(
            f"Expected the video {query.video_id} in videos={videos}, found {len(found)} other videos there. "
            "Leave out videos=… to draw without frames."
        )
    known = timeline(found[query.video_id])
    print_notes(list_notes({query.video_id: dict(known.notes)}))
    seconds = known.seconds
    if abs(seconds - query.duration) > 0.1 * query.duration:
        raise VmrError(
            f"Expected a video of {query.duration:g} s, as annotated; {found[query.video_id]} has "
            f"{seconds:g} s. It is another video of this name, or a part: name the folder of the right one."
        )
    return found[query.video_id]
