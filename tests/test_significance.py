"""What may be said: by the intervals, for every outcome, and not more."""

import numpy as np
import pytest
from helpers import results_of
from hypothesis import given
from hypothesis import strategies as st

from mano_op.errors import InputError
from mano_op.transfer.predictors import PREDICTORS
from mano_op.transfer.sentences import percent, with_interval
from mano_op.transfer.significance import bootstrap_means, summary

RNG = np.random.default_rng(0)
BASE = RNG.uniform(0.05, 0.5, 60)  # samples differ far more than predictors
NOISE = RNG.normal(0, 0.01, 60)
NOISE -= NOISE.mean()


def judged(direct, dpu, *, mean=None, interpolation=None, field=None, **options):
    """A model trained at 16, at 16 and at 32, where its errors, and the mean field's, are the ones given."""
    ones = np.ones_like(direct)
    at_training = dict.fromkeys(("direct", "dpu_injection", "dpu_mean", "dpu_interpolation"), 0.1 * ones)
    there = {
        "direct": direct,
        "dpu_injection": dpu,
        "dpu_mean": ones if mean is None else mean,
        "dpu_interpolation": dpu if interpolation is None else interpolation,
    }
    rest = {"floor": 0.02 * ones, "mean": ones}
    field = ones if field is None else field
    results = results_of({"M": {"r16": {**at_training, **rest}, "r32": {**there, **rest, "mean": field}}})
    return summary(results, **options)


def at(one, key, name):
    found = one[name].sel(model="M", train_resolution="r16", resolution=key, variable="u")
    return (found.sel(metric="relative_l2") if "metric" in found.dims else found).item()


def of_direct(one):
    return one.sel(
        model="M",
        train_resolution="r16",
        resolution="r32",
        variable="u",
        metric="relative_l2",
        predictor="direct",
    )


@pytest.mark.parametrize(
    ("shift", "verdict", "words"),
    [
        (-0.005, "improves", "improves on interpolating its own coarse prediction"),
        (0.005, "worse", "is worse than interpolating its own coarse prediction"),
        (0.0, "undecided", "no difference can be told"),
    ],
)
def test_verdicts_follow_the_paired_interval(shift, verdict, words):
    one = judged(BASE + NOISE + shift, BASE)
    assert at(one, "r32", "verdict") == verdict
    assert words in at(one, "r32", "sentence")
    low, high = at(one, "r32", "difference_low"), at(one, "r32", "difference_high")
    assert (low <= 0 <= high) == (verdict == "undecided")
    assert low < shift < high
    # The interval of the one mean holds the other mean: what decides is that samples are paired.
    direct = of_direct(one)
    assert direct["low"] < BASE.mean() < direct["high"]


@pytest.mark.parametrize(
    ("direct", "dpu", "field", "finding"),
    [
        (
            0.0931, 0.0768, 1.0,
            "direct inference (9.31 % [9.31, 9.31]) is worse than interpolating its own coarse prediction "
            "(7.68 % [7.68, 7.68], input at the shared points); the skill is -21.2 % [-21.2, -21.2].",
        ),
        (
            0.06, 0.08, 1.0,
            "direct inference (6.00 % [6.00, 6.00]) improves on interpolating its own coarse prediction "
            "(8.00 % [8.00, 8.00], input at the shared points); the skill is +25.0 % [+25.0, +25.0].",
        ),
        (
            0.61, 0.5, 0.57,
            "direct inference (61.0 % [61.0, 61.0]) is worse than predicting the mean field (57.0 % "
            "[57.0, 57.0]); the difference is +4.00 [+4.00, +4.00] percentage points; interpolating its own "
            "coarse prediction has error 50.0 % [50.0, 50.0] (input at the shared points).",
        ),
    ],
)  # fmt: skip
def test_sentences_carry_the_numbers(direct, dpu, field, finding):
    one = judged(np.full(20, direct), np.full(20, dpu), field=np.full(20, field))
    assert at(one, "r32", "sentence") == f"M at r32: {finding}"
    assert at(one, "r32", "skill") == pytest.approx(1 - direct / dpu)
    assert at(one, "r16", "sentence") == "M at r16, where it was trained: error 10.0 % [10.0, 10.0]."
    assert at(one, "r16", "verdict") == "training"


