"""`vmr draw`: draws what a run computes for one query."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmr_zoo.engine.query_details import query_details
from vmr_zoo.errors import VmrError
from vmr_zoo.report.query_picture import draw_query

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> int:
    """Draws the query of the configuration composed from `conf/draw.yaml`.

    Raises:
        VmrError: as `query_details` and `draw_query` raise, or for a video that `videos` lacks.
    """
    sentence = None if cfg.sentence is None else str(cfg.sentence)
    found = query_details(Path(cfg.run), str(cfg.query), sentence, cfg.paths)
    video = None if cfg.videos is None else _find_video(cfg.videos, found.query.video_id)
    panels = draw_query(found, cfg.out, video)
    print(f"{cfg.out}: {'; '.join(panels)}")
    if sentence is None:
        print('Ask the same moments another way with sentence="…".')
    return 0


def _find_video(videos: str, video_id: str) -> Path:
    from vmr_zoo.video.files import find_videos

    found = find_videos(videos)
    if video_id not in found:
        raise VmrError(
            f"Expected the video {video_id} in videos={videos}, found {len(found)} other videos there. Leave "
            "out videos=… to draw without frames."
        )
    return found[video_id]
