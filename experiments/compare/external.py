"""Stands for a model from elsewhere: reads videos and sentences alone, and answers in free text.

    python experiments/compare/external.py VIDEOS ANSWERS.json QUERIES.jsonl …

Nothing is learned and nothing of the package is used. It looks for pixels of the colour that the sentence
names, measures how they move, grow or change from frame to frame, and answers with the stretch in which they
do so most.
A sentence without a colour or a verb that it knows gets an answer without times.

VIDEOS holds VIDEO_ID.mp4; a line of QUERIES.jsonl has video_id and query, and nothing else in it is read.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from matplotlib.colors import rgb_to_hsv

FPS = 4
HUES = {
    "red": 0, "orange": 28, "yellow": 55, "green": 130, "cyan": 185, "blue": 230, "purple": 273, "pink": 322,
}  # fmt: skip
SIGNALS = {
    r"left": ("x", -1), r"right": ("x", 1), r"up|rise|rising": ("y", -1), r"down|fall": ("y", 1),
    r"grow|bigger": ("area", 1), r"shrink|smaller": ("area", -1),
    r"disappear|fades? away|fading away": ("area", -1), r"appear|fades? in|fading in": ("area", 1),
    r"spin|rotat|blink|flash|shak|trembl": ("change", 1),
}  # fmt: skip
"""What a verb makes larger, by a pattern for the verb; the first that occurs counts."""


def frames(path: Path) -> Iterator[np.ndarray]:
    """Yields (H, W, 3) uint8 frames, `FPS` per second."""
    shown = 0
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            while frame.time is not None and frame.time >= shown / FPS:
                yield frame.to_ndarray(format="rgb24")
                shown += 1


def measure(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Returns for each colour, and for all of them as "", its signals by frame: x, y, area and change."""
    centres = np.array(list(HUES.values())) / 360
    found: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    before: dict[str, np.ndarray] = {}
    for frame in frames(path):
        small = frame[::2, ::2].astype(np.float32) / 255
        high, low = small.max(-1), small.min(-1)
        vivid = (high - low) > 0.35
        distance = np.abs(rgb_to_hsv(small)[..., :1] - centres)
        nearest = np.minimum(distance, 1 - distance).argmin(-1)
        for number, colour in enumerate(("", *HUES)):
            mask = vivid if not colour else vivid & (nearest == number - 1)
            rows, columns = np.nonzero(mask)
            place = (columns.mean(), rows.mean()) if len(rows) else (np.nan, np.nan)
            change = np.abs(mask.astype(float) - before.get(colour, mask)).sum() / max(1, mask.sum())
            before[colour] = mask.astype(float)
            found[colour].append((*place, np.sqrt(len(rows)), change))
    return {
        colour: dict(zip(("x", "y", "area", "change"), np.array(rows).T, strict=True))
        for colour, rows in found.items()
    }


def answer(sentence: str, signals: dict[str, dict[str, np.ndarray]]) -> str:
    """Answers one sentence in words."""
    words = sentence.lower()
    colour = next((name for name in HUES if name in words), "")
    kind = next((signal for verb, signal in SIGNALS.items() if re.search(verb, words)), None)
    if kind is None and not colour:
        return "I cannot tell when this happens."
    name, sign = kind or ("change", 1)
    values = signals[colour][name]
    energy = values if name == "change" else sign * np.diff(np.nan_to_num(values, nan=0.0), prepend=0.0)
    energy[0] = 0.0
    energy = np.convolve(np.clip(energy, 0, np.percentile(energy, 95) or 1), np.ones(FPS) / FPS, "same")
    start, end = best_stretch(energy - energy.mean() - 0.3 * energy.std())
    return f"The event happens from {start / FPS:.1f} to {end / FPS:.1f} seconds."


def best_stretch(gain: np.ndarray) -> tuple[int, int]:
    """Returns the stretch of frames with the largest sum."""
    best, total, first, found = -np.inf, 0.0, 0, (0, 1)
    for place, value in enumerate(gain):
        if total <= 0:
            total, first = 0.0, place
        total += value
        if total > best:
            best, found = total, (first, place + 1)
    return found


def main(videos: Path, out: Path, files: list[Path]) -> None:
    """Answers every sentence, video by video."""
    asked: dict[str, list[str]] = defaultdict(list)
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            asked[row["video_id"]].append(row["query"])
    answers = {}
    for number, (video, sentences) in enumerate(asked.items(), 1):
        signals = measure(videos / f"{video}.mp4")
        answers |= {f"{video}.mp4>>>{sentence}": answer(sentence, signals) for sentence in sentences}
        print(f"\r{number} of {len(asked)} videos", end="", file=sys.stderr)
    out.write_text(json.dumps(answers, indent=1), encoding="utf-8")
    print(f"\nWrote {len(answers):,} answers to {out}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
