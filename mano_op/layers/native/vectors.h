// Vectors of 16 numbers, as the compiler has them for this machine, and work shared among threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

// For functions whose arrays are to be registers, and numbers known to the compiler.
#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int LANES = 16;
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));

inline Vec load(const float *p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float *p, Vec v) { std::memcpy(p, &v, sizeof v); }

inline Vec all(float x) { return Vec{} + x; }

// Of two that are not comparable, as with a NaN, the second.
INLINE Vec larger(Vec a, Vec b) {
#ifdef __AVX512F__
    return _mm512_max_ps(a, b);  // one operation, which compilers make two of
#else
    return a > b ? a : b;
#endif
}

// 2^x for x <= 0, to about one unit in the last place: 2^n 2^f with |f| <= 1/2, the latter by the polynomial whose
// largest relative error is least, 9e-8, of those that are 1 at 0. Below the smallest normal number it is 0, so a score
// of -infinity has no part in anything. A NaN stays one.
INLINE Vec power_of_two(Vec x) {
    x = larger(all(-127.0f), x);
    // A number with this one added has no binary digits after the point: it is rounded, and its last eight digits are
    // those of the exponent.
    constexpr float SHIFT = 3 << 22 | 127;
    const Vec shifted = x + SHIFT, f = x - (shifted - SHIFT);
    Vec p = all(1.32647275e-3f);
    p = p * f + 9.67151282e-3f;
    p = p * f + 5.55073374e-2f;
    p = p * f + 2.40222421e-1f;
    p = p * f + 6.93146978e-1f;
    p = p * f + 1.0f;
    return p * (Vec)((Int)shifted << 23);
}

constexpr float LOG2_E = 1.44269504f;  // e^x = 2^(LOG2_E x)

// Share tasks 0 ... n - 1 among threads, each a run of them: work(thread, first, last).
template <class Function> void in_parallel(int64_t n, int64_t threads, Function work) {
    const int64_t used = std::max<int64_t>(1, std::min(threads, n));
    const auto part = [=](int64_t t) { work(t, n * t / used, n * (t + 1) / used); };
    std::vector<std::thread> others;
    int64_t started = 1;
    try {
        others.reserve(used);
        for (; started < used; started++) others.emplace_back(part, started);
    } catch (const std::exception &) {  // the system has no more of them: this one does the rest
    }
    part(0);
    for (int64_t t = started; t < used; t++) part(t);
    for (auto &one : others) one.join();
}

}  // namespace
