"""Detection: boxes, what a detector is taught, and the real COCO weights of TensorFlow's."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import box_iou

from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.detector import DetectorSpec, Selection
from mobilenets.architecture.network import MobileNet
from mobilenets.cost import cost
from mobilenets.data.box_loader import EMPTY
from mobilenets.tasks.detection.boxes import CODER, boxes_of, objects_in
from mobilenets.tasks.detection.faster_rcnn import FasterRcnn
from mobilenets.tasks.detection.loss import detection_loss, match
from mobilenets.tasks.detection.ssd import PyramidSsd, Ssd

NETWORKS = {"ssd": Ssd, "ssdfpn": PyramidSsd}


def network(name, num_classes=3):
    torch.manual_seed(0)
    spec = DetectorSpec.parse(name)
    return NETWORKS[spec.framework](spec, num_classes)


def told(*rows, fill=0):
    """Boxes told of one image, and rows that only fill."""
    empty = [[0.0] * 4 + [EMPTY, 0.0, 0.0]] * fill
    full = [[*row, 0.0][:7] for row in rows]
    return torch.tensor([[*full, *empty]]).view(1, -1, 7)


@pytest.mark.parametrize(
    "name", ["ssd300/0.5", "ssdfpn160/0.25", "ssd97x161/0.35", "ssdfpn130x97/0.25"]
)
def test_networks_cost_what_is_counted(name):
    made, spec = network(name, 5).eval(), DetectorSpec.parse(name)
    counted = cost(spec, 5)
    images_NCHW = torch.zeros(1, 3, spec.body.height, spec.body.across)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        outputs_NAD = made(images_NCHW)
    assert outputs_NAD.shape == (1, len(boxes_of(spec)), 4 + 1 + 5)
    assert flops.get_total_flops() == 2 * counted.mult_adds
    assert sum(weight.numel() for weight in made.parameters()) == counted.parameters


def test_the_body_has_a_classifiers_names():
    body = MobileNet(MobileNetSpec(0.25, 224), 10).state_dict()
    found = network("ssd300/0.25").state_dict()
    ours = {name for name in found if name.startswith("body.")}
    assert ours == {name for name in body if name.startswith("body.")}


def test_boxes_come_level_by_level_and_row_by_row():
    spec = DetectorSpec.parse("ssd300/1.0")
    boxes_A4 = boxes_of(spec)
    middles_A2 = (boxes_A4[:, :2] + boxes_A4[:, 2:]) / 2
    # The first map has three a place; the second place is to the right of the first.
    assert middles_A2[0] == pytest.approx([0.5 / 19, 0.5 / 19])
    assert middles_A2[3] == pytest.approx([1.5 / 19, 0.5 / 19])
    assert middles_A2[3 * 19] == pytest.approx([0.5 / 19, 1.5 / 19])
    assert middles_A2[1083] == pytest.approx([0.05, 0.05])
    sides_A2 = boxes_A4[:, 2:] - boxes_A4[:, :2]
    assert sides_A2[1] == pytest.approx([0.2 * 2**0.5, 0.2 / 2**0.5])
    assert sides_A2[-1] == pytest.approx([0.95**0.5] * 2)


def test_boxes_of_a_long_image_are_square_in_pixels():
    spec = DetectorSpec.parse("ssd150x300/0.25")
    sides_A2 = (boxes_of(spec)[:, 2:] - boxes_of(spec)[:, :2]) * torch.tensor([300.0, 150.0])
    assert sides_A2[0] == pytest.approx([15.0, 15.0])


def test_the_coder_goes_there_and_back():
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(50, 2, 2, generator=random).sort(1).values
    boxes_M4 = corners.flatten(1)
    boxes_M4[:, 2:] += 0.01
    grid_A4 = boxes_of(DetectorSpec.parse("ssd300/1.0"))[:50]
    moved = CODER.encode_single(boxes_M4, grid_A4)
    assert torch.allclose(CODER.decode_single(moved, grid_A4), boxes_M4, atol=1e-5)
    # A tenth of the side to the right, e times as high.
    by_hand = CODER.decode_single(
        torch.tensor([[1.0, 0, 0, 5.0]]), torch.tensor([[0.2, 0.2, 0.4, 0.4]])
    )
    assert by_hand[0] == pytest.approx([0.22, 0.3 - 0.1 * np.e, 0.42, 0.3 + 0.1 * np.e])


def test_every_object_is_taught_to_a_box():
    grid_A4 = boxes_of(DetectorSpec.parse("ssd300/1.0"))
    # Far smaller than the smallest box, two of them at one place.
    tiny = told([0.5, 0.5, 0.51, 0.51, 0, 0], [0.9, 0.1, 0.91, 0.11, 1, 0])[0]
    matched_A = match(grid_A4, tiny)
    assert sorted(matched_A[matched_A >= 0].tolist()) == [0, 1]
    assert match(grid_A4, tiny[:0]).eq(-1).all()


@pytest.mark.parametrize("focal", [False, True])
@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_right_outputs_lose_next_to_nothing(scores, focal):
    if focal and scores == "softmax":
        return
    grid_A4 = boxes_of(DetectorSpec.parse("ssd97/0.25"))
    wanted = told([0.1, 0.1, 0.6, 0.7, 2, 0], [0.5, 0.5, 0.9, 0.9, 0, 0], fill=2)
    matched_A = match(grid_A4, wanted[0, :2])
    outputs_NAD = torch.full((1, len(grid_A4), 4 + 1 + 3), -12.0)
    outputs_NAD[..., :4], outputs_NAD[..., 4] = 0.0, 12.0
    for box in (matched_A >= 0).nonzero().flatten().tolist():
        row = wanted[0, matched_A[box]]
        outputs_NAD[0, box, :4] = CODER.encode_single(row[None, :4], grid_A4[box : box + 1])[0]
        outputs_NAD[0, box, 4:] = -12.0
        outputs_NAD[0, box, 5 + int(row[4])] = 12.0
    losses = detection_loss(outputs_NAD, wanted, grid_A4, scores, focal=focal)
    assert float(losses["loss"]) < 1e-3
    (found,) = objects_in(outputs_NAD, grid_A4, scores, Selection(score=0.5))
    assert sorted(found.labels_M.tolist()) == [0, 2]
    assert box_iou(found.boxes_M4, wanted[0, :2, :4]).max(0).values.min() > 0.99
    # Another label, another place.
    for column, value in ((5, 40.0), (0, 3.0)):
        wrong = outputs_NAD.clone()
        wrong[..., column] += value
        assert float(detection_loss(wrong, wanted, grid_A4, scores, focal=focal)["loss"]) > 0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_images_without_objects_teach_background(name):
    made = network(f"{name}97/0.25").train()
    images_NCHW = torch.rand(2, 3, 97, 97, generator=torch.Generator().manual_seed(0))
    outputs_NAD = made(images_NCHW)
    nothing = told(fill=3).expand(2, -1, -1)
    losses = detection_loss(
        outputs_NAD, nothing, boxes_of(made.spec), "sigmoid", focal=name == "ssdfpn"
    )
    assert losses["box_loss"].item() == 0
    assert losses["class_loss"].item() > 0
    losses["loss"].backward()
    assert all(torch.isfinite(weight.grad).all() for weight in made.parameters())


def test_what_lies_in_a_crowd_is_neither_object_nor_background():
    grid_A4 = boxes_of(DetectorSpec.parse("ssd97/0.25"))
    outputs_NAD = torch.zeros(1, len(grid_A4), 4 + 1 + 3, requires_grad=True)
    crowd = told([0.0, 0.0, 0.5, 1.0, 1, 1], [0.1, 0.1, 0.4, 0.4, 0, 0])
    losses = detection_loss(outputs_NAD, crowd, grid_A4, "sigmoid", focal=True)
    losses["loss"].backward()
    held_A = match(grid_A4, crowd[0, 1:]) >= 0
    left_A = (grid_A4[:, 2] <= 0.5) & ~held_A
    right_A = grid_A4[:, 0] >= 0.5
    assert held_A.any()
    assert left_A.any()
    assert outputs_NAD.grad[0, left_A].eq(0).all()
    assert outputs_NAD.grad[0, right_A, 4:].ne(0).all()
    # An object in a crowd is still one.
    assert outputs_NAD.grad[0, held_A, 4:].ne(0).all()


@pytest.mark.parametrize(("objects", "expected"), [(1, 3), (2, 6), (0, 8)])
def test_three_boxes_that_are_most_wrong_count_for_each_object(objects, expected):
    """Of twelve in a row; the further to the right, the surer a box is to hold something."""
    grid_A4 = torch.tensor([[n / 12, 0.0, (n + 1) / 12, 0.1] for n in range(12)])
    wanted = told(*([n / 12, 0.0, (n + 1) / 12, 0.1, 0, 0] for n in range(objects)), fill=1)
    outputs_NAD = torch.zeros(1, 12, 4 + 1 + 1)
    outputs_NAD[0, :, 5] = torch.arange(12.0)
    outputs_NAD.requires_grad_()
    losses = detection_loss(outputs_NAD, wanted, grid_A4, "softmax", focal=False)
    (gradient,) = torch.autograd.grad(losses["loss"], outputs_NAD)
    counted = gradient[0, :, 5].ne(0).tolist()
    free = 12 - objects
    assert counted == [True] * objects + [n >= free - expected for n in range(free)]


def test_no_image_at_all_gives_no_box():
    """What one of several processes may have of a small batch."""
    for made in (network("ssd97/0.25"), network("ssdfpn97/0.25")):
        made.eval()
        assert made(torch.zeros(0, 3, 97, 97)).shape == (0, len(boxes_of(made.spec)), 4 + 1 + 3)


def test_faster_rcnn_is_taught_and_copied():
    torch.manual_seed(0)
    spec = DetectorSpec.parse("frcnn97/0.25")
    made = FasterRcnn(spec, 3).train()
    assert sum(weight.numel() for weight in made.parameters()) == cost(spec, 3).parameters
    images_NCHW = torch.rand(2, 3, 97, 97, generator=torch.Generator().manual_seed(0))
    wanted = torch.cat([told([0.1, 0.1, 0.6, 0.7, 2, 0]), told(fill=1)])
    losses = made(images_NCHW, wanted)
    assert set(losses) == {
        "loss_classifier",
        "loss_box_reg",
        "loss_objectness",
        "loss_rpn_box_reg",
    }
    sum(losses.values()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in made.parameters())
    # The second stage of a copy looks through the copy's own blocks.
    other = copy.deepcopy(made).eval()
    made.eval()
    before = other(images_NCHW)
    with torch.no_grad():
        for weight in made.parameters():
            weight.zero_()
    assert other(images_NCHW).equal(before)
    assert before[..., 4].max() > 0


def test_the_grid_of_faster_rcnn_reaches_to_the_edge():
    spec = DetectorSpec.parse("frcnn300/0.25")
    grid_A4 = boxes_of(spec)
    assert len(grid_A4) == 19 * 19 * 12
    middles_A2 = (grid_A4[:, :2] + grid_A4[:, 2:]) / 2
    assert middles_A2[-1] == pytest.approx([18.5 / 19] * 2)


def test_two_classes_may_stand_at_one_place():
    outputs_NAD = torch.full((1, 2, 4 + 1 + 2), -9.0)
    outputs_NAD[..., :4] = 0
    outputs_NAD[0, :, 5] = torch.tensor([3.0, 2.0])
    outputs_NAD[0, 0, 6] = 1.0
    grid_A4 = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.5, 0.5]])
    (found,) = objects_in(outputs_NAD, grid_A4, selection=Selection(score=0.3))
    assert found.labels_M.tolist() == [0, 1]
    assert objects_in(outputs_NAD, grid_A4, selection=Selection(score=0.99))[0].boxes_M4.shape == (
        0,
        4,
    )
    assert len(objects_in(outputs_NAD.expand(3, -1, -1), grid_A4)) == 3
