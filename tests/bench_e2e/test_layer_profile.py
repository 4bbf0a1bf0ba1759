"""The kernels of a layer, found in profiles of decode steps."""

from __future__ import annotations

from serving_ops.bench_e2e.layer_profile import Span, added_times, layer_of

LAYER = {"norm": 1.5, "gemm": 8.0, "rope": 1.0, "attention": 5.0, "gemm 2": 4.0}


def _profile(layers: int, steps: int, gap: float = 0.5, around: int = 1) -> list[Span]:
    """A prompt, and steps of `layers` layers behind `around` kernels and before a last product; the first differs."""
    first = ["first norm", *list(LAYER)[1:]]
    step = [
        *(f"copy {place % 9}" for place in range(around)),
        *first,
        *list(LAYER) * (layers - 1),
        "last norm",
        "logits",
        "argmax",
    ]
    spans, time = [], 0.0
    for name in [*["prefill"] * 7, *step * steps]:
        spans.append((name, time, time + LAYER.get(name, 3.0)))
        time += LAYER.get(name, 3.0) + gap
    return spans


def _from_norm(layer: list[dict[str, str | float]] | None) -> list[tuple[str | float, str | float]]:
    assert layer is not None
    kernels = [(kernel["name"], kernel["us"]) for kernel in layer]
    start = [name for name, _ in kernels].index("norm")
    return kernels[start:] + kernels[:start]


def test_a_layer_is_what_the_steps_repeat_most_often() -> None:
    for layers in (6, 28):
        assert _from_norm(layer_of(_profile(layers, steps=32))) == list(LAYER.items())


def test_a_layer_is_found_where_the_step_has_more_around_it() -> None:
    """As on CPU, where the operators that prepare a step are profiled too."""
    assert _from_norm(layer_of(_profile(6, steps=32, around=20))) == list(LAYER.items())


def test_a_layer_is_found_where_no_step_is_exactly_as_the_one_before() -> None:
    """As on a GPU, where a copy on another stream falls now here, now there."""
    spans: list[Span] = []
    for step in range(32):
        names = [*(f"own {number}" for number in range(30)), *list(LAYER) * 28]
        names.insert(5 * (step % 2), "copy")
        spans += [(name, 0.0, 0.0) for name in names]
    spans = [(name, float(place), place + LAYER.get(name, 0.5) / 10) for place, (name, _, _) in enumerate(spans)]
    layer = layer_of(spans)
    assert layer is not None
    assert sorted(str(kernel["name"]) for kernel in layer) == sorted(LAYER)


def test_of_layers_of_two_kinds_all_that_repeat_are_found() -> None:
    """As in a hybrid, with three linear layers to one of attention."""
    linear = ["norm", "gemm", "conv", "scan"]
    step = ["embedding", *([*linear * 3, *LAYER] * 6), "logits"]
    spans = [(name, float(place), place + 0.5) for place, name in enumerate(step * 32)]
    found = layer_of(spans)
    assert found is not None
    assert len(found) == 3 * len(linear) + len(LAYER)


def test_a_kernel_that_started_early_is_counted_from_the_end_of_the_one_before() -> None:
    """As under programmatic dependent launch."""
    early = [(name, start - (1.0 if name == "norm" else 0.0), end) for name, start, end in _profile(6, 32, gap=0.0)]
    assert _from_norm(layer_of(early)) == list(LAYER.items())


def test_a_layer_that_was_slow_once_does_not_count() -> None:
    spans, late = _profile(6, steps=32), 0.0
    for place, (name, start, end) in enumerate(spans):
        slow = 1000.0 if place == len(spans) - 20 else 0.0
        spans[place] = (name, start + late, end + late + slow)
        late += slow
    assert _from_norm(layer_of(spans)) == list(LAYER.items())


def test_what_repeats_nothing_has_no_layer() -> None:
    assert layer_of([]) is None
    assert layer_of([(f"kernel {place}", place, place + 1.0) for place in range(100)]) is None


def test_a_name_is_cut_where_a_template_goes_on_forever() -> None:
    long = [("void " + name + "<" * 500, start, end) for name, start, end in _profile(6, steps=32)]
    layer = layer_of(long)
    assert layer is not None
    assert {len(str(kernel["name"])) for kernel in layer} == {160}


def test_the_times_that_spans_add_sum_to_the_time_in_which_one_ran() -> None:
    spans = [("a", 0.0, 2.0), ("b", 1.0, 3.0), ("c", 1.5, 2.5), ("d", 5.0, 6.0)]
    assert added_times(spans) == [2.0, 1.0, 0.0, 1.0]
    assert added_times([]) == []
