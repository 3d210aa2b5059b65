// Attention in windows of G = 2, 4 or 8 queries and as many keys, in one pass over all windows of a grid, which may
// overlap. See mano_op/layers/native/small_windows.py, which calls it, and mano_op/layers/chunks.py for the formulas.
//
// A lane holds the score of a pair: lane i G + j that of query i and key j of its window, so that a vector has 16 / G
// queries: several windows of 2, one of 4, or a quarter of one of 8. Channels are read as they lie, 16 to a vector,
// without being transposed, and the sums over channels of 16 pairs are made together. Nothing of a window is kept: the
// backward pass has all of it in registers.

#include "tokens.h"

// For loops over what is to be in registers.
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

extern "C" {

struct SmallWindows {
    Tokens q, k, v;
    const int32_t *queries, *keys;  // (windows, G): rows
    const float *share;             // (windows, G): what a query's result here counts; 0 at a filler
    const float *missing;           // (windows, G), or null: -infinity where there is no key
    const uint8_t *new_query, *new_key;  // (windows, G): whether the point's result, or its gradient, is the first
    int64_t batch, windows, heads, head_dim, points, key_points;
    float scale;
    int32_t size, threads;  // size is G
};
}

namespace {

template <int G> constexpr int QUERIES = LANES / G;                       // of a vector
template <int G> constexpr int KEYS = G > LANES / G ? G : LANES / G;      // of their windows

// Every lane gets what lane i ^ R has.
template <int R, int... L> INLINE Vec exchanged(Vec x, std::integer_sequence<int, L...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(x, x, (L ^ R)...);
#else
    return __builtin_shuffle(x, Int{(L ^ R)...});
#endif
}

// Over the keys of a query, to all of its lanes: the sum, or what else an operation on two vectors makes of them.
template <int G, int R = 1, class Operation> INLINE Vec over_keys(Vec x, Operation of_two) {
    if constexpr (R < G)
        return over_keys<G, 2 * R>(of_two(x, exchanged<R>(x, std::make_integer_sequence<int, LANES>())), of_two);
    else
        return x;
}

INLINE Vec sum(Vec a, Vec b) { return a + b; }

// Lane l of the result is the sum over all lanes of m[l]: a transpose whose rows are added up on the way.
template <int S = LANES / 2> INLINE Vec sums(Vec *m) {
    UNROLL for (int i = 0; i < S; i++) {
        swap_blocks<S>(m[i], m[i + S], std::make_integer_sequence<int, LANES>());
        m[i] += m[i + S];
    }
    if constexpr (S > 1)
        return sums<S / 2>(m);
    else
        return m[0];
}

// use(c, n) for the channels of a head, 16 at a time: n of them from c on.
template <int D, class Function> INLINE void each_block(int d, Function use) {
    int c = 0;
    for (; c + LANES <= (D ? D : d); c += LANES) use(c, LANES);
    if ((D ? D : d) % LANES) use(c, (D ? D : d) % LANES);
}

// The sums over channels of each pair of a row of x and one of y.
template <int G, int D> INLINE Vec products(const float *const *x, const float *const *y, int d) {
    Vec pairs[LANES] = {};
    each_block<D>(d, [&](int c, int n) {
        Vec of_y[KEYS<G>];
        UNROLL for (int j = 0; j < KEYS<G>; j++) of_y[j] = load_some(y[j] + c, n);
        UNROLL for (int i = 0; i < QUERIES<G>; i++) {
            const Vec of_x = load_some(x[i] + c, n);
            UNROLL for (int j = 0; j < G; j++) pairs[i * G + j] += of_x * of_y[i / G * G + j];
        }
    });
    return sums(pairs);
}

// Some queries of a head, and the keys of their windows. Where there are fewer, the first one stands in for the others.
template <int G> struct Part {
    const SmallWindows &a;
    int64_t b, h, at, keys_at;
    int n_queries, n_keys;

    Part(const SmallWindows &a, int64_t b, int64_t h, int64_t at) : a(a), b(b), h(h), at(at), keys_at(at / G * G) {
        n_queries = static_cast<int>(std::min<int64_t>(QUERIES<G>, a.windows * G - at));
        n_keys = static_cast<int>(std::min<int64_t>(KEYS<G>, a.windows * G - keys_at));
    }

    int64_t query(int i) const { return a.queries[at + (i < n_queries ? i : 0)]; }
    int64_t key(int j) const { return a.keys[keys_at + (j < n_keys ? j : 0)]; }
    float share(int i) const { return i < n_queries ? a.share[at + i] : 0.0f; }
    bool is_new_query(int i) const { return a.new_query[at + i]; }
    // Of a window of more queries than a vector has, only the first ones meet new keys.
    bool is_new_key(int j) const { return at == keys_at && a.new_key[keys_at + j]; }
    bool has_key(int j) const { return j < n_keys && !(a.missing && a.missing[keys_at + j]); }

    INLINE void rows_of_queries(const Tokens &t, const float **rows) const {
        UNROLL for (int i = 0; i < QUERIES<G>; i++) rows[i] = t.row(b, query(i)) + h * a.head_dim;
    }
    INLINE void rows_of_keys(const Tokens &t, const float **rows) const {
        UNROLL for (int j = 0; j < KEYS<G>; j++) rows[j] = t.row(b, key(j)) + h * a.head_dim;
    }

    // The row of a result or a gradient, which lie without gaps.
    float *row(float *data, int64_t points, int64_t i) const {
        return data + ((b * points + i) * a.heads + h) * a.head_dim;
    }

    INLINE Vec softmax(Vec scores) const {
        scores *= a.scale * LOG2_E;
        if (a.missing) {
            float added[LANES];
            UNROLL for (int l = 0; l < LANES; l++) added[l] = has_key(l / G / G * G + l % G) ? 0.0f : -INFINITY;
            scores += load(added);
        }
        const Vec p = small_power_of_two(scores - over_keys<G>(scores, larger));
        return p / over_keys<G>(p, sum);
    }
};

// So many heads are worked on together: a step of all of them before the next one, so that what waits for a result of one
// head has others to do. That takes two thirds of the time.
constexpr int TOGETHER = 8;

// use(make a part of head i, how many heads) for all queries of all samples and heads. A thread has heads of its own:
// windows overlap, but heads do not meet, so that sums are in the same order with any number of threads.
template <int G, class Function> void each_part(const SmallWindows &a, Function use) {
    in_parallel(a.batch * a.heads, a.threads, [&a, use](int64_t, int64_t first, int64_t last) {
        for (int64_t b = first / a.heads; b * a.heads < last; b++) {
            const int64_t h0 = std::max<int64_t>(0, first - b * a.heads), h1 = std::min(a.heads, last - b * a.heads);
            for (int64_t at = 0; at < a.windows * G; at += QUERIES<G>)
                for (int64_t h = h0; h < h1; h += TOGETHER)
                    use([&](int i) { return Part<G>(a, b, h + i, at); }, static_cast<int>(std::min<int64_t>(TOGETHER, h1 - h)));
        }
    });
}

// Add to what a row has, which may be nothing yet. So it need not be zero at first, which would be one more way through it.
INLINE void add_to(float *row, Vec x, int n, bool is_new) { store_some(row, is_new ? x : load_some(row, n) + x, n); }

template <int G, int D> void forward_of(const SmallWindows &a, float *out) {
    const int d = D ? D : static_cast<int>(a.head_dim);
    each_part<G>(a, [&a, out, d](auto part_of, int heads) {
        Vec scores[TOGETHER];
        for (int h = 0; h < heads; h++) {
            const Part<G> part = part_of(h);
            const float *q[QUERIES<G>], *k[KEYS<G>];
            part.rows_of_queries(a.q, q), part.rows_of_keys(a.k, k);
            scores[h] = products<G, D>(q, k, d);
        }
        for (int h = 0; h < heads; h++) scores[h] = part_of(h).softmax(scores[h]);
        for (int h = 0; h < heads; h++) {
            const Part<G> part = part_of(h);
            const float *v[KEYS<G>], *p = reinterpret_cast<const float *>(&scores[h]);
            part.rows_of_keys(a.v, v);
            each_block<D>(d, [&](int c, int n) {
                Vec of_v[KEYS<G>];
                UNROLL for (int j = 0; j < KEYS<G>; j++) of_v[j] = load_some(v[j] + c, n);
                UNROLL for (int i = 0; i < QUERIES<G>; i++) {
                    if (!part.share(i)) continue;
                    Vec o{};
                    UNROLL for (int j = 0; j < G; j++) o += p[i * G + j] * of_v[i / G * G + j];
                    float *row = part.row(out, a.points, part.query(i)) + c;
                    add_to(row, part.share(i) * o, n, part.is_new_query(i));
                }
            });
        }
    });
}

template <int G, int D>
void backward_of(const SmallWindows &a, const Tokens &grad, float *dq, float *dk, float *dv) {
    const int d = D ? D : static_cast<int>(a.head_dim);
    each_part<G>(a, [&a, &grad, dq, dk, dv, d](auto part_of, int heads) {
        Vec scores[TOGETHER], gradients[TOGETHER], share;
        float shares[LANES];
        for (int l = 0; l < LANES; l++) shares[l] = part_of(0).share(l / G);
        share = load(shares);
        for (int h = 0; h < heads; h++) {
            const Part<G> part = part_of(h);
            const float *x[QUERIES<G>], *y[KEYS<G>];
            part.rows_of_queries(a.q, x), part.rows_of_keys(a.k, y);
            scores[h] = products<G, D>(x, y, d);
            part.rows_of_queries(grad, x), part.rows_of_keys(a.v, y);
            gradients[h] = products<G, D>(x, y, d);
        }
        for (int h = 0; h < heads; h++) {
            const Vec p = part_of(h).softmax(scores[h]);
            // A filler's result goes nowhere.
            const Vec dp = share > 0.0f ? share * gradients[h] : Vec{};
            scores[h] = share * p;
            gradients[h] = a.scale * p * (dp - over_keys<G>(p * dp, sum));
        }
        for (int h = 0; h < heads; h++) {
            const Part<G> part = part_of(h);
            const float *p = reinterpret_cast<const float *>(&scores[h]), *ds = reinterpret_cast<const float *>(&gradients[h]);
            const float *q[QUERIES<G>], *g[QUERIES<G>], *k[KEYS<G>];
            part.rows_of_queries(a.q, q), part.rows_of_queries(grad, g), part.rows_of_keys(a.k, k);
            each_block<D>(d, [&](int c, int n) {
                Vec of_q[QUERIES<G>], of_g[QUERIES<G>], of_k[KEYS<G>];
                UNROLL for (int i = 0; i < QUERIES<G>; i++) {
                    of_q[i] = load_some(q[i] + c, n);
                    of_g[i] = part.share(i) ? load_some(g[i] + c, n) : Vec{};
                }
                UNROLL for (int j = 0; j < KEYS<G>; j++) of_k[j] = load_some(k[j] + c, n);
                UNROLL for (int i = 0; i < QUERIES<G>; i++) {
                    if (!part.share(i)) continue;
                    Vec of_query{};
                    UNROLL for (int j = 0; j < G; j++) of_query += ds[i * G + j] * of_k[i / G * G + j];
                    add_to(part.row(dq, a.points, part.query(i)) + c, of_query, n, part.is_new_query(i));
                }
                UNROLL for (int j = 0; j < KEYS<G>; j++) {
                    if (!part.has_key(j)) continue;
                    Vec of_key{}, of_value{};
                    UNROLL for (int i = 0; i < (G < QUERIES<G> ? G : QUERIES<G>); i++) {
                        const int query = j / G * G + i;
                        of_key += ds[query * G + j % G] * of_q[query];
                        of_value += p[query * G + j % G] * of_g[query];
                    }
                    add_to(part.row(dk, a.key_points, part.key(j)) + c, of_key, n, part.is_new_key(j));
                    add_to(part.row(dv, a.key_points, part.key(j)) + c, of_value, n, part.is_new_key(j));
                }
            });
        }
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

// `out` is (batch, points, heads * head_dim), as gradients are, each with the points of its own.
void small_forward(const SmallWindows *a, float *out) {
    with_sizes(*a, [&](auto size, auto head_dim) { forward_of<size, head_dim>(*a, out); });
}

void small_backward(const SmallWindows *a, const Tokens *grad, float *dq, float *dk, float *dv) {
    with_sizes(*a, [&](auto size, auto head_dim) { backward_of<size, head_dim>(*a, *grad, dq, dk, dv); });
}
}
