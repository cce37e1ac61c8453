"""Differences between the arrays of two models, in words."""

import numpy as np
import pytest

from mixer.transfer.mismatch import mismatches


def test_mismatches_lists_each_array_once():
    there = {"a": np.zeros(2), "b": {"c": np.zeros((2, 3)), "d": np.zeros(1)}}
    here = {"b": {"c": np.zeros((3, 2)), "d": np.zeros(1), "e": np.zeros(1)}}
    assert mismatches(there, here) == [
        "b/e: missing there", "a: not in this model", "b/c: (2, 3) there, (3, 2) here",
    ]  # fmt: skip
    assert mismatches(there, there) == []


def blocks(numbers, width=3, **more):
    return {f"MixerBlock_{n}": {"norm": {"bias": np.zeros(width), "scale": np.zeros(width)}} | more for n in numbers}


@pytest.mark.parametrize(
    ("there", "here", "listed"),
    [
        (range(24), range(12), ["MixerBlock_12..23: not in this model"]),
        (range(9), range(12), ["MixerBlock_9..11: missing there"]),
        ([0, 1, 2, 4, 11], [0, 2, 3, 5, 6],
         ["MixerBlock_3,5..6: missing there", "MixerBlock_1,4,11: not in this model"]),
    ],
)  # fmt: skip
def test_whole_blocks_are_one_mismatch(there, here, listed):
    assert mismatches(blocks(there), blocks(here)) == listed


def test_equal_findings_in_many_blocks_are_one_mismatch():
    there = {**blocks(range(12)), **blocks([3], cls=np.zeros(1)), **blocks([5], width=4), "MixerBlock_x": np.zeros(1)}
    del there["MixerBlock_1"]["norm"]["bias"], there["MixerBlock_10"]["norm"]["bias"]
    assert mismatches(there, blocks(range(12), width=2)) == [
        "MixerBlock_1,10/norm/bias: missing there",
        "MixerBlock_3/cls: not in this model",
        "MixerBlock_x: not in this model",
        "MixerBlock_0,2..4,6..9,11/norm/bias: (3,) there, (2,) here",
        "MixerBlock_0..4,6..11/norm/scale: (3,) there, (2,) here",
        "MixerBlock_5/norm/bias: (4,) there, (2,) here",
        "MixerBlock_5/norm/scale: (4,) there, (2,) here",
    ]
