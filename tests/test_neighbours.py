"""The neighbours' layer lists against torchvision's models, and against published counts."""

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from mobilenets.cost import count
from mobilenets.reproduce.inception_v3 import inception_v3
from mobilenets.reproduce.neighbours import alexnet, googlenet, squeezenet, vgg16

TORCHVISION_ALEXNET = {
    "channels": (64, 192, 384, 256, 256),
    "groups": 1,
    "side": 224,
    "first_padding": 2,
}


@pytest.mark.parametrize(
    ("rows", "mult_adds", "weights", "parameters"),
    [
        # As published: 5x5 branches and biases, auxiliary heads left out.
        (googlenet(), 1_582_671_872, 6_990_272, 6_998_552),
        (vgg16(), 15_470_264_320, 138_344_128, 138_357_544),
        # The paper's 15300 M: linear layers left out.
        ([r for r in vgg16() if r.type != "linear"], 15_346_630_656, 14_710_464, 14_714_688),
        (squeezenet(), 832_667_936, 1_244_448, 1_248_424),
        (squeezenet(side=224), 818_924_576, 1_244_448, 1_248_424),
        # The Caffe release pads its last 1x1 convolution; twice this is the paper's 1700 M.
        (squeezenet(last_padding=1), 861_339_936, 1_244_448, 1_248_424),
        (alexnet(), 724_406_816, 60_954_656, 60_965_224),
        # A counter that forgets groups gives this.
        (alexnet(groups=1), 1_135_256_096, 62_367_776, 62_378_344),
    ],
)
def test_counts(rows, mult_adds, weights, parameters):
    counted = count(rows)
    assert (counted.mult_adds, counted.weights, counted.parameters) == (
        mult_adds,
        weights,
        parameters,
    )


@pytest.mark.parametrize(
    ("build", "rows", "side"),
    [
        # torchvision has 3x3 in place of 5x5, and batch norm in place of biases.
        (
            lambda: torchvision.models.googlenet(init_weights=False, aux_logits=False),
            googlenet(third_kernel=3, batch_norm=True),
            224,
        ),
        (torchvision.models.vgg16, vgg16(), 224),
        # Both sizes: 224 and 227 differ in the rounding of the first pool.
        (torchvision.models.squeezenet1_0, squeezenet(side=224), 224),
        (torchvision.models.squeezenet1_0, squeezenet(), 227),
        (
            lambda: torchvision.models.inception_v3(init_weights=False, aux_logits=False),
            inception_v3(1000, side_head=False),
            299,
        ),
        # torchvision's is the one-tower variant of 2014, without groups.
        (torchvision.models.alexnet, alexnet(**TORCHVISION_ALEXNET), 224),
    ],
)
def test_against_torchvision(build, rows, side):
    # The meta device counts without computing: VGG-16 costs nothing.
    with torch.device("meta"):
        model = build().eval()
        image = torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    counted = count(rows)
    assert counter.get_total_flops() == counted.flops
    assert sum(p.numel() for p in model.parameters()) == counted.parameters


def test_the_side_head_of_inception_is_torchvisions():
    with torch.device("meta"):
        model = torchvision.models.inception_v3(init_weights=False, num_classes=9800)
    rows = count(inception_v3(9800, side_head=True))
    assert sum(p.numel() for p in model.parameters()) == rows.parameters == 51_959_664
    assert rows.mult_adds == 5_743_680_096
