"""What may be said: by the intervals, for every outcome, and not more."""

import numpy as np
import pytest
import xarray as xr
from helpers import results_of
from hypothesis import given
from hypothesis import strategies as st

from mano_op.errors import InputError
from mano_op.transfer.predictors import PREDICTORS
from mano_op.transfer.sentences import interval_of, percent
from mano_op.transfer.significance import DPU, bootstrap_means, summary

RNG = np.random.default_rng(0)
BASE = RNG.uniform(0.05, 0.5, 60)  # samples differ far more than predictors
NOISE = RNG.normal(0, 0.01, 60)
NOISE -= NOISE.mean()
NOISY = BASE + NOISE
BROKEN = BASE.copy()
BROKEN[[3, 7]] = np.nan, np.inf
MEANS, MEANS_HIGHER = (
    f"predicting the mean field ({percent(BASE.mean() + more)} % [" for more in (0, 0.0005)
)
RIVAL = "interpolating its own coarse prediction"
ALIKE = dict.fromkeys(PREDICTORS, BASE)


def judge(direct, dpu, *, mean=None, interpolation=None, field=None, **options):
    """The summary of a model trained at 16, by its errors, and the mean field's, at 32."""
    ones = np.ones_like(direct)
    at_16 = dict.fromkeys(("direct", *DPU), 0.1 * ones) | {"floor": 0.02 * ones, "mean": ones}
    at_32 = {
        "direct": direct,
        "dpu_injection": dpu,
        "dpu_mean": ones if mean is None else mean,
        "dpu_interpolation": dpu if interpolation is None else interpolation,
        "mean": ones if field is None else field,
    }
    return summary(results_of({"M": {"r16": at_16, "r32": at_16 | at_32}}), **options)


def cell(judged, key="r32"):
    at = {"model": "M", "train_resolution": "r16", "resolution": key, "variable": "u"}
    return judged.sel(at).sel(metric="relative_l2")


@pytest.mark.parametrize(
    ("errors", "verdict", "words"),
    [
        ((NOISY - 0.005, BASE), "improves", f"improves on {RIVAL}"),
        ((NOISY + 0.005, BASE), "worse", f"is worse than {RIVAL}"),
        ((NOISY, BASE), "undecided", "no difference can be told"),
        # Far below DPU, but with the mean field for a rival.
        (
            (NOISY, NOISY + 0.1, BASE + 0.005),
            "improves",
            f"improves on {RIVAL} ({percent(BASE.mean() + 0.1)} % [",
        ),
        ((NOISY, NOISY + 0.1, BASE + 0.0005), "undecided", f"but no difference to {MEANS_HIGHER}"),
        ((NOISY + 0.0005, NOISY + 0.1, BASE), "no better than mean", f"is no better than {MEANS}"),
        ((NOISY + 0.005, NOISY + 0.1, BASE), "no better than mean", f"is worse than {MEANS}"),
        # A smaller error by rounding is no smaller error.
        ((BASE * (1 - 1e-8), BASE + 0.1, BASE), "no better than mean", f"is no better than {MEANS}"),
        ((BASE * (1 - 1e-5), BASE + 0.1, BASE), "improves", f"direct inference ({percent(BASE.mean())} % ["),
        ((BROKEN, BASE), "not finite", "2 of 60 samples of direct inference and in 0 of"),
        ((BASE[:9] - 0.02, BASE[:9]), "few", "9 samples are too few"),
        ((BASE[:10] - 0.02, BASE[:10]), "improves", ""),
        ((BASE[:2] + 0.02, BASE[:2], BASE[:2]), "few", "predicting the mean field"),
    ],
)
def test_verdict_is_the_first_that_applies(errors, verdict, words):
    direct, dpu, *field = errors
    at_32 = cell(judge(direct, dpu, field=field[0] if field else None))
    assert at_32["verdict"] == verdict
    assert words in at_32["sentence"].item()
    if verdict not in ("not finite", "few"):
        assert f"direct inference ({percent(direct.mean())} % [" in at_32["sentence"].item()
    assert ("improves" in at_32["sentence"].item()) == (verdict == "improves")


@pytest.mark.parametrize("shift", [-0.005, 0.0, 0.0005])
def test_differences_are_of_paired_samples(shift):
    """The interval of the direct mean holds the rival's mean, and that of the difference does not."""
    at_32 = cell(judge(NOISY + shift, BASE, field=BASE))
    for name in ("difference", "over_mean"):
        low, value, high = (at_32[f"{name}{end}"].item() for end in ("_low", "", "_high"))
        assert low < value < high
        assert value == pytest.approx(shift, abs=1e-14)
        assert (low <= 0 <= high) == (abs(shift) < 0.001)
    direct = at_32.sel(predictor="direct")
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
    judged = judge(np.full(20, direct), np.full(20, dpu), field=np.full(20, field))
    assert cell(judged)["sentence"] == f"M at r32: {finding}"
    assert cell(judged)["skill"] == pytest.approx(1 - direct / dpu)


