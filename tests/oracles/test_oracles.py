"""The oracles are proven by numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from numpy.testing import assert_allclose, assert_array_equal

from tests.oracles import features, logits, regions

LN2, LN3 = math.log(2), math.log(3)
QUARTER_KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # KL of (3/4, 1/4) against (1/2, 1/2) = 0.130812


def maps(*channels: list[list[float]]) -> np.ndarray:
    """One image (1, C, H, W) from its channels."""
    return np.array([channels], dtype=np.float64)


def centred(*scales: float, channels: int = 1) -> tuple[np.ndarray, ...]:
    """Generator weights whose 3x3 kernels only multiply the centre: relu(scales[0] * x) * scales[1], no bias."""
    weights = []
    for scale in scales:
        kernel = np.zeros((channels, channels, 3, 3))
        kernel[range(channels), range(channels), 1, 1] = scale
        weights += [kernel, np.zeros(channels)]
    return tuple(weights)


# Attention and masks -------------------------------------------------------------------------------------------------


def test_magnitude() -> None:
    # |F| = 1, 3: mean 2, deviation 1, so it stays as it is. The second image is 10 times the first: divided by 10.
    feature = np.concatenate([maps([[1, -3]]), maps([[-10, 30]])])
    assert_allclose(features.magnitude(feature)[:, 0, 0], [[1, 3], [1, 3]])
    # |F| = 1, 2, 2, 5 over two channels: mean 2.5, squares 2.25 + 0.25 + 0.25 + 6.25 = 9, deviation 1.5.
    assert_allclose(features.magnitude(maps([[1, 2]], [[-2, 5]])).ravel(), [1 / 1.5, 2 / 1.5, 2 / 1.5, 5 / 1.5])
    assert np.isfinite(features.magnitude(np.ones((1, 2, 2, 2)))).all()


def test_spatial_attention() -> None:
    # |F| = 0, 2, 0, 2 has deviation 1. Means over channels 0, 2, over the temperature 2: 0, 1.
    # softmax = 1 / (1 + e), e / (1 + e) = 0.268941, 0.731059, times H*W = 2.
    assert_allclose(features.spatial_attention(maps([[0, -2]], [[0, 2]]), 2.0)[0, 0], [0.537883, 1.462117], atol=1e-6)


def test_channel_attention() -> None:
    # The same numbers turned: the channels' means over positions are 0 and 2.
    assert_allclose(features.channel_attention(maps([[0, 0]], [[2, -2]]), 2.0)[0], [0.537883, 1.462117], atol=1e-6)


def test_top_mask() -> None:
    # round(0.4 * 5) = 2 entries: the highest are 4 and 3, the lowest 0 and 1. Each image has its own.
    attention = np.array([[3.0, 1, 2, 4, 0], [0, 1, 2, 3, 4]])
    assert_array_equal(features.top_mask(attention, 0.4), [[0, 1, 1, 0, 1], [1, 1, 1, 0, 0]])
    assert_array_equal(features.top_mask(attention, 0.4, "low"), [[1, 0, 1, 1, 0], [0, 0, 1, 1, 1]])
    assert_array_equal(features.top_mask(attention, 0.0), np.ones((2, 5)))
    # A map (B, H, W): round(0.5 * 4) = 2 positions, 9 and 8.
    assert_array_equal(features.top_mask(np.array([[[9.0, 1], [2, 8]]]), 0.5), [[[0, 1], [1, 0]]])


def test_cell_mask() -> None:
    # Grid 2 cuts 2 x 4 into cells 1 x 2: (1 2) (7 8) (3 4) (5 6); the higher one of each goes.
    attention = np.array([[[1.0, 2, 7, 8], [3, 4, 5, 6]]])
    assert_array_equal(features.cell_mask(attention, 2, 0.5), [[[1, 0, 1, 0], [1, 0, 1, 0]]])
    # Grid 1: the four highest of all, 5 to 8.
    assert_array_equal(features.cell_mask(attention, 1, 0.5), [[[1, 1, 0, 0], [1, 1, 0, 0]]])


def test_cells_of_odd_sizes() -> None:
    # Rows 0 to 5 cut at floor(5 / 2) = 2, columns 0 to 3 at floor(3 / 2) = 1.
    rows, columns = (slice(0, 2), slice(2, 5)), (slice(0, 1), slice(1, 3))
    assert features.cells(5, 3, 2) == [(row, column) for row in rows for column in columns]


def test_kept_grids() -> None:
    assert features.kept_grids(20, 20, [1, 2, 4]) == [1, 2, 4]
    assert features.kept_grids(11, 20, [1, 2, 4]) == [1, 2]  # 11 // 4 = 2 rows
    assert features.kept_grids(3, 4, [1, 2, 4]) == [1]


# Building blocks -----------------------------------------------------------------------------------------------------


def test_standardize() -> None:
    # Channel 0 over both images: 1, 3, mean 2, deviation 1. Channel 1: 0, 10, mean 5, deviation 5.
    feature = np.array([[[[1.0]], [[0.0]]], [[[3.0]], [[10.0]]]])
    assert_allclose(features.standardize(feature).reshape(2, 2), [[-1, -1], [1, 1]], atol=2e-6)
    # eps is added to the deviation: with eps = 1 the first channel is halved.
    assert_allclose(features.standardize(feature, eps=1.0)[:, 0].ravel(), [-0.5, 0.5])


def test_conv2d() -> None:
    feature = maps([[1, 2], [3, 4]])
    # 1 * 1 + 2 * 10 + 3 * 0 + 4 * 2 + bias 1 = 30.
    assert_allclose(features.conv2d(feature, np.array([[[[1.0, 10], [0, 2]]]]), np.ones(1), 0), [[[[30]]]])
    # Padding 1, a kernel that takes the right neighbour: 2, 0 and 4, 0.
    right = np.zeros((1, 1, 3, 3))
    right[0, 0, 1, 2] = 1.0
    assert_allclose(features.conv2d(feature, right, np.zeros(1), 1), [[[[2, 0], [4, 0]]]])
    # Two input channels are summed.
    both = features.conv2d(maps([[1]], [[2]]), np.array([[[[3.0]], [[5.0]]]]), np.zeros(1), 0)
    assert_allclose(both, [[[[13]]]])


def test_conv2d_agrees_with_torch() -> None:
    generator = np.random.default_rng(0)
    x, w, b = (generator.normal(size=shape) for shape in ((2, 3, 4, 5), (2, 3, 3, 3), (2,)))
    expected = torch.nn.functional.conv2d(*(torch.from_numpy(v) for v in (x, w, b)), padding=1)
    assert_allclose(features.conv2d(x, w, b, 1), expected.numpy(), atol=1e-12)


def test_generator() -> None:
    w1, _, w2, _ = centred(3.0, -2.0)
    # 3 * 2 - 1 = 5, relu 5, -2 * 5 + 1 = -9. And 3 * -2 - 1 = -7, relu 0, 1.
    assert_allclose(features.generator(maps([[2]]), w1, -np.ones(1), w2, np.ones(1)), [[[[-9]]]])
    assert_allclose(features.generator(maps([[-2]]), w1, -np.ones(1), w2, np.ones(1)), [[[[1]]]])


# Feature losses ------------------------------------------------------------------------------------------------------


def test_dfmsd_level() -> None:
    given = {
        "adapted": maps([[1, 2]]),
        "teacher": maps([[0, 4]]),
        "spatial_mask": np.array([[[0.0, 1.0]]]),
        "channel_mask": np.array([[1.0]]),
        "spatial_generator": centred(1.0, 1.0),
        "channel_generator": centred(2.0, 1.0),
        "fusion": np.array([0.0, LN3]),  # shares 1/4, 3/4
    }
    # 1/4 * (0, 2) + 3/4 * (2, 4) = (1.5, 3.5), less (0, 4): (1.5, -0.5), mean square (2.25 + 0.25) / 2.
    assert features.dfmsd_level(**given, align=False) == pytest.approx(1.25)
    # Aligned: both maps are (-1, 1). 1/4 * relu(0, 1) + 3/4 * relu(-2, 2) = (0, 1.75), less (-1, 1): (1, 0.75),
    # mean square (1 + 0.5625) / 2.
    assert features.dfmsd_level(**given, align=True) == pytest.approx(0.78125, abs=1e-5)
    # A channel mask of 0 leaves 1/4 * (0, 2) = (0, 0.5), less (0, 4): mean square 12.25 / 2.
    assert features.dfmsd_level(**{**given, "channel_mask": np.zeros((1, 1))}, align=False) == pytest.approx(6.125)


def test_soft_mask() -> None:
    # 0.5 is under the mean: 1. 1.25: 1 - 2 * 0.25. 3: clipped.
    assert_allclose(features.soft_mask(np.array([[0.5, 1.25, 3.0]]), 2.0), [[1, 0.5, 0]])


def test_gap_attention() -> None:
    teacher, adapted = maps([[1, -3]], [[0, 0]]), np.zeros((1, 2, 1, 2))
    # Mean over channels of |difference|: 0.5, 1.5, which has mean 1. 0.5 * (1 + 2 * 0.5), 1.5 * (1 + 2 * 1.5).
    by_position = features.gap_attention(np.array([[[0.5, 1.5]]]), adapted, teacher, 2.0)
    assert_allclose(by_position, [[[1.0, 6.0]]])
    # Mean over positions: 2, 0, which has mean 1. 0.5 * (1 + 2 * 2), 1.5 * 1.
    assert_allclose(features.gap_attention(np.array([[0.5, 1.5]]), adapted, teacher, 2.0), [[2.5, 1.5]])
    # D is scaled to mean 1: a gap ten times as large changes nothing.
    assert_allclose(features.gap_attention(np.array([[[0.5, 1.5]]]), adapted, 10 * teacher, 2.0), by_position)


def test_high_pass() -> None:
    # A constant has no high frequency.
    assert_allclose(features.high_pass(np.full((1, 1, 2, 3), 5.0)), np.full((1, 1, 2, 3), 5.0), atol=1e-12)
    # (3, 1) = 2 + (1, -1), the wave at the Nyquist frequency: factor 1 - exp(-1 / (2 * 0.1^2)) = 1 - e^-50.
    assert_allclose(features.high_pass(maps([[3, 1]])), maps([[4, 0]]), atol=1e-12)
    # radius 1: factor 1 - exp(-0.5) = 0.393469, twice that with gamma 2: 2 +- 1.786939.
    assert_allclose(features.high_pass(maps([[3, 1]]), 2.0, 1.0), maps([[3.786939, 0.213061]]), atol=1e-6)
    # Half the Nyquist frequency, radius 0.5: 1 - exp(-0.25 / 0.5), the same factor; down a column as along a row.
    expected = np.array([1.393469, 0, -1.393469, 0])
    assert_allclose(features.high_pass(maps([[1, 0, -1, 0]]), 1.0, 0.5)[0, 0, 0], expected, atol=1e-6)
    assert_allclose(features.high_pass(maps([[1], [0], [-1], [0]]), 1.0, 0.5)[0, 0, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("size", [(3, 5), (4, 4)])
def test_high_pass_agrees_with_numpy(size: tuple[int, int]) -> None:
    feature = np.random.default_rng(0).normal(size=(2, 2, *size))
    u, v = 2 * np.fft.fftfreq(size[0])[:, None], 2 * np.fft.fftfreq(size[1])[None]
    passed = np.fft.ifft2(np.fft.fft2(feature) * (1 - np.exp(-(u**2 + v**2) / (2 * 0.5**2)))).real
    assert_allclose(features.high_pass(feature, 0.7, 0.5), feature + 0.7 * passed, atol=1e-12)


def test_samkd_feature_level_on_one_grid() -> None:
    teacher, adapted, identity = maps([[1, 4]]), maps([[2, 5]]), [centred(1.0, 1.0)]
    # Attention is higher at 4: mask (1, 0), (2, 0) less (1, 4): (1 + 16) / 2. Grid 2 has cells under 5 x 5.
    assert features.samkd_feature_level(adapted, teacher, [1, 2], 0.5, 0.0, 0.5, identity, False) == pytest.approx(8.5)
    # Aligned: both (-1, 1), masked (-1, 0), relu (0, 0), less (-1, 1): 1.
    aligned = features.samkd_feature_level(adapted, teacher, [1], 0.5, 0.0, 0.5, identity, True)
    assert aligned == pytest.approx(1.0, abs=1e-5)
    # Two channels 1 and 3, half of them masked: the 3 goes, error 9 / 2.
    channels = maps([[1]], [[3]])
    identity = [centred(1.0, 1.0, channels=2)]
    value = features.samkd_feature_level(channels, channels, [1], 0.0, 0.5, 0.5, identity, False)
    assert value == pytest.approx(4.5)


def test_samkd_feature_level_masks_each_cell() -> None:
    teacher = np.ones((1, 1, 10, 10))
    teacher[0, 0, 0, :4] = 9, 8, 7, 6  # all in the first of the four 5 x 5 cells
    teacher[0, 0, 0, 9], teacher[0, 0, 9, 0], teacher[0, 0, 9, 9] = 2, 3, 4
    # Ratio 0.04: grid 1 masks 4 of 100, 9 8 7 6: error (81 + 64 + 49 + 36) / 100 = 2.30.
    # Grid 2 masks 1 of each 25, 9 2 3 4: (81 + 4 + 9 + 16) / 100 = 1.10. The mean is 1.70.
    identity = [centred(1.0, 1.0)] * 2
    value = features.samkd_feature_level(teacher, teacher, [1, 2, 4], 0.04, 0.0, 0.5, identity, False)
    assert value == pytest.approx(1.70)


def quarters() -> tuple[np.ndarray, np.ndarray]:
    """A student that is -1 above and 1 below and a teacher that is -1 left and 1 right, (1, 1, 10, 10) each."""
    student = np.ones((1, 1, 10, 10))
    student[..., :5, :] = -1
    return student, student.transpose(0, 1, 3, 2).copy()


def test_region_difference() -> None:
    student, teacher = quarters()
    # Squared differences by quarter: 0 4 / 4 0. Grid 1 has mean 2 everywhere, grid 2 0 4 / 4 0, their mean 1 3 / 3 1,
    # scaled to mean 1: 0.5 1.5 / 1.5 0.5.
    expected = np.kron([[0.5, 1.5], [1.5, 0.5]], np.ones((5, 5)))
    assert_allclose(features.region_difference(student, teacher, [1, 2, 4])[0], expected, atol=1e-5)


def test_region_difference_is_clipped() -> None:
    # Columns -1, 1, ...; the student has them flipped in one of 16 cells. D would be 16 there, 0 elsewhere.
    teacher = np.tile([-1.0, 1.0], (24, 12))[None, None]
    student = teacher.copy()
    student[..., :6, :6] *= -1
    difference = features.region_difference(student, teacher, [4])[0]
    assert_allclose(difference[:6, :6], 4.0)
    assert_allclose(difference[6:], 0.0)


def test_samkd_logit() -> None:
    student, teacher = quarters()
    z_student, z_teacher = np.zeros((1, 10, 10, 1)), np.zeros((1, 10, 10, 1))
    z_teacher[:, :5, 5:] = LN3  # p = 3/4 on the upper right quarter, against q = 1/2: BCE ln 2, factor 1/4
    given = [student], [teacher], [z_student], [z_teacher], [1, 2]
    # |F^T| is constant, so A_s = 1 and W = D: 25 * 1.5 * 0.25 ln 2 / 100.
    assert features.samkd_logit(*given, 0.5) == pytest.approx(25 * 1.5 * 0.25 * LN2 / 100, abs=1e-6)
    # W = 1 on the half of the positions where D is 1.5: 25 * 0.25 ln 2 / 50.
    assert features.samkd_logit(*given, 0.5, binary_share=0.5) == pytest.approx(25 * 0.25 * LN2 / 50, abs=1e-6)
    # A second level that agrees adds nothing above and 100 below. A second class that disagrees alike adds itself.
    levels = [student] * 2, [teacher] * 2, [z_student] * 2, [z_teacher, np.zeros((1, 10, 10, 1))], [1, 2]
    assert features.samkd_logit(*levels, 0.5) == pytest.approx(25 * 1.5 * 0.25 * LN2 / 200, abs=1e-6)
    classes = [student], [teacher], [z_student.repeat(2, 3)], [z_teacher.repeat(2, 3)], [1, 2]
    assert features.samkd_logit(*classes, 0.5) == pytest.approx(2 * 25 * 1.5 * 0.25 * LN2 / 100, abs=1e-6)


def test_samkd_logit_is_weighted_by_attention() -> None:
    # Grid 1 alone: D = 1. A_s of |F| = 1, 3 at temperature 2 is 0.537883, 1.462117 (sum 2); KD 0.25 ln 2 at the second.
    z_teacher = np.array([[[[0.0], [LN3]]]])
    value = features.samkd_logit([maps([[5, 6]])], [maps([[1, -3]])], [0 * z_teacher], [z_teacher], [1], 2.0)
    assert value == pytest.approx(1.462117 * 0.25 * LN2 / 2, abs=1e-6)


def test_mgd_level() -> None:
    # 2 * (1, 2) * (0, 1) = (0, 4), less (1, 1): (1 + 9) / 2.
    given = maps([[1, 2]]), maps([[1, 1]]), np.array([[[0.0, 1.0]]]), centred(2.0, 1.0)
    assert features.mgd_level(*given, align=False) == pytest.approx(5.0)
    # Aligned: (-1, 1) masked (0, 1), doubled (0, 2), against (0, 0): 4 / 2.
    assert features.mgd_level(*given, align=True) == pytest.approx(2.0, abs=1e-5)


def test_cwd_level() -> None:
    student, teacher = np.zeros((1, 2, 1, 2)), maps([[LN3, 0]], [[0, 0]])
    # Channel 0: (3/4, 1/4) against (1/2, 1/2); channel 1 agrees. Mean over two channels.
    assert features.cwd_level(student, teacher, 1.0, align=False) == pytest.approx(QUARTER_KL / 2)
    # Twice the logits at tau 2: the same distributions, times 4.
    assert features.cwd_level(student, 2 * teacher, 2.0, align=False) == pytest.approx(4 * QUARTER_KL / 2)
    # KL(teacher || student), not the reverse: 1/2 ln(2/3) + 1/2 ln 2 = 0.143841.
    assert features.cwd_level(teacher, student, 1.0, align=False) == pytest.approx(0.143841 / 2, abs=1e-6)
    # Aligned: (5, 1) is (1, -1), softmax 0.880797, 0.119203: 0.880797 ln 1.761594 + 0.119203 ln 0.238406 = 0.327813.
    assert features.cwd_level(maps([[7, 7]]), maps([[5, 1]]), 1.0, align=True) == pytest.approx(0.327813, abs=1e-5)


def test_pkd_level() -> None:
    # 1 - r: r = -1 gives 2, r = 0 gives 1, r = 1 gives 0. The first: (-1, 1) less (1, -1), 4 / 2.
    assert features.pkd_level(maps([[1, 3]]), maps([[5, 1]])) == pytest.approx(2.0, abs=1e-5)
    assert features.pkd_level(maps([[1, 1, -1, -1]]), maps([[1, -1, 1, -1]])) == pytest.approx(1.0, abs=1e-5)
    assert features.pkd_level(maps([[1, 3]]), maps([[10, 30]])) == pytest.approx(0.0, abs=1e-5)


# Logit losses --------------------------------------------------------------------------------------------------------


def test_helpers_of_logits() -> None:
    assert logits.sigmoid(LN3) == pytest.approx(0.75)
    assert logits.softmax(np.array([2 * LN3, 0]), 2.0) == pytest.approx([0.75, 0.25])
    assert logits.kl([0.75, 0.25], [0.5, 0.5]) == pytest.approx(0.130812, abs=1e-6)
    assert logits.cosine([3.0, 0.0], [1.0, 1.0]) == pytest.approx(math.sqrt(0.5))
    assert logits.bce(LN3, 0.5) == pytest.approx(-0.5 * math.log(0.75) - 0.5 * math.log(0.25))
    assert logits.bce(-LN3, 0.0) == pytest.approx(-math.log(0.75))


def test_block_sizes() -> None:
    assert logits.block_sizes(20, 3) == [7, 7, 6]
    assert logits.block_sizes(5, 2) == [3, 2]
    assert logits.block_sizes(80, 3) == [27, 27, 26]
    assert logits.block_sizes(4, 1) == [4]


def test_pcd_of_one_stage() -> None:
    student, teacher = np.zeros((1, 2)), np.array([[2 * LN3, 0.0]])
    # (3/4, 1/4) against (1/2, 1/2): cos = 0.5 / (sqrt(0.625) sqrt(0.5)) = 0.894427. tau^2 = 4, two directions:
    # 2 * 0.105573 * 4 * 0.130812 = 0.110481.
    assert logits.pcd_grouped(student, teacher, np.ones(1), 1, 2.0) == pytest.approx(0.110481, abs=1e-6)
    # Two classes allow one stage, one class none.
    assert logits.pcd_grouped(student, teacher, np.ones(1), 3, 2.0) == pytest.approx(0.110481, abs=1e-6)
    assert logits.pcd_grouped(np.zeros((1, 1)), np.ones((1, 1)), np.ones(1), 3, 2.0) == 0.0


def test_pcd_of_two_stages() -> None:
    student, teacher = np.zeros((1, 4)), np.array([[0.0, LN3, 0.0, -LN2]])
    # Gaps 0, 1.10, 0, 0.69 rank the classes 1, 3, 0, 2. Two groups: (1, 3) is (6/7, 1/7), (0, 2) agrees.
    #   cos = 0.5 / (sqrt(37) / 7 * sqrt(0.5)) = 0.813733, KL = 6/7 ln(12/7) + 1/7 ln(2/7) = 0.283032
    #   D = 0.186267 * 0.283032 = 0.052719
    # One group: (3, 1/2, 1, 1) / 5.5 = (6, 1, 2, 2) / 11 against 1/4.
    #   cos = 0.25 / (sqrt(45) / 11 * 0.5) = 0.819892, KL = 6/11 ln(24/11) + 1/11 ln(4/11) + 4/11 ln(8/11) = 0.217776
    #   D = 0.180108 * 0.217776 = 0.039223
    # F2CL takes both, C2FL takes both: 2 * (0.052719 + 0.039223) = 0.183885.
    assert logits.pcd_grouped(student, teacher, np.ones(1), 2, 1.0) == pytest.approx(0.183885, abs=2e-6)
    # Without the ranking the groups would be (0, 1) and (2, 3): another number.
    groups = [logits.pcd_stage(student[0], teacher[0], count, 1.0) for count in (1, 2)]
    assert 2 * sum(groups) != pytest.approx(0.183885, abs=1e-3)


def test_pcd_weights_its_anchors() -> None:
    student, teacher = np.zeros((2, 2)), np.array([[2 * LN3, 0.0], [1.0, 1.0]])
    # The second anchor agrees and has 3 of 4 parts of the weight.
    value = logits.pcd_grouped(student, teacher, np.array([1.0, 3.0]), 1, 2.0)
    assert value == pytest.approx(0.110481 / 4, abs=1e-6)


def test_pcd_anchor_weights() -> None:
    positives = np.array([[True, False, False]])
    teacher = np.array([[[-LN3, -9.0], [-1.0, LN3], [0.0, -1.0]]])
    # sigma = 1/4 on a positive: kept. 3/4 on a negative, above 0.6: kept. 1/2 on a negative: dropped.
    assert_allclose(logits.pcd_anchor_weights(positives, teacher, 0.6), [[0.25, 0.75, 0]])
    assert_allclose(logits.pcd_anchor_weights(positives, teacher, 1.0), [[0.25, 0, 0]])


def test_binary() -> None:
    student, teacher = np.array([[0.0, 0.0, LN3]]), np.array([[LN3, 0.0, 0.0]])
    # BCE(0, 3/4) = ln 2, gap 1/4; gap 0; BCE(ln 3, 1/2) = (ln 4/3 + ln 4) / 2 = 0.836988, gap 1/4. Over 2.
    assert logits.binary(student, teacher, 1.0, 2.0) == pytest.approx(0.25 * (LN2 + 0.836988) / 2, abs=1e-6)
    assert logits.binary(student, teacher, 2.0, 2.0) == pytest.approx(0.0625 * (LN2 + 0.836988) / 2, abs=1e-6)
    assert logits.crosskd_class(student, teacher, 1.0, 2.0) == pytest.approx(0.191267, abs=1e-6)


def test_giou() -> None:
    a = np.array([0.0, 0, 2, 2])
    # Intersection 1, union 7, hull 9. Disjoint: IoU 0, union 2, hull 3. Equal: 1.
    assert logits.giou(a, np.array([1.0, 1, 3, 3])) == pytest.approx(1 / 7 - 2 / 9)
    assert logits.giou(np.array([0.0, 0, 1, 1]), np.array([2.0, 0, 3, 1])) == pytest.approx(-1 / 3)
    assert logits.giou(a, a) == pytest.approx(1.0)


def test_bckd_box() -> None:
    student, teacher = np.array([[0.0, 0, 2, 2], [0, 0, 1, 1]]), np.array([[1.0, 1, 3, 3], [0, 0, 1, 1]])
    z_student, z_teacher = np.zeros((2, 2)), np.array([[LN3, 0.0], [LN3, 0.0]])
    # Weight 1/4 on both; 1 - GIoU = 1 - 1/7 + 2/9 and 0. Over 2.
    value = logits.bckd_box(student, teacher, z_student, z_teacher, 2.0)
    assert value == pytest.approx(0.25 * (1 - 1 / 7 + 2 / 9) / 2)


def test_ld() -> None:
    student, teacher = np.zeros((2, 4, 2)), np.zeros((2, 4, 2))
    teacher[0, 2] = LN3, 0.0
    # One side of four at (3/4, 1/4) against (1/2, 1/2), mean over 2 bins; the anchor has 1 of 4 parts of the weight.
    weights = np.array([1.0, 3.0])
    assert logits.ld(student, teacher, weights, 1.0) == pytest.approx(QUARTER_KL / 2 / 4 / 4)
    assert logits.ld(student, 2 * teacher, weights, 2.0) == pytest.approx(4 * QUARTER_KL / 2 / 4 / 4)
    # CrossKD sums over the bins and has no temperature.
    assert logits.crosskd_box(student, teacher, weights) == pytest.approx(QUARTER_KL / 4 / 4)


def test_softkd() -> None:
    student, teacher = np.zeros((2, 2)), np.array([[2 * LN3, 0.0], [1.0, 1.0]])
    # T^2 = 4 times KL of the first anchor, which has 1 of 4 parts of the weight.
    assert logits.softkd(student, teacher, np.array([1.0, 3.0]), 2.0) == pytest.approx(QUARTER_KL)


# Region losses -------------------------------------------------------------------------------------------------------


def test_bilinear() -> None:
    feature = np.array([[[0.0, 1], [2, 3]]])
    assert regions.bilinear(feature, 0.5, 0.25) == pytest.approx([1.25])  # rows 0.25 and 2.25
    assert regions.bilinear(feature, -0.9, 1.5) == pytest.approx([1.0])  # the edge's value
    assert regions.bilinear(feature, -1.1, 0.0) == pytest.approx([0.0])  # more than a cell outside


def test_roi_align() -> None:
    # The map's value is the column's index and stride is 8: pixel x is at x / 8 - 0.5. The box from 16 to 48 runs from
    # 1.5 to 5.5; on a linear map a bin's mean is its centre's value: 1.5 + (j + 0.5) * 4 / 7.
    ramp = np.tile(np.arange(8.0), (1, 8, 1))
    pooled = regions.roi_align(ramp, np.array([16.0, 16, 48, 48]), 8)
    assert pooled.shape == (1, 7, 7)
    assert_allclose(pooled[0], np.tile(1.5 + (np.arange(7) + 0.5) * 4 / 7, (7, 1)))
    assert_allclose(regions.roi_align(ramp, np.array([16.0, 16, 48, 48]), 8, size=1), [[[3.5]]])


def test_roi_align_agrees_with_torchvision() -> None:
    generator = np.random.default_rng(0)
    feature = generator.normal(size=(3, 6, 9))
    for box in ([3.0, 5, 40, 33], [-30, -20, 20, 30], [50, 30, 90, 70], [10, 10, 11, 12]):
        rois = [torch.tensor([box], dtype=torch.float64)]
        expected = torchvision.ops.roi_align(
            torch.from_numpy(feature)[None], rois, 7, spatial_scale=1 / 8, sampling_ratio=2, aligned=True
        )
        assert_allclose(regions.roi_align(feature, np.array(box), 8), expected[0].numpy(), atol=1e-12)


def test_teacher_level() -> None:
    strides = (8, 16, 32)
    # floor(3 + log2(127 / 64)) = 3; 128 is exactly 4; 256 exactly 5; the rest is clamped.
    assert [regions.teacher_level(s, s, strides) for s in (5, 127, 128, 255, 256, 900)] == [0, 0, 1, 1, 2, 2]
    assert regions.teacher_level(64, 256, strides) == 1  # sqrt(64 * 256) = 128
    assert regions.teacher_level(900, 900, (8, 16)) == 1
    assert regions.teacher_level(32, 32, (4, 8, 16)) == 0  # floor(3 - 1) = 2: stride 4


def test_sgfi() -> None:
    def same(region: np.ndarray) -> np.ndarray:
        return region

    def corner(region: np.ndarray) -> np.ndarray:
        return region[:, 0, 0]

    student = [np.full((1, 1, 16, 16), 1.0), np.full((1, 1, 8, 8), 3.0)]
    teacher = [np.full((1, 1, 16, 16), 2.0), np.full((1, 1, 8, 8), 3.0)]
    adapters, embeds = [[same, same], [same, same]], [corner, corner]
    small, large = [8.0, 8, 40, 40], [0.0, 0, 128, 128]
    # Keys 1 and 3 against 2 at tau 2: 1, 3, softmax 0.119203, 0.880797; 0.119203 + 3 * 0.880797 = 2.761594;
    # (2.761594 - 2)^2 = 0.580026.
    first = regions.sgfi(student, teacher, np.array([small]), np.array([0]), (8, 16), adapters, embeds, 2.0)
    assert first == pytest.approx(0.580026, abs=1e-6)
    # The large box goes to the teacher's level 1, where keys 1 and 3 meet 3: 1.5, 4.5, softmax 0.047426, 0.952574;
    # 2.905148 less 3, squared 0.008997. The mean of both boxes: 0.294511.
    both = regions.sgfi(student, teacher, np.array([small, large]), np.zeros(2, int), (8, 16), adapters, embeds, 2.0)
    assert both == pytest.approx(0.294511, abs=1e-6)
    # f_adap doubles: keys 2 and 6 against 2 at tau 2, softmax of 2, 6: 0.017986, 0.982014; 5.928055 less 2: 15.429617.
    doubled = [[lambda r: 2 * r] * 2] * 2
    value = regions.sgfi(student, teacher, np.array([small]), np.array([0]), (8, 16), doubled, embeds, 2.0)
    assert value == pytest.approx(15.429617, abs=1e-5)


def test_sgfi_aligned() -> None:
    ramp = np.tile(np.arange(16.0), (1, 1, 16, 1))
    given = np.array([[8.0, 8, 72, 72]]), np.array([0]), (8,), [[lambda r: r]], [lambda r: r.ravel()], 1.0
    # The teacher is 5 x + 3: the same after standardisation, (4 x + 3)^2 before. Bins lie at 0.5 + (j + 0.5) * 8 / 7,
    # mean 4.5, variance (8 / 7)^2 * 4 = 5.224490: mean of (4 x + 3)^2 = 16 * (5.224490 + 20.25) + 24 * 4.5 + 9.
    assert regions.sgfi([ramp], [5 * ramp + 3], *given, align=True) == pytest.approx(0.0, abs=1e-9)
    assert regions.sgfi([ramp], [5 * ramp + 3], *given) == pytest.approx(16 * 25.474490 + 117, abs=1e-4)


def test_iou() -> None:
    assert regions.iou(np.array([0.0, 0, 2, 2]), np.array([1.0, 1, 3, 3])) == pytest.approx(1 / 7)
    assert regions.iou(np.array([0.0, 0, 1, 1]), np.array([2.0, 2, 3, 3])) == 0.0


def test_info_nce() -> None:
    student, teacher = np.array([[1.0, 0], [0, 2]]), np.array([[3.0, 0], [0, 1]])
    apart, nothing = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]]), np.zeros((0, 2))
    same = np.zeros(2, dtype=int)
    # Cosines 1 with their own and 0 with each other: -ln(e / (e + 1)) = 0.313262 for both.
    value = regions.info_nce(student, teacher, apart, same, nothing, 1.0, 0.5)
    assert value == pytest.approx(0.313262, abs=1e-6)
    # Temperature 1/2: -ln(e^2 / (e^2 + 1)) = 0.126928.
    value = regions.info_nce(student, teacher, apart, same, nothing, 0.5, 0.5)
    assert value == pytest.approx(0.126928, abs=1e-6)
    # (-1, 0) in the queue: e / (e + 1 + 1/e) and e / (e + 1 + 1): (0.407606 + 0.551445) / 2.
    value = regions.info_nce(student, teacher, apart, same, np.array([[-1.0, 0]]), 1.0, 0.5)
    assert value == pytest.approx(0.479525, abs=1e-6)


def test_info_nce_drops_overlapping_boxes_of_the_same_image() -> None:
    student = teacher = np.eye(2)
    overlap = np.array([[0.0, 0, 10, 10], [0, 0, 10, 8]])  # IoU 0.8
    nothing = np.zeros((0, 2))
    assert regions.info_nce(student, teacher, overlap, np.zeros(2, int), nothing, 1.0, 0.5) == pytest.approx(0.0)
    # At 0.9 they stay, and in two images they stay.
    for image_index, threshold in ((np.zeros(2, int), 0.9), (np.arange(2), 0.5)):
        value = regions.info_nce(student, teacher, overlap, image_index, nothing, 1.0, threshold)
        assert value == pytest.approx(0.313262, abs=1e-6)