@pytest.mark.parametrize(
    ("over_mean", "verdict", "words"),
    [
        (-0.005, "improves", "improves on interpolating its own coarse prediction ("),
        (-0.0005, "undecided", "but no difference to predicting the mean field ("),
        (0.0005, "no better than mean", "is no better than predicting the mean field ("),
        (0.005, "no better than mean", "is worse than predicting the mean field ("),
    ],
)
def test_nothing_favourable_is_said_of_what_the_mean_field_does_as_well(over_mean, verdict, words):
    direct = BASE + NOISE
    one = judged(direct, direct + 0.1, field=BASE - over_mean)
    assert at(one, "r32", "difference_high") < -0.09  # far below DPU in every case
    assert at(one, "r32", "verdict") == verdict
    rival = BASE + 0.1 if verdict == "improves" else BASE - over_mean
    assert f"{words}{percent(rival.mean())} % [" in at(one, "r32", "sentence")
    assert f"direct inference ({percent(BASE.mean())} % [" in at(one, "r32", "sentence")
    assert ("improves" in at(one, "r32", "sentence")) == (verdict == "improves")
    low, high = at(one, "r32", "over_mean_low"), at(one, "r32", "over_mean_high")
    assert low < at(one, "r32", "over_mean") < high
    assert at(one, "r32", "over_mean") == pytest.approx(over_mean, abs=1e-14)
    assert (low <= 0 <= high) == (abs(over_mean) < 0.001)


@pytest.mark.parametrize(
    ("field", "verdict", "sentence"),
    [
        (0.20, "training", "error 10.0 % [10.0, 10.0]."),
        (
            0.08,
            "no better than mean",
            "error 10.0 % [10.0, 10.0], worse than predicting the mean field (8.00 % [8.00, 8.00]); the "
            "difference is +2.00 [+2.00, +2.00] percentage points.",
        ),
    ],
)
def test_the_mean_field_is_a_rival_where_the_model_was_trained_too(field, verdict, sentence):
    errors = dict.fromkeys(PREDICTORS, np.full(20, 0.1)) | {"mean": np.full(20, field)}
    one = summary(results_of({"M": {"r16": errors}}))
    assert one["verdict"].item() == verdict
    assert one["sentence"].item() == "M at r16, where it was trained: " + sentence


def test_a_model_that_has_become_the_mean_field_is_not_better_by_rounding():
    one = judged(BASE * (1 - 1e-8), BASE + 0.1, field=BASE)
    assert at(one, "r32", "over_mean_high") < 0
    assert at(one, "r32", "verdict") == "no better than mean"
    assert judged(BASE * (1 - 1e-5), BASE + 0.1, field=BASE)["verdict"].values.ravel()[1] == "improves"


def test_intervals_are_those_of_a_mean():
    one = of_direct(judged(BASE, BASE))
    half = 1.96 * BASE.std() / np.sqrt(BASE.size)
    assert one["mean"] == pytest.approx(BASE.mean(), rel=1e-14)
    assert one["low"] == pytest.approx(BASE.mean() - half, abs=0.1 * half)
    assert one["high"] == pytest.approx(BASE.mean() + half, abs=0.1 * half)


def test_growth_is_the_direct_error_over_that_at_the_training_resolution():
    one = judged(BASE, BASE)
    assert at(one, "r16", "growth") == 1
    assert at(one, "r32", "growth") == pytest.approx(BASE.mean() / 0.1)
    # At 16 every sample has the same error, so what is left to chance is the mean at 32.
    bounds = np.quantile(bootstrap_means(BASE), [0.025, 0.975]) / 0.1
    np.testing.assert_allclose([at(one, "r32", "growth_low"), at(one, "r32", "growth_high")], bounds)
    assert at(one, "r16", "growth_low") == at(one, "r16", "growth_high") == 1
    only_there = {name: np.ones(12) for name in one["predictor"].values}
    assert np.isnan(summary(results_of({"M": {"r32": only_there}}))["growth"].item())