@pytest.mark.parametrize(
    ("n", "field", "verdict", "finding"),
    [
        (20, 0.20, "training", ""),
        (
            20, 0.08, "no better than mean",
            ", worse than predicting the mean field (8.00 % [8.00, 8.00]); the difference is +2.00 "
            "[+2.00, +2.00] percentage points",
        ),
        (
            2, 0.08, "few",
            ", that of predicting the mean field is 8.00 % [8.00, 8.00]; 2 samples are too few to tell a "
            "difference",
        ),
    ],
)  # fmt: skip
def test_mean_field_is_the_rival_at_home(n, field, verdict, finding):
    errors = dict.fromkeys(PREDICTORS, np.full(n, 0.1)) | {"mean": np.full(n, field)}
    judged = summary(results_of({"M": {"r16": errors}}))
    assert judged["verdict"].item() == verdict
    sentence = f"M at r16, where it was trained: error 10.0 % [10.0, 10.0]{finding}."
    assert judged["sentence"].item() == sentence


def test_intervals_are_those_of_a_mean():
    direct = cell(judge(BASE, BASE)).sel(predictor="direct")
    half = 1.96 * BASE.std() / np.sqrt(BASE.size)
    assert direct["mean"] == pytest.approx(BASE.mean(), rel=1e-14)
    assert direct["low"] == pytest.approx(BASE.mean() - half, abs=0.1 * half)
    assert direct["high"] == pytest.approx(BASE.mean() + half, abs=0.1 * half)


def test_growth_is_the_direct_error_over_that_at_the_training_resolution():
    judged = judge(BASE, BASE)
    assert [cell(judged, "r16")[f"growth{end}"] for end in ("_low", "", "_high")] == [1, 1, 1]
    assert cell(judged)["growth"] == pytest.approx(BASE.mean() / 0.1)
    # At 16 every sample has the same error, so what is left to chance is the mean at 32.
    bounds = np.quantile(bootstrap_means(BASE), [0.025, 0.975]) / 0.1
    np.testing.assert_allclose([cell(judged)["growth_low"], cell(judged)["growth_high"]], bounds)
    assert np.isnan(summary(results_of({"M": {"r32": ALIKE}}))["growth"].item())


@pytest.mark.parametrize("best", DPU)
def test_smallest_dpu_error_is_the_one_to_beat(best):
    injection, mean, interpolation = (BASE - 0.02 * (name == best) for name in DPU)
    at_32 = cell(judge(BASE - 0.01, injection, mean=mean, interpolation=interpolation))
    assert (at_32["best_dpu"], at_32["verdict"]) == (best, "worse")
    assert at_32["difference"] == pytest.approx(0.01)


def test_errors_that_are_not_finite_stay_visible():
    direct = cell(judge(BROKEN, BASE)).sel(predictor="direct")
    assert np.isnan(direct["mean"]) and direct["non_finite"] == 2
    infinite = cell(judge(np.where(np.isnan(BROKEN), 0.1, BROKEN), BASE)).sel(predictor="direct")
    assert infinite["mean"] == np.inf and np.isnan(infinite["low"])
    failed = cell(judge(BASE, BASE + 0.1, mean=np.full(60, np.nan), interpolation=np.full(60, np.inf)))
    assert (failed["best_dpu"], failed["verdict"]) == ("dpu_injection", "improves")


def test_sentences_below_the_training_resolution_have_other_words():
    results = results_of({"M": {"r8": {**ALIKE, "direct": BASE - 0.01, "mean": BASE + 0.1}}})
    results["restriction"][:] = "nearest"
    sentence = summary(results)["sentence"].item()
    assert "input at the nearest points, as the grids do not nest" in sentence
    assert "improves on going by way of its training grid" in sentence


def test_bootstrap_is_seeded():
    first, again, other = (judge(NOISY, BASE, seed=seed) for seed in (0, 0, 1))
    assert first.identical(again)
    assert cell(first)["difference_low"] != cell(other)["difference_low"]


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


@pytest.mark.parametrize(
    ("values", "sign", "text"),
    [
        ((0.5,), False, "50.0"),
        ((12.34,), False, "1234"),
        ((0.000012,), False, "0.0012"),
        ((0.0,), False, "0.00"),
        ((np.inf,), False, "inf"),
        ((9999.0,), False, "999900"),
        ((1e4,), False, "1.00e+06"),
        # Intervals of failures are left out, and errors of diverged models have exponents.
        ((np.nan, np.nan, np.nan), False, "nan"),
        ((np.inf, np.nan, np.nan), False, "inf"),
        ((1.1e30, 9e29, 1.25e30), False, "1.10e+32 [9.00e+31, 1.25e+32]"),
        ((1.1e30, 9e29, 1.25e30), True, "+1.10e+32 [+9.00e+31, +1.25e+32]"),
    ],
)
def test_per_cents_have_three_digits(values, sign, text):
    if len(values) == 1:
        assert percent(*values) == text
    else:
        cell = xr.Dataset(dict(zip(("mean", "low", "high"), values, strict=True)))
        assert interval_of(cell, sign=sign) == text


