// Attention in windows, one window and head at a time, with all that belongs to them in registers and the
// first cache. See mano_op/layers/native/kernel.py, which calls it and has the formulas.
//
// Scores are added to by a table, and the softmax is over keys. A vector holds 16 queries of one key, so that sums over
// keys need no shuffling. For sums over queries, the gradients of keys and values, a vector holds the channels of a point
// as they lie, and is multiplied by one number of the former after the other. Rows of points are strided, channels are not.

#include "tokens.h"

extern "C" {

struct Problem {
    Tokens q, k, v;
    const float *table;      // (windows, heads, n_keys, padded queries): added to the scores
    const bool *missing;     // (windows, n_keys), or null: where there is no key
    const int32_t *queries;  // (windows, n_queries): rows
    const int32_t *keys;     // (windows, n_keys)
    const float *share;      // (windows, n_queries), or null: weight of each result, 0 at a filler
    int64_t batch, windows, heads, head_dim, n_queries, n_keys, padded_queries;
    int64_t table_windows;   // how many windows the table has
    int64_t points, key_points;
    float scale;
    int32_t threads;
};
}

namespace {

// Channels of a point as they lie, in a vector that is no wider than need be.
template <int D> struct RowOf {
    static constexpr int WIDTH = D == 4 ? 4 : D > 0 && D <= 8 ? 8 : LANES;
    typedef float type __attribute__((vector_size(4 * WIDTH)));
};
template <int D> using Row = typename RowOf<D>::type;

// The sum of the products of numbers, or vectors, with vectors: in two parts, so that one need not wait for the other.
template <int D, class Number, class Vector> INLINE Vector products(const Number *x, const Vector *y, int d) {
    Vector sum[2] = {Vector{}, Vector{}};
    for (int c = 0; c < (D ? D : d); c++) sum[c % 2] += x[c] * y[c];
    return sum[0] + sum[1];
}

// The keys of a window that there are, as places among all of them; without the others nothing has to be masked.
struct Keys {
    std::vector<int32_t> places;

    explicit Keys(const Problem &a) : places(a.n_keys) { for (int32_t j = 0; j < a.n_keys; j++) places[j] = j; }

    void of_window(const Problem &a, int64_t w) {
        if (!a.missing) return;
        places.clear();
        for (int32_t j = 0; j < a.n_keys; j++)
            if (!a.missing[w * a.n_keys + j]) places.push_back(j);
    }
};

// Where the keys of a window are, and what belongs to a head of it.
struct Head {
    const float *k, *v, *table;
    const int32_t *rows, *key_rows, *places;
    int64_t n_keys, k_stride, v_stride;
    int first;  // channel

    Head(const Problem &a, const Keys &keys, int64_t b, int64_t w, int64_t h)
        : table(a.table + ((a.table_windows > 1 ? w : 0) * a.heads + h) * a.n_keys * a.padded_queries),
          rows(a.queries + w * a.n_queries), key_rows(a.keys + w * a.n_keys), places(keys.places.data()),
          n_keys(static_cast<int64_t>(keys.places.size())), k_stride(a.k.row_stride), v_stride(a.v.row_stride),
          first(static_cast<int>(h * a.head_dim)) {
        k = a.k.row(b, 0) + first, v = a.v.row(b, 0) + first;
    }

