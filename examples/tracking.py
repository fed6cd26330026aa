"""Follows objects through a video: every frame is predicted, ByteTrack joins the results to tracks.

    pip install "centermask[cpu,viz]" trackers
    python examples/tracking.py street.mp4 tracked.mp4

supervision had ByteTrack itself until it moved to the package trackers; either is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import supervision as sv

from centermask import Predictor


def make_tracker(frame_rate: float) -> Any:
    """ByteTrack, from whichever package has it."""
    if hasattr(sv, "ByteTrack"):
        return sv.ByteTrack(frame_rate=round(frame_rate))
    try:
        from trackers import ByteTrackTracker
    except ModuleNotFoundError:
        raise SystemExit("this version of supervision has no ByteTrack: pip install trackers") from None
    return ByteTrackTracker(frame_rate=frame_rate)


def follow(predictor: Predictor, frames: Any, frame_rate: float) -> Iterator[tuple[np.ndarray, sv.Detections]]:
    """Each frame (uint8 BGR [h, w, 3]) with its objects; `tracker_id` is the same for an object in all frames."""
    tracker = make_tracker(frame_rate)
    update = tracker.update_with_detections if hasattr(tracker, "update_with_detections") else tracker.update
    for frame in frames:
        found = update(predictor(frame).to_supervision())
        # A new object has no number until it was seen often enough.
        yield frame, found[found.tracker_id >= 0] if found.tracker_id is not None else found[:0]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("out")
    parser.add_argument("--model", default="default", help="default: %(default)s")
    options = parser.parse_args()
    info = sv.VideoInfo.from_video_path(options.video)
    mask, label = sv.MaskAnnotator(color_lookup=sv.ColorLookup.TRACK), sv.LabelAnnotator()
    seen: set[int] = set()
    with sv.VideoSink(options.out, info) as sink:
        frames = sv.get_video_frames_generator(options.video)
        for frame, found in follow(Predictor(options.model), frames, info.fps):
            numbers = [] if found.tracker_id is None else found.tracker_id.tolist()
            names = found.data.get("class_name", [""] * len(numbers))
            drawn = mask.annotate(frame.copy(), found)
            texts = [f"{name} #{number}" for name, number in zip(names, numbers, strict=True)]
            sink.write_frame(label.annotate(drawn, found, texts))
            seen.update(numbers)
    print(f"{len(seen)} objects followed, drawn into {options.out}")


if __name__ == "__main__":
    main()