def test_seeds_are_averaged_for_each_sample_and_their_spread_is_beside():
    direct, dpu = np.stack([BASE - 0.03, BASE + 0.01, BASE - 0.01]), np.stack([BASE] * 3)
    at_32, alone = cell(judge(direct, dpu)), cell(judge(direct.mean(axis=0), BASE))
    for name in ("skill", "skill_low", "skill_high", "growth"):
        assert at_32[name] == pytest.approx(alone[name].item(), rel=1e-12)
    mean = BASE.mean()
    assert at_32["seeds"] == 3
    assert at_32["seed_low"].sel(predictor="direct") == pytest.approx(mean - 0.03)
    assert at_32["seed_high"].sel(predictor="direct") == pytest.approx(mean + 0.01)
    assert at_32["skill_seed_low"] == pytest.approx(-0.01 / mean)
    assert at_32["skill_seed_high"] == pytest.approx(0.03 / mean)
    least, most = (percent(x / mean, sign=True) for x in (-0.01, 0.03))
    assert at_32["sentence"].item().startswith("M at r32, 3 seeds: direct inference (")
    assert at_32["sentence"].item().endswith(f", from {least} to {most} % over the seeds.")


def test_interval_of_the_skill_is_that_of_a_quotient():
    direct = NOISY - 0.02
    at_32 = cell(judge(direct, BASE))
    # A ratio of means varies as the mean of what is left of its numerator does.
    left = direct - direct.mean() / BASE.mean() * BASE
    half = 1.96 * left.std() / np.sqrt(60) / BASE.mean()
    assert at_32["skill"] == pytest.approx(0.02 / BASE.mean())
    assert at_32["skill_high"] - at_32["skill"] == pytest.approx(half, rel=0.15)


def test_same_model_trained_elsewhere_stands_beside():
    def errors(at_16, at_32, other=0.08):
        ones = dict.fromkeys(PREDICTORS, np.ones(20))
        dpu = dict.fromkeys(("direct", *DPU), np.full(20, other))
        return {
            "r16": ones | dpu | {"direct": np.full(20, at_16)},
            "r32": ones | dpu | {"direct": np.full(20, at_32)},
        }

    judged = summary(
        results_of(
            {
                "M @ r16": errors(0.08, 0.1),
                "M @ r16+r32": errors(0.08, 0.06),
                "M @ r32": errors(0.05, 0.05, 0.05),
                "Other @ r16": errors(0.08, 0.08),
            }
        )
    )

    def sentence(model, trained, key):
        at = {"model": model, "train_resolution": trained, "resolution": key, "variable": "u"}
        return judged["sentence"].sel(at).item()

    assert sentence("M", "r16", "r32") == (
        "M (r16) at r32: direct inference (10.0 % [10.0, 10.0]) is worse than interpolating its own coarse "
        "prediction (8.00 % [8.00, 8.00], input at the shared points); the skill is -25.0 % [-25.0, -25.0]; "
        "trained on r32 it has error 5.00 % [5.00, 5.00]; trained on r16+r32 it has error 6.00 % "
        "[6.00, 6.00]."
    )
    assert sentence("M", "r16+r32", "r32").endswith("; trained on r32 it has error 5.00 % [5.00, 5.00].")
    assert "where it was trained most: error 8.00 %" in sentence("M", "r16+r32", "r16")
    assert "trained on" not in sentence("Other", "r16", "r32")
    assert judged.sel(model="M", train_resolution="r32", resolution="r32")["growth"].item() == 1


def test_numbers_are_of_every_metric_and_sentences_of_one():
    results = results_of({"M": {"r16": ALIKE, "r32": ALIKE}})
    error = results["error"]
    both = np.concatenate([error, 0.5 * error], axis=error.dims.index("metric"))
    results = results.drop_dims("metric").assign_coords(metric=["relative_l2", "vrmse"])
    results["error"] = error.dims, both
    results["defined"] = ("resolution", "predictor", "metric"), np.ones((2, len(PREDICTORS), 2), bool)
    judged = summary(results, metric="vrmse")
    np.testing.assert_allclose(
        judged["mean"].sel(metric="vrmse"), 0.5 * judged["mean"].sel(metric="relative_l2")
    )
    assert f"error {percent(BASE.mean() / 2)} % [" in judged["sentence"].values.ravel()[0]
    assert judged.attrs["metric"] == "vrmse"
    with pytest.raises(InputError, match="metric='l3' of 60 samples, expected one of relative_l2, vrmse"):
        summary(results, metric="l3")
    with pytest.raises(InputError, match=r"0 samples, .* at least one sample"):
        summary(results.isel(sample=slice(0)))


def test_windows_of_one_sample_do_not_narrow_an_interval():
    """Every error three times over, as of windows that are alike, decides no more than once."""
    once = results_of({"M": {"r16": ALIKE, "r32": ALIKE}})
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
    grouped = cell(summary(results.assign_coords(group=("sample", np.tile(np.arange(5), 8)))))
    assert grouped["verdict"] == "few" and "5 samples are too few" in grouped["sentence"].item()
    assert cell(summary(results))["verdict"] == "worse"
    with pytest.raises(InputError, match="expected all of one size"):
        summary(results.assign_coords(group=("sample", [0] * 39 + [1])))