@pytest.mark.parametrize("best", ["dpu_injection", "dpu_mean", "dpu_interpolation"])
def test_the_smallest_dpu_error_is_the_one_to_beat(best):
    errors = {"dpu_injection": BASE, "dpu_mean": BASE, "dpu_interpolation": BASE} | {best: BASE - 0.02}
    one = judged(
        BASE - 0.01,
        errors["dpu_injection"],
        mean=errors["dpu_mean"],
        interpolation=errors["dpu_interpolation"],
    )
    assert at(one, "r32", "best_dpu") == best
    assert at(one, "r32", "verdict") == "worse"
    assert at(one, "r32", "difference") == pytest.approx(0.01)


def test_errors_that_are_not_finite_stay_visible_and_decide_nothing():
    broken = BASE.copy()
    broken[[3, 7]] = np.nan, np.inf
    one = judged(broken, BASE)
    cell = of_direct(one)
    assert np.isnan(cell["mean"])
    assert cell["non_finite"] == 2
    assert at(one, "r32", "verdict") == "not finite"
    assert "2 of 60 samples of direct inference and in 0 of" in at(one, "r32", "sentence")
    infinite = BASE.copy()
    infinite[3] = np.inf
    cell = of_direct(judged(infinite, BASE))
    assert cell["mean"] == np.inf
    assert np.isnan(cell["low"])


def test_a_dpu_that_fails_is_not_the_best():
    one = judged(BASE, BASE + 0.1, mean=np.full(60, np.nan), interpolation=np.full(60, np.inf))
    assert at(one, "r32", "best_dpu") == "dpu_injection"
    assert at(one, "r32", "verdict") == "improves"


def test_few_samples_decide_nothing():
    one = judged(BASE[:9] - 0.02, BASE[:9])
    assert at(one, "r32", "verdict") == "few"
    assert "9 samples are too few" in at(one, "r32", "sentence")
    assert at(judged(BASE[:10] - 0.02, BASE[:10]), "r32", "verdict") == "improves"
    off = judged(BASE[:9] + 0.02, BASE[:9], field=BASE[:9])
    assert at(off, "r32", "verdict") == "no better than mean"  # so it is, but not "worse"
    assert "is no better than predicting the mean field" in at(off, "r32", "sentence")


def test_below_the_training_resolution_the_words_are_others():
    errors = {
        name: BASE for name in ("direct", "dpu_injection", "dpu_mean", "dpu_interpolation", "floor", "mean")
    }
    results = results_of({"M": {"r8": {**errors, "direct": BASE - 0.01, "mean": BASE + 0.1}}})
    results["restriction"][:] = "nearest"
    one = summary(results)
    assert "input at the nearest points, as the grids do not nest" in one["sentence"].item()
    assert "improves on going by way of its training grid" in one["sentence"].item()


def test_the_bootstrap_is_seeded():
    first, again, other = (judged(BASE + NOISE, BASE, seed=seed) for seed in (0, 0, 1))
    assert first.identical(again)
    assert at(first, "r32", "difference_low") != at(other, "r32", "difference_low")


@given(
    scale=st.floats(-3, 3),
    shift=st.floats(-3, 3),
    n=st.integers(1, 30),
    resamples=st.sampled_from([1, 99, 250]),
)
def test_bootstrap_means_are_linear_and_paired(scale, shift, n, resamples):
    errors = np.random.default_rng(n).uniform(size=(2, n))
    draws = bootstrap_means(np.stack([errors, scale * errors + shift]), resamples=resamples, seed=5)
    assert draws.shape == (resamples, 2, 2)
    np.testing.assert_allclose(draws[:, 1], scale * draws[:, 0] + shift, atol=1e-12)
    assert (draws[:, 0] <= errors.max(axis=1) + 1e-12).all()
    assert (draws[:, 0] >= errors.min(axis=1) - 1e-12).all()


def test_bootstrap_means_spread_as_means_do():
    draws = bootstrap_means(BASE[None], resamples=20_000, seed=1)
    assert draws.mean() == pytest.approx(BASE.mean(), abs=4 * BASE.std() / np.sqrt(60 * 20_000))
    assert draws.std() == pytest.approx(BASE.std() / np.sqrt(60), rel=0.03)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "50.0"),
        (1.234, "123"),
        (12.34, "1234"),
        (0.000012, "0.0012"),
        (0.0, "0.00"),
        (np.inf, "inf"),
        (9999.0, "999900"),
        (1e4, "1.00e+06"),
    ],
)
def test_percent_keeps_three_digits(value, text):
    assert percent(value) == text


