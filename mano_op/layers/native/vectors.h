// Vectors of 16 numbers, as the compiler has them for this machine, and work shared among threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

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

// The n first of 16 numbers; the others are 0, or not touched.
inline Vec load_some(const float *p, int n) {
    if (n == LANES) return load(p);
    Vec v{};
    std::memcpy(&v, p, n * sizeof(float));
    return v;
}

inline void store_some(float *p, Vec v, int n) {
    if (n == LANES) return store(p, v);
    std::memcpy(p, &v, n * sizeof(float));
}

inline Vec all(float x) { return Vec{} + x; }

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// e^x for x <= 0, to about one unit in the last place: 2^n e^r with |r| <= ln(2) / 2. Below the smallest normal
// number it is exactly 0, so that a score of -infinity has no part in anything.
inline Vec exponential(Vec x) {
    const Vec y = x < -88.0f ? all(-88.0f) : x;  // a NaN stays one
    const Int n = __builtin_convertvector(y * 1.44269504f - 0.5f, Int);  // cuts towards zero: to the nearest
    const Vec whole = __builtin_convertvector(n, Vec);
    const Vec r = (y - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Int bits = (n + 127) << 23;
    Vec scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return x < -87.0f ? Vec{} : p * scale;
}

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
