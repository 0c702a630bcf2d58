"""Table 13: SSD and Faster R-CNN on COCO; those on MobileNet and on VGG-16 counted."""

from __future__ import annotations

from mobilenets.architecture.detector import COCO_CLASSES, parse_spec
from mobilenets.cost import Cost, cost, count
from mobilenets.reproduce.model_figures import not_counted, parameter_figure, trained
from mobilenets.reproduce.neighbours import faster_rcnn_on_vgg16
from mobilenets.reproduce.printed import Figure

TABLE_13 = "Howard et al. 2017, Table 13"
_MAP = "mAP"
_SQUARE = "square input, 12 boxes a place, 300 proposals of 14x14, all of which count"


def table_13() -> tuple[Figure, ...]:
    """COCO's 90 classes."""
    return (
        *not_counted("SSD 300, deeplab-VGG", _MAP, "21.1", "34.9", "33.1", TABLE_13, unit="G"),
        *not_counted("SSD 300, Inception V2", _MAP, "22.0", "3.8", "13.7", TABLE_13, unit="G"),
        *_counted(
            "SSD 300, MobileNet", "19.3", "1.2", "6.8", _of("ssd300/1.0"), "1,917 boxes, 1x1 heads"
        ),
        *_on_vgg16(300, "22.9", "64.3"),
        *not_counted(
            "Faster-RCNN 300, Inception V2", _MAP, "15.4", "118.2", "13.3", TABLE_13, unit="G"
        ),
        *_counted(
            "Faster-RCNN 300, MobileNet", "16.4", "25.2", "6.1", _of("frcnn300/1.0"), _SQUARE
        ),
        *_on_vgg16(600, "25.7", "149.6"),
        *not_counted(
            "Faster-RCNN 600, Inception V2", _MAP, "21.9", "129.6", "13.3", TABLE_13, unit="G"
        ),
        *_counted(
            "Faster-RCNN 600, MobileNet", "19.8", "30.5", "6.1", _of("frcnn600/1.0"), _SQUARE
        ),
    )


def _on_vgg16(side: int, precision: str, mult_adds: str) -> tuple[Figure, ...]:
    counted = count(faster_rcnn_on_vgg16(side))
    how = "square input, 12 boxes a place, 300 proposals of 7x7"
    return _counted(f"Faster-RCNN {side}, VGG", precision, mult_adds, "138.5", counted, how)


def _counted(
    label: str, precision: str, mult_adds: str, parameters: str, found: Cost, how: str
) -> tuple[Figure, ...]:
    return (
        trained(
            label, _MAP, precision, "on COCO without 8,000 images, which were the test", TABLE_13
        ),
        Figure(
            row=label,
            column="mult-adds",
            printed=mult_adds,
            unit="G",
            computed=found.mult_adds,
            counted=how,
            source=TABLE_13,
        ),
        parameter_figure(label, parameters, found, TABLE_13),
    )


def _of(name: str) -> Cost:
    return cost(parse_spec(name), COCO_CLASSES)