def test_intervals_of_failures_are_left_out():
    assert with_interval(np.nan, np.nan, np.nan) == "nan"
    assert with_interval(np.inf, np.nan, np.nan) == "inf"


def test_errors_of_diverged_models_have_exponents():
    assert with_interval(1.1e30, 9e29, 1.25e30) == "1.10e+32 [9.00e+31, 1.25e+32]"
    assert with_interval(1.1e30, 9e29, 1.25e30, sign=True) == "+1.10e+32 [+9.00e+31, +1.25e+32]"


def by_seed(*shifts):
    """An error of one mean for each seed."""
    return np.stack([BASE + shift for shift in shifts])


def test_seeds_are_averaged_for_each_sample_and_their_spread_is_beside():
    direct = by_seed(-0.03, 0.01, -0.01)
    one = judged(direct, by_seed(0, 0, 0), mean=by_seed(1, 1, 1), field=by_seed(1, 1, 1))
    alone = judged(direct.mean(axis=0), BASE)
    for name in ("skill", "skill_low", "skill_high", "growth"):
        assert at(one, "r32", name) == pytest.approx(at(alone, "r32", name), rel=1e-12)
    cell = of_direct(one)
    assert cell["seeds"] == 3
    assert cell["seed_low"].item() == pytest.approx(BASE.mean() - 0.03)
    assert cell["seed_high"].item() == pytest.approx(BASE.mean() + 0.01)
    assert at(one, "r32", "skill_seed_low") == pytest.approx(-0.01 / BASE.mean())
    assert at(one, "r32", "skill_seed_high") == pytest.approx(0.03 / BASE.mean())
    least, most = (percent(x / BASE.mean(), sign=True) for x in (-0.01, 0.03))
    assert at(one, "r32", "sentence").startswith("M at r32, 3 seeds: direct inference (")
    assert at(one, "r32", "sentence").endswith(f", from {least} to {most} % over the seeds.")


def test_the_interval_of_the_skill_is_that_of_a_quotient():
    direct = BASE + NOISE - 0.02
    noisy = judged(direct, BASE)
    # A ratio of means varies as the mean of what is left of its numerator does.
    left = direct - direct.mean() / BASE.mean() * BASE
    half = 1.96 * left.std() / np.sqrt(60) / BASE.mean()
    assert at(noisy, "r32", "skill") == pytest.approx(0.02 / BASE.mean())
    assert at(noisy, "r32", "skill_high") - at(noisy, "r32", "skill") == pytest.approx(half, rel=0.15)


@given(shift=st.floats(-0.01, 0.01))
def test_improves_is_said_only_where_the_interval_of_the_skill_is_above_zero(shift):
    one = judged(BASE + NOISE + shift, BASE, resamples=200)
    low, high = at(one, "r32", "skill_low"), at(one, "r32", "skill_high")
    assert (at(one, "r32", "verdict") == "improves") == (low > 1e-6)
    assert (at(one, "r32", "verdict") == "worse") == (high < -1e-6)
    assert ("improves" in at(one, "r32", "sentence")) == (low > 1e-6)


def trained_in_three_ways(n=20):
    ones = dict.fromkeys(PREDICTORS, np.ones(n)) | {"floor": np.full(n, 0.01)}
    rest = ("direct", "dpu_injection", "dpu_mean", "dpu_interpolation")
    at_16 = dict.fromkeys(rest, np.full(n, 0.08))
    at_32 = dict.fromkeys(rest, np.full(n, 0.05))
    return {
        "M @ r16": {"r16": ones | at_16, "r32": ones | at_16 | {"direct": np.full(n, 0.1)}},
        "M @ r16+r32": {"r16": ones | at_16, "r32": ones | at_16 | {"direct": np.full(n, 0.06)}},
        "M @ r32": {"r16": ones | at_32, "r32": ones | at_32},
        "Other @ r16": {"r16": ones | at_16, "r32": ones | at_16},
    }


