"""The specification: names, fields, rounding, and one line for every wrong input."""

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilenets.architecture import BODY, MobileNetSpec, blocks_of
from mobilenets.architecture.spec import check_width, nearest_name
from mobilenets.cost import cost

STRIDES = (32, 16, 8, 4)
VARIANTS = ("separable", "fullconv", "shallow")

widths = st.floats(min_value=0, max_value=16, exclude_min=True)
sides = st.integers(min_value=31, max_value=4096)
resolutions = sides | st.tuples(sides, sides)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (MobileNetSpec(), "1.0-224"),
        (MobileNetSpec(0.5, 160), "0.5-160"),
        # A whole number and text mean the same width.
        (MobileNetSpec(1, 128), "1.0-128"),
        (MobileNetSpec("0.25", 96), "0.25-96"),
        # repr() would write 1e-05, whose dash is the name's separator.
        (MobileNetSpec(1e-05, 224), "0.00001-224"),
        (MobileNetSpec(16, 224), "16.0-224"),
        # Height first.
        (MobileNetSpec(0.5, (97, 161)), "0.5-97x161"),
        # Square, however it is given.
        (MobileNetSpec(0.5, (160, 160)), "0.5-160"),
        (MobileNetSpec(0.5, [160, 160]), "0.5-160"),
        (MobileNetSpec(0.5, 32, total_stride=16), "0.5-32-s16"),
        (MobileNetSpec(1.0, 224, variant="shallow"), "1.0-224-shallow"),
        (MobileNetSpec(0.5, (32, 64), variant="fullconv", total_stride=4), "0.5-32x64-s4-fullconv"),
        # Left out of the name on purpose.
        (MobileNetSpec(rounding="keras", padding="keras", activation="relu6"), "1.0-224"),
    ],
)
def test_a_name_is_the_papers(spec, name):
    assert str(spec) == name


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        # Other spellings of one model.
        ("1-224", MobileNetSpec()),
        (" 1.0-224 ", MobileNetSpec()),
        ("0.50-160", MobileNetSpec(0.5, 160)),
        (".5-160x160", MobileNetSpec(0.5, 160)),
        # The default's suffixes may be said, and in any order.
        ("1.0-224-s32", MobileNetSpec()),
        ("1.0-224-separable", MobileNetSpec()),
        ("1.0-224-shallow-s8", MobileNetSpec(variant="shallow", total_stride=8)),
    ],
)
def test_other_spellings_are_read(name, spec):
    assert MobileNetSpec.parse(name) == spec


@pytest.mark.parametrize(("stride", "variant"), list(itertools.product(STRIDES, VARIANTS)))
def test_every_suffix_reads_back(stride, variant):
    spec = MobileNetSpec(0.5, 64, total_stride=stride, variant=variant)
    assert MobileNetSpec.parse(str(spec)) == spec


@settings(deadline=None, database=None)
@given(width=widths, resolution=resolutions)
def test_a_printed_name_reads_back_exactly(width, resolution):
    spec = MobileNetSpec(width, resolution)
    assert MobileNetSpec.parse(str(spec)) == spec


@settings(deadline=None, database=None)
@given(
    st.builds(
        MobileNetSpec,
        width=widths,
        resolution=resolutions,
        rounding=st.sampled_from(["slim", "keras", "divisible8"]),
        variant=st.sampled_from(VARIANTS),
        total_stride=st.sampled_from(STRIDES),
        activation=st.sampled_from(["relu", "relu6", "leaky"]),
        padding=st.sampled_from(["torch", "tensorflow", "keras"]),
        batch_norm_epsilon=st.floats(0, 1, exclude_min=True, exclude_max=True),
        input_channels=st.integers(1, 64),
    )
)
def test_every_field_survives_json(spec):
    again = MobileNetSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert hash(again) == hash(spec)


def test_a_dictionary_may_leave_out_the_defaults():
    assert MobileNetSpec.from_dict({"width": 0.5, "resolution": 160}) == MobileNetSpec(0.5, 160)
    assert MobileNetSpec.from_dict({"width": 0.5}) == MobileNetSpec(0.5)


@pytest.mark.parametrize("resolution", [160, [160, 160], (160, 160)])
def test_a_dictionary_written_by_hand_may_give_one_side(resolution):
    assert MobileNetSpec.from_dict({"resolution": resolution}) == MobileNetSpec(1.0, 160)


def test_what_a_name_leaves_out_can_be_given_beside_it():
    spec = MobileNetSpec.parse("0.5-160", padding="keras", rounding="divisible8")
    assert spec == MobileNetSpec(0.5, 160, padding="keras", rounding="divisible8")


