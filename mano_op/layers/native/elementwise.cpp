// What is done to the results of matrix products while they are in the cache. See
// mano_op/layers/native/elementwise.py, which calls it. Fields are (rows, channels), without gaps.

#include "vectors.h"

namespace {

// gelu(x), and on the way what its slope is made of: the density of the normal distribution, e^(-x^2 / 2) but for a
// factor, and what lies beyond |x|. The latter over the former is a polynomial of 1 / (1 + |x| / 4), fitted so that what
// lies beyond is off by 7e-9 at most, and by 2e-6 of itself. From 13.2 on it is 0, as it is no normal number.
struct Gelu {
    Vec x, density, beyond;

    INLINE explicit Gelu(Vec x) : x(x) {
        const Vec a = reach(), t = 1.0f / (1.0f + 0.25f * a);
        density = power_of_two(a * a * (-0.5f * LOG2_E));
        Vec p = all(-0.095759742f);
        p = p * t + 0.361979395f;
        p = p * t - 0.308694929f;
        p = p * t + 0.327218115f;
        p = p * t - 0.00466164621f;
        p = p * t + 0.123041652f;
        p = p * t + 0.096712999f;
        p = p * t + 0.00016415758f;
        beyond = p * density;
    }

    INLINE Vec distance() const { return (Vec)((Int)x & 0x7fffffff); }
    // Numbers above 0 are in the order of their digits, for which there is one operation; 13.25 is 0x41540000.
    INLINE Vec reach() const { return (Vec)((Int)distance() < 0x41540000 ? (Int)distance() : Int{} + 0x41540000); }

    // The larger of x and 0, less what is missing there. As torch has it, it is NaN at -infinity.
    INLINE Vec value() const { return (0.5f * x + 0.5f * distance()) - reach() * beyond; }
    INLINE Vec slope() const { return (x < 0.0f ? beyond : 1.0f - beyond) + 0.39894228f * x * density; }
};

// use(place, channel, n) for 16 channels of a row at a time, the last of them maybe fewer. One loop where they fill all
// vectors: what a loop needs over and over stays in registers.
template <class Function> void each_vector(int64_t rows, int64_t channels, int64_t threads, Function use) {
    in_parallel(rows, threads, [=](int64_t, int64_t first, int64_t last) {
        if (channels % LANES == 0) {
            int64_t c = 0;
            for (int64_t at = first * channels; at < last * channels; at += LANES) {
                use(at, c, LANES);
                c = c + LANES == channels ? 0 : c + LANES;
            }
            return;
        }
        for (int64_t i = first; i < last; i++)
            for (int64_t c = 0; c < channels; c += LANES)
                use(i * channels + c, c, static_cast<int>(std::min<int64_t>(LANES, channels - c)));
    });
}

}  // namespace

extern "C" {

// h = gelu(z + bias), with gelu(x) = x times the normal distribution's; h may be z.
void gelu(int64_t rows, int64_t channels, const float *bias, const float *z, float *h, int64_t threads) {
    each_vector(rows, channels, threads, [=](int64_t i, int64_t c, int n) __attribute__((always_inline)) {
        store_some(h + i, Gelu(load_some(z + i, n) + load_some(bias + c, n)).value(), n);
    });
}

// The same, and to its gradient: dz = dz gelu'(z + bias).
void gelu_backward(int64_t rows, int64_t channels, const float *bias, const float *z, float *h, float *dz,
                   int64_t threads) {
    each_vector(rows, channels, threads, [=](int64_t i, int64_t c, int n) __attribute__((always_inline)) {
        const Gelu of(load_some(z + i, n) + load_some(bias + c, n));
        store_some(h + i, of.value(), n);
        store_some(dz + i, load_some(dz + i, n) * of.slope(), n);
    });
}

// z = z + bias (+ x), of which either may be null.
void add(int64_t rows, int64_t channels, const float *bias, const float *x, float *z, int64_t threads) {
    each_vector(rows, channels, threads, [=](int64_t i, int64_t c, int n) __attribute__((always_inline)) {
        Vec sum = load_some(z + i, n);
        if (bias) sum += load_some(bias + c, n);
        if (x) sum += load_some(x + i, n);
        store_some(z + i, sum, n);
    });
}
}
