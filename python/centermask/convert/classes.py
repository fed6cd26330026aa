"""Class names of the data sets that published detectors were trained on, in the order of their heatmaps."""

from __future__ import annotations

_COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
"""
COCO_NAMES = tuple(name.strip() for name in _COCO.split(","))

COCO_IDS = tuple(number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""COCO's own numbers: 91 were planned, 80 have objects in the detection task."""

_VOC = """
aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person,
pottedplant, sheep, sofa, train, tvmonitor
"""
VOC_NAMES = tuple(name.strip() for name in _VOC.split(","))


def classes_for(count: int, names: tuple[str, ...] = ()) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids of `count` classes: those given, or COCO's for 80 and Pascal VOC's for 20.

    Raises:
        ValueError: Another number of names is given, or none and the number tells nothing.
    """
    if names:
        if len(names) != count:
            raise ValueError(f"the model has {count} classes, --classes names {len(names)}")
        if names != COCO_NAMES:
            return names, tuple(range(1, count + 1))
    if count == len(COCO_NAMES):
        return COCO_NAMES, COCO_IDS
    if count == len(VOC_NAMES):
        return VOC_NAMES, tuple(range(1, count + 1))
    raise ValueError(f"the model has {count} classes, which is neither COCO's 80 nor VOC's 20: name them by --classes")