@pytest.mark.parametrize(
    ("rounding", "width", "stem", "parameters"),
    [
        # pytorch/vision#1005: the same width is two networks.
        ("slim", 0.35, 11, 765_881),
        ("keras", 0.35, 11, 765_881),
        ("divisible8", 0.35, 16, 763_752),
        ("slim", 0.6, 19, 1_783_497),
        ("divisible8", 0.6, 24, 1_778_296),
        ("slim", 0.8, 25, 2_878_684),
        ("divisible8", 0.8, 24, 2_868_584),
        # The rules agree where the paper is, and at timm's 1.25.
        *[
            (rounding, width, stem, parameters)
            for width, stem, parameters in (
                (0.25, 8, 470_072),
                (0.5, 16, 1_331_592),
                (0.75, 24, 2_585_560),
                (1.0, 32, 4_231_976),
                (1.25, 40, 6_270_840),
            )
            for rounding in ("slim", "keras", "divisible8")
        ],
    ],
)
def test_the_rounding_rule_decides_the_channels(rounding, width, stem, parameters):
    spec = MobileNetSpec(width, rounding=rounding)
    assert spec.channels(32) == stem
    assert cost(spec).parameters == parameters


@pytest.mark.parametrize(
    ("rounding", "width", "base", "channels"),
    [
        # Keras has no floor but 1, the others keep 8.
        ("slim", 0.1, 32, 8),
        ("keras", 0.1, 32, 3),
        ("divisible8", 0.1, 32, 8),
        ("keras", 0.001, 32, 1),
        ("slim", 1e-05, 1024, 8),
        # 35.2 becomes 32: less than a tenth below is allowed.
        ("divisible8", 1.1, 32, 32),
        # 19.2 would be 16, more than a tenth below: one step up.
        ("divisible8", 0.6, 32, 24),
        # Halves round up: 12 is 16.
        ("divisible8", 0.375, 32, 16),
    ],
)
def test_the_edges_of_a_rounding_rule(rounding, width, base, channels):
    assert MobileNetSpec(width, rounding=rounding).channels(base) == channels


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75, 1.0, 0.35])
def test_width_is_not_keras_depth_multiplier(width):
    # keras-team/keras#10349: depth_multiplier multiplies the outputs of a depthwise convolution,
    # and a fraction of it crashes. Width thins the whole network, and any fraction works.
    blocks = blocks_of(MobileNetSpec(width))
    narrow = [block.out_channels for block in blocks]
    assert narrow == [max(8, int(row.channels * width)) for row in BODY]
    assert [block.in_channels for block in blocks[1:]] == narrow[:-1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("0-224", "width must be a number above 0 and at most 16, not 0"),
        ("-1-224", "width must be a number above 0 and at most 16, not -1"),
        ("nan-224", "width must be a number above 0 and at most 16, not nan"),
        ("inf-224", "width must be a number above 0 and at most 16, not inf"),
        ("17-224", "width must be a number above 0 and at most 16, not 17"),
        ("16.000001-224", "at most 16, not 16.000001"),
        # A decimal comma: say what to write.
        ("0,5-160", "not '0,5': write 0.5"),
        # Python reads 0_5 as 5.
        ("0_5-160", "width must be a number above 0 and at most 16, not '0_5'"),
        ("half-160", "not 'half'"),
        ("1.0-0", "resolution must be a whole number of pixels from 1 up"),
        ("1.0-0x224", "resolution must be a whole number of pixels from 1 up"),
        # Not a name at all: the nearest one that is.
        ("mobilenet_v1_0.50_160", "such as 0.5-160"),
        ("mobilenet_0.25_128_quant", "such as 0.25-128"),
        ("0.5", "such as 0.5-224"),
        ("224", "such as 1.0-224"),
        ("0.5-160.5", "such as 0.5-160"),
        ("0.5-160-", "such as 0.5-160"),
        ("0.5-160x", "such as 0.5-160"),
        ("0.5--160", "such as 0.5-160"),
        ("", "such as "),
        ("resnet", "such as "),
        # The suffixes.
        ("0.5-32-s7", "the total stride is s32, s16, s8 or s4, not s7"),
        ("0.5-32-s64", "the total stride is s32, s16, s8 or s4, not s64"),
        ("0.5-32-s16-s8", "it gives its total_stride twice"),
        ("0.5-32-s16-s16", "it gives its total_stride twice"),
        ("0.5-32-shallow-fullconv", "it gives its variant twice"),
        ("0.5-32-shalow", "'shalow' is none of s16, s8, s4, fullconv, shallow; nearest: shallow"),
        ("0.5-32-full", "nearest: fullconv"),
        ("0.5-32-s", "'s' is none of"),
        # repr's spelling of a tiny width is not a name.
        ("1e-05-224", "unknown model '1e-05-224'"),
    ],
)
def test_a_wrong_name_gets_one_line(name, says):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        MobileNetSpec.parse(name)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"width": 0}, "width must be a number above 0 and at most 16, not 0"),
        ({"width": -0.5}, "not -0.5"),
        ({"width": float("nan")}, "not nan"),
        ({"width": float("inf")}, "not inf"),
        ({"width": "0,5"}, "not '0,5': write 0.5"),
        ({"width": None}, "not None"),
        ({"width": 16.5}, "at most 16, not 16.5"),
        ({"resolution": 0}, "resolution must be a whole number of pixels from 1 up"),
        ({"resolution": -224}, "not -224"),
        ({"resolution": 224.0}, "not 224.0"),
        # bool is an int in Python.
        ({"resolution": True}, "not True"),
        ({"resolution": "224"}, "not '224'"),
        ({"resolution": (224, 224, 3)}, "or (height, width), not (224, 224, 3)"),
        ({"resolution": ()}, "not ()"),
        ({"rounding": "ceil"}, "rounding must be one of slim, keras, divisible8, not 'ceil'"),
        ({"rounding": "divisible"}, "nearest: divisible8"),
        ({"variant": "conv"}, "variant must be one of separable, fullconv, shallow, not 'conv'"),
        ({"activation": "relu_6"}, "nearest: relu6"),
        ({"padding": "same"}, "padding must be one of torch, tensorflow, keras, not 'same'"),
        ({"padding": "Tensorflow"}, "nearest: tensorflow"),
        ({"padding": None}, "not None"),
        ({"total_stride": 64}, "total stride must be 32, 16, 8 or 4, not 64"),
        ({"total_stride": 2}, "not 2"),
        ({"total_stride": "s16"}, "not 's16'"),
        # Equal to 16, but no whole number to Python.
        ({"total_stride": 16.0}, "not 16.0"),
        ({"batch_norm_epsilon": 0}, "batch-norm epsilon must lie between 0 and 1, not 0"),
        ({"batch_norm_epsilon": -1e-5}, "not -1e-05"),
        ({"batch_norm_epsilon": 1}, "not 1"),
        ({"batch_norm_epsilon": float("nan")}, "not nan"),
        # YAML reads 1e-3 as text.
        ({"batch_norm_epsilon": "1e-3"}, "not '1e-3'"),
        ({"batch_norm_epsilon": None}, "not None"),
        ({"input_channels": 0}, "input channels must be a whole number from 1 up, not 0"),
        ({"input_channels": -3}, "not -3"),
        ({"input_channels": 3.0}, "not 3.0"),
        ({"input_channels": True}, "not True"),
        # Keras' padding loses the last pixel: 17, 9, 4, 2, 1, 0.
        ({"resolution": 17, "padding": "keras"}, "1.0-17 with keras padding has a feature map"),
        ({"resolution": 17, "padding": "keras"}, "use at least 31 pixels a side"),
        ({"resolution": (30, 224), "padding": "keras"}, "1.0-30x224 with keras padding"),
        # Fewer strides need fewer pixels: the two that are left take 3 to 1 to 0.
        ({"resolution": 3, "padding": "keras", "total_stride": 4}, "use at least 4 pixels a side"),
        # Keras' name for something else.
        ({"depth_multiplier": 1}, "a model has no field 'depth_multiplier': the fields are "),
        ({"alpha": 0.5}, "the fields are activation, batch_norm_epsilon, input_channels, padding,"),
    ],
)
def test_a_wrong_field_gets_one_line(fields, says):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        MobileNetSpec.from_dict({"width": 1.0, "resolution": [224, 224], **fields})
    assert says in str(caught.value)


def test_the_smallest_size_that_an_error_names_works():
    assert MobileNetSpec(1.0, 31, padding="keras").final_size == (1, 1)
    assert MobileNetSpec(1.0, 4, padding="keras", total_stride=4).final_size == (1, 1)
    # The other paddings keep a pixel whatever the size.
    assert MobileNetSpec(1.0, 1).final_size == (1, 1)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        # "v1" and "_1" are no widths when another number is.
        ("mobilenet_v1_0.75_192", "0.75-192"),
        ("mobilenet_v1_1.0_224", "1.0-224"),
        # Between two published ones.
        ("0.6-180", "0.5-192"),
        ("0,25_130", "0.25-128"),
    ],
)
def test_the_nearest_name_is_a_published_one(wrong, nearest):
    assert nearest_name(wrong) == nearest


def test_width_is_read_from_numbers_and_text():
    assert check_width("0.25") == check_width(0.25) == 0.25
    assert isinstance(check_width(1), float)


def test_a_specification_is_frozen_and_replaced_with_its_checks():
    spec = MobileNetSpec()
    with pytest.raises(AttributeError):
        spec.width = 0.5
    with pytest.raises(ValueError, match="not 0"):
        replace(spec, width=0)
