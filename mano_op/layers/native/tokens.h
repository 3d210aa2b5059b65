// Channels of points as vectors of 16 points, and the way back.

#pragma once

#include <utility>

#include "vectors.h"

namespace {

// Of two rows the blocks of S columns that belong in the upper, and those that belong in the lower, of a matrix
// whose 2 x 2 blocks of S x S are transposed.
template <int S, int... L> INLINE void swap_blocks(Vec &a, Vec &b, std::integer_sequence<int, L...>) {
#if defined(__clang__) || __GNUC__ >= 12
    const Vec upper = __builtin_shufflevector(a, b, ((L & S) ? LANES + L - S : L)...);
    b = __builtin_shufflevector(a, b, ((L & S) ? LANES + L : L + S)...);
#else
    const Vec upper = __builtin_shuffle(a, b, Int{((L & S) ? LANES + L - S : L)...});
    b = __builtin_shuffle(a, b, Int{((L & S) ? LANES + L : L + S)...});
#endif
    a = upper;
}

template <int S> INLINE void transpose_blocks(Vec *m) {
    for (int i = 0; i < LANES; i++)
        if (!(i & S)) swap_blocks<S>(m[i], m[i + S], std::make_integer_sequence<int, LANES>());
}

// A matrix of 16 rows, in place and in registers. What is not used of the result is not computed, as all of this is
// inlined: left to the compiler, it calls each step, which goes through memory, and takes twice as long.
INLINE void transpose(Vec *m) {
    transpose_blocks<8>(m);
    transpose_blocks<4>(m);
    transpose_blocks<2>(m);
    transpose_blocks<1>(m);
}

// Points of all samples, (batch, points, channels).
struct Tokens {
    const float *data;
    int64_t batch_stride, row_stride;
    const float *row(int64_t b, int64_t i) const { return data + b * batch_stride + i * row_stride; }
};

// The channels of a head as vectors of 16 points, of which there may be fewer; the others are 0.
template <int D> inline void columns(const Tokens &t, int64_t b, const int32_t *rows, int n, int64_t first, int d, Vec *to) {
    if constexpr (D > 0 && D <= LANES) {
        Vec m[LANES];
        const float *points = t.data + b * t.batch_stride + first;
        if (n == LANES && D == LANES) // most of them, without a question for each
            for (int i = 0; i < LANES; i++) m[i] = load(points + rows[i] * t.row_stride);
        else
            for (int i = 0; i < LANES; i++) {
                m[i] = Vec{};
                if (i < n) std::memcpy(&m[i], points + rows[i] * t.row_stride, D * sizeof(float));
            }
        transpose(m);
        for (int c = 0; c < D; c++) to[c] = m[c];
    } else {
        for (int c = 0; c < d; c++) {
            float lanes[LANES] = {};
            for (int i = 0; i < n; i++) lanes[i] = t.row(b, rows[i])[first + c];
            to[c] = load(lanes);
        }
    }
}

// The way back: what belongs to 16 points, or the n first of them, given to `use` as a row of channels each.
template <int D, class Function> inline void each_row(const Vec *from, int n, int d, float *scratch, Function use) {
    if constexpr (D > 0 && D <= LANES) {
        Vec m[LANES];
        for (int c = 0; c < LANES; c++) m[c] = c < D ? from[c] : Vec{};
        transpose(m);
        for (int i = 0; i < LANES; i++) store(scratch + i * LANES, m[i]);
        for (int i = 0; i < n; i++) use(i, scratch + i * LANES);
    } else {
        for (int c = 0; c < d; c++) store(scratch + c * LANES, from[c]);
        std::vector<float> row(d);
        for (int i = 0; i < n; i++) {
            for (int c = 0; c < d; c++) row[c] = scratch[c * LANES + i];
            use(i, row.data());
        }
    }
}

// Add channels to a row. What is read is read first: the compiler cannot know that the two do not overlap.
template <int D> inline void add(float *row, const float *part, int d, float factor = 1.0f) {
    if constexpr (D > 0) {
        float sum[D];
        for (int c = 0; c < D; c++) sum[c] = row[c] + factor * part[c];
        std::memcpy(row, sum, sizeof sum);
    } else {
        for (int c = 0; c < d; c++) row[c] += factor * part[c];
    }
}

}  // namespace
