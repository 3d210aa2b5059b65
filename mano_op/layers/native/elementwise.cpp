// What is done to the results of matrix products while they are in the cache. See
// mano_op/layers/native/elementwise.py, which calls it. Fields are (rows, channels), without gaps.

#include "vectors.h"

namespace {

// The distribution function of the normal distribution, from a fit of erfc by Chebyshev polynomials whose relative
// error is below 1.2e-7 (Press et al., Numerical Recipes, section 6.2).
inline Vec normal_distribution(Vec x) {
    const Vec a = (x < 0.0f ? -x : x) * 0.70710678f;
    const Vec t = 1.0f / (1.0f + 0.5f * a);
    Vec p = all(0.17087277f);
    p = p * t - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    p = p * t - 1.26551223f;
    const Vec tail = 0.5f * t * exponential(p - a * a);
    return x < 0.0f ? tail : 1.0f - tail;
}

// use(channel, n) for 16 channels at a time, the last of them maybe fewer.
template <class Function> inline void each_vector(int64_t channels, Function use) {
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) use(c, LANES);
    if (c < channels) use(c, static_cast<int>(channels - c));
}

}  // namespace

extern "C" {

// z = gelu(z + bias), with gelu(x) = x times the normal distribution's.
void gelu(int64_t rows, int64_t channels, const float *bias, float *z, int64_t threads) {
    in_parallel(rows, threads, [=](int64_t, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++)
            each_vector(channels, [=](int64_t c, int n) {
                float *at = z + i * channels + c;
                const Vec x = load_some(at, n) + load_some(bias + c, n);
                store_some(at, x * normal_distribution(x), n);
            });
    });
}

// The same to z, and to its gradient: dz = dz gelu'(z + bias).
void gelu_backward(int64_t rows, int64_t channels, const float *bias, float *z, float *dz, int64_t threads) {
    in_parallel(rows, threads, [=](int64_t, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++)
            each_vector(channels, [=](int64_t c, int n) {
                float *at = z + i * channels + c, *grad = dz + i * channels + c;
                const Vec x = load_some(at, n) + load_some(bias + c, n), share = normal_distribution(x);
                const Vec density = 0.39894228f * exponential(-0.5f * x * x);
                store_some(at, x * share, n);
                store_some(grad, load_some(grad, n) * (share + x * density), n);
            });
    });
}

// z = z + bias (+ x), of which either may be null.
void add(int64_t rows, int64_t channels, const float *bias, const float *x, float *z, int64_t threads) {
    in_parallel(rows, threads, [=](int64_t, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++)
            each_vector(channels, [=](int64_t c, int n) {
                float *at = z + i * channels + c;
                Vec sum = load_some(at, n);
                if (bias) sum += load_some(bias + c, n);
                if (x) sum += load_some(x + i * channels + c, n);
                store_some(at, sum, n);
            });
    });
}
}
