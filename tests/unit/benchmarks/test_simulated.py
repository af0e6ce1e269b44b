import pytest
import torch

from benchmarks.request_level import run_batches, shared, simulated_s
from benchmarks.simulated import (
    CURVE_STEPS,
    CURVES,
    KNEE,
    SCALE,
    Arrival,
    VirtualClock,
    run_engine,
    simulated_components,
    unet_s,
)
from pipelines.engine.engine import Engine
from pipelines.engine.request import ImageRequest


def request(number: int, steps: int = 4, side: int = 512, **fields) -> ImageRequest:
    given = {"guidance_scale": 5.0, "scheduler": "EulerDiscreteScheduler", "prompt": "a cat"}
    size = {"width": side // SCALE, "height": side // SCALE}
    named = {"id": str(number), "seed": number, "num_inference_steps": steps}
    return ImageRequest(**(given | size | named | fields))


@pytest.mark.parametrize("side", CURVES)
def test_the_curve_goes_through_the_published_points(side):
    for pictures, seconds in CURVES[side]:
        assert unet_s(2 * int(pictures), side) == pytest.approx(seconds / CURVE_STEPS)


@pytest.mark.parametrize("side", CURVES)
def test_more_rows_never_take_less_time_nor_more_of_it_each_up_to_the_knee(side):
    times = [unet_s(rows, side) for rows in range(1, 2 * KNEE[side] + 1)]
    assert times == sorted(times)
    each = [seconds / rows for rows, seconds in enumerate(times, 1)]
    assert each == sorted(each, reverse=True)


def serve(arrivals, max_rows=12):
    clock, outcomes = VirtualClock(), []
    engine = Engine(simulated_components(clock.sleep), max_rows=max_rows, report=outcomes.append)
    return run_engine(engine, outcomes, clock, arrivals, elapsed=lambda: 0.0)


def alone_s(one: ImageRequest) -> float:
    return simulated_s([one], lambda r: r.width * SCALE)


@pytest.mark.parametrize("side", [512, 768])
def test_a_request_alone_takes_on_the_engine_what_it_takes_by_itself(side):
    one = request(1, steps=7, side=side)
    assert serve([Arrival(3.0, one)])["1"] == pytest.approx(3.0 + alone_s(one))


def test_time_stands_still_for_nobody_while_the_engine_idles():
    one, other = request(1), request(2)
    ends = serve([Arrival(0.0, one), Arrival(100.0, other)])
    assert ends["2"] - 100 == pytest.approx(ends["1"])


def test_a_late_short_request_leaves_a_long_one_behind_on_the_engine_alone():
    arrivals = [Arrival(0.0, request(1, steps=50)), Arrival(0.5, request(2, steps=4))]
    ours = serve(arrivals)
    theirs = run_batches(arrivals, lambda batch: alone_s(batch[0]), lambda one: 6)
    assert ours["2"] < ours["1"] < theirs["2"]


def test_an_end_is_when_its_step_ends_by_the_measured_time_too():
    ticks = iter(range(1000))
    clock, outcomes = VirtualClock(), []
    engine = Engine(simulated_components(lambda s: None), report=outcomes.append)
    ends = run_engine(
        engine, outcomes, clock, [Arrival(0.0, request(1, steps=4))], lambda: float(next(ticks))
    )
    assert ends == {"1": 4.0}


def test_requests_alike_share_a_batch_and_others_wait_for_its_end():
    batches = []

    def execute(batch):
        batches.append([one.id for one in batch])
        return 1.0

    arrivals = [Arrival(0.0, request(n, guidance_scale=5.0 + n % 2)) for n in range(5)]
    ends = run_batches(arrivals, execute, lambda one: 2)
    assert batches == [["0", "2"], ["1", "3"], ["4"]]
    assert ends == {"0": 1.0, "2": 1.0, "1": 2.0, "3": 2.0, "4": 3.0}


def test_a_batch_waits_for_company_only_so_long():
    arrivals = [Arrival(0.0, request(0)), Arrival(0.3, request(1)), Arrival(2.0, request(2))]
    ends = run_batches(arrivals, lambda batch: 1.0, lambda one: 3, wait_s=0.5)
    assert ends == {"0": 1.5, "1": 1.5, "2": 3.5}


def test_seeds_and_prompts_alone_may_differ_within_a_batch():
    assert shared(request(1)) == shared(request(2, prompt="a dog"))
    for other in ({"steps": 5}, {"side": 768}, {"scheduler": "DDIMScheduler"}, {"strength": 0.5}):
        assert shared(request(1)) != shared(request(2, **other))


def test_the_simulated_model_draws_finite_rows():
    slept = []
    parts = simulated_components(slept.append)
    (noise,) = parts.unet(torch.ones(12, 4, 8, 8), torch.zeros(12), return_dict=False)
    assert torch.isfinite(noise).all()
    assert slept == [unet_s(12, 512)]
