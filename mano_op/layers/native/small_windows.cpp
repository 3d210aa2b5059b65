// Attention in windows of 2, 4 or 8 queries and as many keys, several windows to a vector, in one pass over all
// windows of a grid, which may overlap. See mano_op/layers/native/small_windows.py, which calls it, and
// mano_op/layers/chunks.py for the formulas.
//
// A lane holds a query, and the key of the same number in its window. The other keys of the window are those of
// the lanes i ^ 1, i ^ 2, ..., i ^ (G - 1): a query's sums over its keys, and a key's over its queries, are both
// sums over such exchanges of lanes. Of a window nothing is kept: the backward pass has all of it in registers.

#include <initializer_list>

#include "tokens.h"

extern "C" {

struct SmallWindows {
    Tokens q, k, v;
    const int32_t *queries, *keys;  // (windows, G): rows
    const float *share;             // (windows, G): what a query's result here counts; 0 at a filler
    const float *missing;           // (windows, G), or null: -infinity where there is no key
    int64_t batch, windows, heads, head_dim, points, key_points;
    float scale;
    int32_t size, threads;  // size is G
};
}

namespace {

// Every lane gets what lane i ^ R has.
template <int R, int... L> INLINE Vec exchanged(Vec x, std::integer_sequence<int, L...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(x, x, (L ^ R)...);
#else
    return __builtin_shuffle(x, Int{(L ^ R)...});
#endif
}

template <int R> INLINE Vec exchanged(Vec x) { return exchanged<R>(x, std::make_integer_sequence<int, LANES>()); }

template <class Function, int... R> INLINE void each(std::integer_sequence<int, R...>, Function use) {
    (use(std::integral_constant<int, R>()), ...);
}

// use(r) for r = 0 ... G - 1, known to the compiler.
template <int G, class Function> INLINE void each(Function use) {
    each(std::make_integer_sequence<int, G>(), use);
}

// result[r] = the sum of the products of the channels x of a lane and those of y at lane i ^ r.
template <int G, int D> INLINE void products(const Vec *x, const Vec *y, int d, Vec *result) {
    for (int c = 0; c < (D ? D : d); c++)
        each<G>([&](auto r) { result[r] += x[c] * exchanged<r>(y[c]); });
}

// result = the sum over r of factor[r] times the channels x at lane i ^ r.
template <int G, int D> INLINE void weighted(const Vec *factor, const Vec *x, int d, Vec *result) {
    for (int c = 0; c < (D ? D : d); c++) {
        Vec sum{};
        each<G>([&](auto r) { sum += factor[r] * exchanged<r>(x[c]); });
        result[c] = sum;
    }
}

// Of each query the probability of the key at lane i ^ r.
template <int G, int D> INLINE void softmax(const Vec *q, const Vec *k, Vec missing, int d, Vec *p) {
    each<G>([&](auto r) { p[r] = exchanged<r>(missing); });
    products<G, D>(q, k, d, p);
    Vec most = p[0], total{};
    for (int r = 1; r < G; r++) most = larger(p[r], most);
    for (int r = 0; r < G; r++) total += p[r] = exponential(p[r] - most);
    const Vec inverse = 1.0f / total;
    for (int r = 0; r < G; r++) p[r] *= inverse;
}

// The first n of 16 numbers, or so many zeros if there are none.
inline Vec some(const float *from, int n) {
    Vec v{};
    if (from) std::memcpy(&v, from, n * sizeof(float));
    return v;
}

// Results or gradients, which lie without gaps, as points to be read.
inline Tokens without_gaps(const float *data, int64_t points, int64_t channels) {
    return {data, points * channels, channels};
}

// Ask for what the next vector needs of a head: the processor does not foresee a head's part of each row.
INLINE void ask_for_next(const SmallWindows &a, const int32_t *rows, int64_t b, int64_t h, int64_t at, std::initializer_list<Tokens> of) {
    if (at + 2 * LANES > a.windows * a.size) return;
    for (const Tokens &t : of)
        for (int i = 0; i < LANES; i++) __builtin_prefetch(t.row(b, rows[at + LANES + i]) + h * a.head_dim);
}

// use(sample, head, first of some lanes, how many of them) for all vectors of windows. A thread has heads of its own:
// windows overlap, but heads do not meet, so that sums are in the same order with any number of threads.
template <class Function> void each_vector(const SmallWindows &a, Function make) {
    in_parallel(a.batch * a.heads, a.threads, [=](int64_t, int64_t first, int64_t last) {
        auto use = make();
        const int64_t lanes = a.windows * a.size;
        for (int64_t b = first / a.heads; b * a.heads < last; b++)
            for (int64_t at = 0; at < lanes; at += LANES)
                for (int64_t h = std::max<int64_t>(0, first - b * a.heads); h < std::min(a.heads, last - b * a.heads); h++)
                    use(b, h, at, static_cast<int>(std::min<int64_t>(LANES, lanes - at)));
    });
}

template <int G, int D> void forward_of(const SmallWindows &a, float *out) {
    const int d = D ? D : static_cast<int>(a.head_dim);
    each_vector(a, [&a, out, d] {
        return [&a, out, d, lanes = std::vector<Vec>(std::max(d, LANES)),
                scratch = std::vector<Vec>(D ? 0 : 4 * d)](int64_t b, int64_t h, int64_t at, int n) mutable {
            ask_for_next(a, a.queries, b, h, at, {a.q, without_gaps(out, a.points, a.heads * d)});
            ask_for_next(a, a.keys, b, h, at, {a.k, a.v});
            Vec local[4 * (D ? D : 1)], p[G];
            Vec *q = D ? local : scratch.data(), *k = q + d, *v = k + d, *o = v + d;
            columns<D>(a.q, b, a.queries + at, n, h * d, d, q);
            columns<D>(a.k, b, a.keys + at, n, h * d, d, k);
            columns<D>(a.v, b, a.keys + at, n, h * d, d, v);
            for (int c = 0; c < d; c++) q[c] *= a.scale;
            softmax<G, D>(q, k, some(a.missing ? a.missing + at : nullptr, n), d, p);
            const Vec share = some(a.share + at, n);
            for (int r = 0; r < G; r++) p[r] *= share;
            weighted<G, D>(p, v, d, o);
            each_row<D>(o, n, d, reinterpret_cast<float *>(lanes.data()), [&](int i, const float *part) {
                if (!share[i]) return;
                add<D>(out + (b * a.points + a.queries[at + i]) * a.heads * d + h * d, part, d);
            });
        };
    });
}

template <int G, int D>
void backward_of(const SmallWindows &a, const Tokens &grad, float *dq, float *dk, float *dv) {
    const int d = D ? D : static_cast<int>(a.head_dim);
    each_vector(a, [&a, &grad, dq, dk, dv, d] {
        return [&a, &grad, dq, dk, dv, d, lanes = std::vector<Vec>(std::max(d, LANES)),
                scratch = std::vector<Vec>(D ? 0 : 5 * d)](int64_t b, int64_t h, int64_t at, int n) mutable {
            ask_for_next(a, a.queries, b, h, at, {a.q, grad, without_gaps(dq, a.points, a.heads * d)});
            ask_for_next(a, a.keys, b, h, at,
                         {a.k, a.v, without_gaps(dk, a.key_points, a.heads * d), without_gaps(dv, a.key_points, a.heads * d)});
            Vec local[5 * (D ? D : 1)], p[G], dp[G] = {};
            Vec *q = D ? local : scratch.data(), *k = q + d, *v = k + d, *g = v + d, *part = g + d;
            columns<D>(a.q, b, a.queries + at, n, h * d, d, q);
            columns<D>(a.k, b, a.keys + at, n, h * d, d, k);
            columns<D>(a.v, b, a.keys + at, n, h * d, d, v);
            columns<D>(grad, b, a.queries + at, n, h * d, d, g);
            const Vec share = some(a.share + at, n), missing = some(a.missing ? a.missing + at : nullptr, n);
            for (int c = 0; c < d; c++) q[c] *= a.scale, g[c] = share > 0.0f ? g[c] * share : Vec{};
            softmax<G, D>(q, k, missing, d, p);
            products<G, D>(g, v, d, dp);
            Vec delta{};
            for (int r = 0; r < G; r++) delta += p[r] * dp[r];
            for (int r = 0; r < G; r++) dp[r] = p[r] * (dp[r] - delta);  // now of the scores
            const auto add_to = [&](float *total, const int32_t *rows, int64_t points, auto is_there) {
                each_row<D>(part, n, d, reinterpret_cast<float *>(lanes.data()), [&](int i, const float *of_row) {
                    if (is_there(i)) add<D>(total + (b * points + rows[at + i]) * a.heads * d + h * d, of_row, d);
                });
            };
            weighted<G, D>(dp, k, d, part);
            for (int c = 0; c < d; c++) part[c] *= a.scale;
            add_to(dq, a.queries, a.points, [&](int i) { return share[i] > 0; });
            // As keys see it: lane i ^ r's own.
            each<G>([&](auto r) { dp[r] = exchanged<r>(dp[r]), p[r] = exchanged<r>(p[r]); });
            weighted<G, D>(dp, q, d, part);
            add_to(dk, a.keys, a.key_points, [&](int i) { return missing[i] == 0; });
            weighted<G, D>(p, g, d, part);
            add_to(dv, a.keys, a.key_points, [&](int i) { return missing[i] == 0; });
        };
    });
}

// use(G, D), known to the compiler; a D of 0 stands for any.
template <int G, class Function> void with_head_dim(int64_t head_dim, Function use) {
    const auto size = std::integral_constant<int, G>();
    switch (head_dim) {
    case 4: return use(size, std::integral_constant<int, 4>());
    case 8: return use(size, std::integral_constant<int, 8>());
    case 16: return use(size, std::integral_constant<int, 16>());
    default: return use(size, std::integral_constant<int, 0>());
    }
}

template <class Function> void with_sizes(const SmallWindows &a, Function use) {
    switch (a.size) {
    case 2: return with_head_dim<2>(a.head_dim, use);
    case 4: return with_head_dim<4>(a.head_dim, use);
    case 8: return with_head_dim<8>(a.head_dim, use);
    }
}

}  // namespace

extern "C" {

// `out`, zero at first, is (batch, points, heads * head_dim), as gradients are, each with the points of its own.
void small_forward(const SmallWindows *a, float *out) {
    with_sizes(*a, [&](auto size, auto head_dim) { forward_of<size, head_dim>(*a, out); });
}

void small_backward(const SmallWindows *a, const Tokens *grad, float *dq, float *dk, float *dv) {
    with_sizes(*a, [&](auto size, auto head_dim) { backward_of<size, head_dim>(*a, *grad, dq, dk, dv); });
}
}
