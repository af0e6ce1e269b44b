"""How much each round of a loopback changes."""

import pytest

from deployments.api.sdapi.scripts.loopback import LoopbackArguments, strength_at


@pytest.mark.parametrize(
    ("curve", "middle"), [("Linear", 0.5), ("Aggressive", 0.5**0.5), ("Lazy", 1 - 0.5**0.5)]
)
def test_strength_goes_from_the_first_to_the_final_along_its_curve(curve, middle):
    arguments = LoopbackArguments(loops=3, final_strength=0.8, curve=curve)
    found = [strength_at(arguments, 0.2, place) for place in range(3)]
    assert found == pytest.approx([0.2, 0.2 + 0.6 * middle, 0.8])


def test_a_single_round_has_the_strength_of_the_request():
    assert strength_at(LoopbackArguments(loops=1), 0.3, 0) == 0.3