def test_what_the_same_model_does_trained_elsewhere_stands_beside():
    results = results_of(trained_in_three_ways())
    one = summary(results)

    def sentence(model, trained, key):
        at = {"model": model, "train_resolution": trained, "resolution": key, "variable": "u"}
        return one["sentence"].sel(at).item()

    assert sentence("M", "r16", "r32") == (
        "M (r16) at r32: direct inference (10.0 % [10.0, 10.0]) is worse than interpolating its own coarse "
        "prediction (8.00 % [8.00, 8.00], input at the shared points); the skill is -25.0 % [-25.0, -25.0]; "
        "trained on r32 it has error 5.00 % [5.00, 5.00]; trained on r16+r32 it has error 6.00 % "
        "[6.00, 6.00]."
    )
    assert sentence("M", "r16+r32", "r32").endswith("; trained on r32 it has error 5.00 % [5.00, 5.00].")
    assert "where it was trained most: error 8.00 %" in sentence("M", "r16+r32", "r16")
    assert "trained on" not in sentence("Other", "r16", "r32")
    assert one.sel(model="M", train_resolution="r32", resolution="r32")["growth"].item() == 1


def test_everything_is_there_for_every_metric():
    results = results_of(
        {"M": {"r16": dict.fromkeys(PREDICTORS, BASE), "r32": dict.fromkeys(PREDICTORS, BASE)}}
    )
    error = results["error"]
    results = results.drop_dims("metric").assign_coords(metric=["relative_l2", "vrmse"])
    results = results.assign(
        error=(error.dims, np.concatenate([error, 0.5 * error], axis=error.dims.index("metric"))),
        defined=(("resolution", "predictor", "metric"), np.ones((2, len(PREDICTORS), 2), bool)),
    )
    one = summary(results, metric="vrmse")
    np.testing.assert_allclose(one["mean"].sel(metric="vrmse"), 0.5 * one["mean"].sel(metric="relative_l2"))
    assert (
        f"error {percent(BASE.mean() / 2)} % ["
        in summary(results, metric="vrmse")["sentence"].values.ravel()[0]
    )
    assert one.attrs["metric"] == "vrmse"
    with pytest.raises(InputError, match="metric='l3', expected one of relative_l2, vrmse"):
        summary(results, metric="l3")
    with pytest.raises(InputError, match="hold no sample"):
        summary(results.isel(sample=slice(0)))


def test_windows_of_one_sample_do_not_narrow_an_interval():
    """Every error three times over, as of windows that are alike, decides no more than once."""
    once = results_of({"M": {"r16": dict.fromkeys(PREDICTORS, BASE), "r32": dict.fromkeys(PREDICTORS, BASE)}})
    groups = np.repeat(np.arange(once.sizes["sample"]), 3)
    thrice = once.isel(sample=groups).assign_coords(group=("sample", groups))
    alone, grouped = summary(once), summary(thrice)
    for name in ("mean", "low", "high", "skill_low", "skill_high"):
        np.testing.assert_allclose(grouped[name], alone[name], rtol=1e-12)
    assert (grouped.attrs["samples"], grouped.attrs["independent"]) == (3 * len(BASE), len(BASE))
    assert f"over {len(BASE)} groups of samples" in grouped.attrs["interval"]
    apart = summary(thrice.drop_vars("group"))
    assert (apart["high"] - apart["low"]).max() < 0.7 * (alone["high"] - alone["low"]).max()
    shuffled = np.random.default_rng(0).permutation(len(groups))
    np.testing.assert_allclose(summary(thrice.isel(sample=shuffled))["low"], alone["low"], rtol=1e-12)


def test_few_groups_are_few_however_many_windows():
    errors = np.tile(BASE[:5], 8)
    worse = {name: errors * (1.5 if name == "direct" else 1.0) for name in PREDICTORS}
    results = results_of({"M": {"r16": worse, "r32": {**worse, "mean": 9 * errors}}})
    grouped = results.assign_coords(group=("sample", np.tile(np.arange(5), 8)))
    assert at(summary(grouped), "r32", "verdict") == "few"
    assert "5 samples are too few" in at(summary(grouped), "r32", "sentence")
    assert at(summary(results), "r32", "verdict") == "worse"
    unequal = results.assign_coords(group=("sample", [0] * 39 + [1]))
    with pytest.raises(InputError, match="expected all of one size"):
        summary(unequal)