    int64_t key_row(int64_t j) const { return key_rows[places[j]]; }
    const float *key(int64_t j) const { return k + key_row(j) * k_stride; }
    const float *value(int64_t j) const { return v + key_row(j) * v_stride; }
};

// Whether any of 16 queries is no filler.
INLINE bool any_query(const Problem &a, int64_t w, int64_t i0) {
    if (!a.share) return true;
    for (int64_t i = i0; i < std::min(i0 + LANES, a.n_queries); i++)
        if (a.share[w * a.n_queries + i] != 0.0f) return true;
    return false;
}

// For each key the products of its row with 16 queries, summed over the channels. Of wide heads the queries' channels are
// no longer in registers, so each is read for four keys at a time.
template <int D, class RowOfKey, class Each>
INLINE void with_each_key(const Vec *x, int d, int64_t n_keys, RowOfKey row_of_key, Each each) {
    int64_t j = 0;
    if (D == 0 || D > LANES)
        for (; j + 4 <= n_keys; j += 4) {
            const float *rows[4] = {row_of_key(j), row_of_key(j + 1), row_of_key(j + 2), row_of_key(j + 3)};
            Vec sum[4] = {Vec{}, Vec{}, Vec{}, Vec{}};
            for (int c = 0; c < (D ? D : d); c++) {
                const Vec here = x[c];
                for (int i = 0; i < 4; i++) sum[i] += rows[i][c] * here;
            }
            for (int i = 0; i < 4; i++) each(j + i, sum[i]);
        }
    for (; j < n_keys; j++) each(j, products<D>(row_of_key(j), x, d));
}

// The sum over keys of their rows, times 16 numbers of each, for at most 16 channels at a time.
template <int D, class RowOfKey>
INLINE void sum_over_keys(const Vec *numbers, int d, int64_t n_keys, RowOfKey row_of_key, Vec *out) {
    constexpr int BLOCK = D > 0 && D < LANES ? D : LANES;
    int first = 0;
    for (; first + BLOCK <= (D ? D : d); first += BLOCK) {
        Vec sum[BLOCK];
        for (int c = 0; c < BLOCK; c++) sum[c] = Vec{};
        for (int64_t j = 0; j < n_keys; j++) {
            const float *row = row_of_key(j) + first;
            const Vec number = numbers[j];
            for (int c = 0; c < BLOCK; c++) sum[c] += row[c] * number;
        }
        for (int c = 0; c < BLOCK; c++) out[first + c] = sum[c];
    }
    for (int c = first; c < (D ? D : d); c++) {
        Vec sum{};
        for (int64_t j = 0; j < n_keys; j++) sum += row_of_key(j)[c] * numbers[j];
        out[c] = sum;
    }
}

// The scores of 16 queries, scaled as they are to be, with each key; in units of ln(2).
template <int D> INLINE Vec scores_of(const Problem &a, const Head &head, const Vec *q, int d, int64_t i0, Vec *scores) {
    Vec most = all(-INFINITY);
    with_each_key<D>(q, d, head.n_keys, [&](int64_t j) { return head.key(j); }, [&](int64_t j, Vec product) {
        const Vec s = load(head.table + head.places[j] * a.padded_queries + i0) * LOG2_E + product;
        scores[j] = s;
        most = larger(s, most);
    });
    return most;
}

template <int D> void forward_of(const Problem &a, float *out, float *stats) {
    const int64_t channels = a.heads * a.head_dim, windows = a.batch * a.windows;
    // Windows never meet, but for queries that are in several; heads never do.
    const bool by_window = !a.share;
    in_parallel(by_window ? windows : a.heads, a.threads, [=](int64_t, int64_t first, int64_t last) {
        const int d = D ? D : static_cast<int>(a.head_dim);
        std::vector<float> lanes(std::max(d, LANES) * LANES);
        std::vector<Vec> scores(a.n_keys), scratch(2 * d);
        Keys keys(a);
        for (int64_t task = by_window ? first : 0; task < (by_window ? last : windows); task++) {
            const int64_t b = task / a.windows, w = task % a.windows;
            keys.of_window(a, w);
            for (int64_t h = by_window ? 0 : first; h < (by_window ? a.heads : last); h++) {
                const Head head(a, keys, b, w, h);
                const float *share = a.share ? a.share + w * a.n_queries : nullptr;
                float *stat = stats ? stats + ((b * a.windows + w) * a.heads + h) * 2 * a.padded_queries : nullptr;
                for (int64_t i0 = 0; i0 < a.n_queries; i0 += LANES) {
                    if (!any_query(a, w, i0)) continue;
                    const int here = static_cast<int>(std::min<int64_t>(LANES, a.n_queries - i0));
                    Vec local[2 * (D ? D : 1)];
                    Vec *q = D ? local : scratch.data(), *o = q + d;
                    columns<D>(a.q, b, head.rows + i0, here, h * d, d, q);
                    for (int c = 0; c < d; c++) q[c] *= a.scale * LOG2_E;
                    const Vec most = scores_of<D>(a, head, q, d, i0, scores.data());
                    Vec total{};
                    for (int64_t j = 0; j < head.n_keys; j++) total += scores[j] = power_of_two(scores[j] - most);
                    sum_over_keys<D>(scores.data(), d, head.n_keys, [&](int64_t j) { return head.value(j); }, o);
                    const Vec inverse = 1.0f / total;
                    if (stat) store(stat + i0, most), store(stat + a.padded_queries + i0, inverse);
                    for (int c = 0; c < d; c++) o[c] *= inverse;
                    each_row<D>(o, here, d, lanes.data(), [&](int i, const float *result) {
                        float *row = out + (b * a.points + head.rows[i0 + i]) * channels + h * d;
                        if (!share)
                            std::memcpy(row, result, (D ? D : d) * sizeof(float));
                        else if (share[i0 + i] != 0.0f)
                            add<D>(row, result, d, share[i0 + i]);
                    });
                }
            }
        }
    });
}

// Add to the row of each key what N queries give it: the sum of their rows, times the numbers of the key and query.
template <int D, int N, class RowOfKey>
INLINE void give(const Row<D> *of_query, const Vec *numbers, int64_t n_keys, int n, float factor, RowOfKey row_of_key) {
    Row<D> own[N];
    for (int i = 0; i < N; i++) own[i] = of_query[i];
    for (int64_t j = 0; j < n_keys; j++) {
        const Row<D> sum = products<N>(reinterpret_cast<const float *>(numbers + j), own, N);
        float *row = row_of_key(j);
        Row<D> before{};
        std::memcpy(&before, row, n * sizeof(float));
        before += factor * sum;
        std::memcpy(row, &before, n * sizeof(float));
    }
}

// The numbers of a key are multiplied by a factor, the rows of queries by the weights.
template <int D, class RowOfQuery, class RowOfKey>
void give_to_keys(const Vec *numbers, int64_t n_keys, int here, int d, float factor, const float *weights,
                  RowOfQuery row_of_query, RowOfKey row_of_key) {
    constexpr int WIDTH = RowOf<D>::WIDTH;
    for (int c = 0; c < d; c += WIDTH) {
        const int n = D ? (D < WIDTH ? D : WIDTH) : std::min(WIDTH, d - c);
        Row<D> own[LANES] = {};
        for (int i = 0; i < here; i++)
            if (const float *row = row_of_query(i)) {
                std::memcpy(&own[i], row + c, n * sizeof(float));
                if (weights) own[i] *= weights[i];
            }
        const auto place = [&](int64_t j) { return row_of_key(j) + c; };
        if (here <= LANES / 4)
            give<D, LANES / 4>(own, numbers, n_keys, n, factor, place);
        else if (here <= LANES / 2)
            give<D, LANES / 2>(own, numbers, n_keys, n, factor, place);
        else
            give<D, LANES>(own, numbers, n_keys, n, factor, place);
    }
}

template <int D>
void backward_of(const Problem &a, const Tokens grad, const float *stats, float *dq, float *dk, float *dv, float *dtable,
                 int64_t tables) {
    const int64_t channels = a.heads * a.head_dim;
    // Samples never meet, but for the table's gradient, of which each thread then has its own; nor do heads.
    const bool by_sample = tables > 0;
    in_parallel(by_sample ? a.batch : a.heads, by_sample ? tables : a.threads, [=](int64_t thread, int64_t first, int64_t last) {
        const int d = D ? D : static_cast<int>(a.head_dim);
        std::vector<float> lanes(std::max(d, LANES) * LANES);
        // Of each key, 16 queries to a vector: probabilities, and the gradients of these, then of the scores.
        std::vector<Vec> p_of(a.n_keys), ds_of(a.n_keys), scratch(d);
        float *own = dtable + (by_sample ? thread : 0) * a.heads * a.n_keys * a.padded_queries;
        const int64_t b0 = by_sample ? first : 0, b1 = by_sample ? last : a.batch;
        const int64_t h0 = by_sample ? 0 : first, h1 = by_sample ? a.heads : last;
        Keys keys(a);
        // One loop for each thing that has to stay in registers.
        const auto part = [&](int64_t b, int64_t w, int64_t h, int64_t i0) {
            const Head head(a, keys, b, w, h);
            const float *share = a.share ? a.share + w * a.n_queries + i0 : nullptr;
            const float *stat = stats + ((b * a.windows + w) * a.heads + h) * 2 * a.padded_queries + i0;
            const int32_t *rows = head.rows + i0;
            const int here = static_cast<int>(std::min<int64_t>(LANES, a.n_queries - i0));
            Vec local[D ? D : 1], delta{};
            Vec *x = D ? local : scratch.data();

            columns<D>(a.q, b, rows, here, h * d, d, x);
            for (int c = 0; c < d; c++) x[c] *= a.scale * LOG2_E;
            scores_of<D>(a, head, x, d, i0, p_of.data());
            const Vec most = load(stat), inverse = load(stat + a.padded_queries);
            for (int64_t j = 0; j < head.n_keys; j++) p_of[j] = power_of_two(p_of[j] - most) * inverse;

            columns<D>(grad, b, rows, here, h * d, d, x);
            if (share) { // a filler's result goes nowhere
                float of[LANES] = {};
                std::memcpy(of, share, here * sizeof(float));
                const Vec weight = load(of);
                for (int c = 0; c < d; c++) x[c] = weight != 0.0f ? x[c] * weight : Vec{};
            }
            with_each_key<D>(x, d, head.n_keys, [&](int64_t j) { return head.value(j); }, [&](int64_t j, Vec product) {
                ds_of[j] = product;
                delta += p_of[j] * product;
            });

            float *to = own + (head.table - a.table) + i0;
            for (int64_t j = 0; j < head.n_keys; j++) {
                float *at = to + head.places[j] * a.padded_queries;
                const Vec ds = p_of[j] * (ds_of[j] - delta);
                ds_of[j] = ds;
                store(at, load(at) + ds);
            }
            sum_over_keys<D>(ds_of.data(), d, head.n_keys, [&](int64_t j) { return head.key(j); }, x);
            each_row<D>(x, here, d, lanes.data(), [&](int i, const float *part) {
                float *row = dq + (b * a.points + rows[i]) * channels + h * d;
                if (!share)
                    for (int c = 0; c < d; c++) row[c] = a.scale * part[c];
                else if (share[i] != 0.0f)
                    add<D>(row, part, d, a.scale);
            });

            const auto at_key = [&](float *all) {
                return [&, all](int64_t j) { return all + (b * a.key_points + head.key_row(j)) * channels + h * d; };
            };
            const auto of_query = [&](const Tokens &t) {
                return [&](int i) { return share && share[i] == 0.0f ? nullptr : t.row(b, rows[i]) + h * d; };
            };
            give_to_keys<D>(ds_of.data(), head.n_keys, here, d, a.scale, nullptr, of_query(a.q), at_key(dk));
            give_to_keys<D>(p_of.data(), head.n_keys, here, d, 1.0f, share, of_query(grad), at_key(dv));
        };
        for (int64_t b = b0; b < b1; b++)
            for (int64_t w = 0; w < a.windows; w++) {
                keys.of_window(a, w);
                for (int64_t h = h0; h < h1; h++)
                    for (int64_t i0 = 0; i0 < a.n_queries; i0 += LANES)
                        if (any_query(a, w, i0)) part(b, w, h, i0);
            }
    });
}

// Numbers of channels of a head that are known to the compiler.
using HeadDims = std::integer_sequence<int, 4, 6, 8, 16, 32>;

// Call a kernel with one of these numbers as a constant, or with 0 for another one.
template <class Kernel, int... D> void with_head_dim(int64_t head_dim, std::integer_sequence<int, D...>, Kernel kernel) {
    const bool known = ((head_dim == D && (kernel(std::integral_constant<int, D>{}), true)) || ...);
    if (!known) kernel(std::integral_constant<int, 0>{});
}

}  // namespace

extern "C" {

// `stats`, which may be null, is for `backward`: (batch, windows, heads, 2, padded queries).
void forward(const Problem *a, float *out, float *stats) {
    with_head_dim(a->head_dim, HeadDims{}, [=](auto d) { forward_of<d()>(*a, out, stats); });
}

// `dtable`, as the table and zero at first: with `tables` above 0 the table is one for all windows, samples are shared
// out among so many threads, and there are as many of it.
void backward(const Problem *a, const Tokens *grad, const float *stats, float *dq, float *dk, float *dv, float *dtable,
              int64_t tables) {
    with_head_dim(a->head_dim, HeadDims{}, [=](auto d) {
        backward_of<d()>(*a, *grad, stats, dq, dk, dv, dtable, tables);
    });
}
}
