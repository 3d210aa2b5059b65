// Attention in windows, one window and head at a time, with all that belongs to them in registers and the
// first cache. See mano_op/layers/native/window.py, which calls it, and mano_op/layers/chunks.py for the formulas.
//
// Scores are added to by a table, and the softmax is over keys. Forward, a vector holds 16 queries of one key;
// backward, 16 keys of one query, so that sums over queries need no shuffling, and for sums over keys the
// gradients of 16 x 16 scores are transposed. Rows of points are strided, channels are not.

#include "tokens.h"

extern "C" {

struct Problem {
    Tokens q, k, v;
    const float *table;      // added to the scores
    const float *missing;    // (windows, padded keys), or null: -infinity where there is no key
    const int32_t *queries;  // (windows, n_queries): rows
    const int32_t *keys;     // (windows, n_keys)
    const float *taken;      // (windows, n_queries), or null: 0 at a filler
    int64_t batch, windows, heads, head_dim, n_queries, n_keys, padded_queries, padded_keys;
    int64_t table_windows;   // how many windows the table has
    int64_t points, key_points;
    float scale;
    int32_t threads;
};
}

namespace {

// The sum of the products of numbers, or vectors, with vectors: in two parts, so that one need not wait for the other.
template <int D, class Number> inline Vec products(const Number *x, const Vec *y, int d) {
    Vec sum[2] = {Vec{}, Vec{}};
    for (int c = 0; c < (D ? D : d); c++) sum[c % 2] += x[c] * y[c];
    return sum[0] + sum[1];
}

template <int D> void forward_of(const Problem &a, float *out, float *stats) {
    const int64_t channels = a.heads * a.head_dim;
    in_parallel(a.batch * a.windows, a.threads, [=](int64_t, int64_t first, int64_t last) {
        const int d = D ? D : static_cast<int>(a.head_dim);
        std::vector<float> lanes(std::max(d, LANES) * LANES);
        std::vector<Vec> scores(a.n_keys), scratch(2 * d);
        for (int64_t task = first; task < last; task++) {
            const int64_t b = task / a.windows, w = task % a.windows;
            const int32_t *rows = a.queries + w * a.n_queries, *key_rows = a.keys + w * a.n_keys;
            const float *missing = a.missing ? a.missing + w * a.padded_keys : nullptr;
            for (int64_t h = 0; h < a.heads; h++) {
                const float *table =
                    a.table + ((a.table_windows > 1 ? w : 0) * a.heads + h) * a.n_keys * a.padded_queries;
                float *stat = stats ? stats + ((b * a.windows + w) * a.heads + h) * 2 * a.padded_queries : nullptr;
                for (int64_t i0 = 0; i0 < a.n_queries; i0 += LANES) {
                    const int here = static_cast<int>(std::min<int64_t>(LANES, a.n_queries - i0));
                    Vec local[2 * (D ? D : 1)];
                    Vec *q = D ? local : scratch.data(), *o = q + d;
                    columns<D>(a.q, b, rows + i0, here, h * d, d, q);
                    for (int c = 0; c < d; c++) q[c] *= a.scale, o[c] = Vec{};
                    Vec most = all(-INFINITY), total{};
                    for (int64_t j = 0; j < a.n_keys; j++) {
                        const float *key = a.k.row(b, key_rows[j]) + h * d;
                        Vec s = load(table + j * a.padded_queries + i0);
                        if (missing) s += missing[j];
                        s += products<D>(key, q, d);
                        scores[j] = s;
                        most = larger(s, most);
                    }
                    for (int64_t j = 0; j < a.n_keys; j++) {
                        const float *value = a.v.row(b, key_rows[j]) + h * d;
                        const Vec p = exponential(scores[j] - most);
                        total += p;
                        for (int c = 0; c < d; c++) o[c] += value[c] * p;
                    }
                    const Vec inverse = 1.0f / total;
                    if (stat) store(stat + i0, most), store(stat + a.padded_queries + i0, inverse);
                    for (int c = 0; c < d; c++) o[c] *= inverse;
                    each_row<D>(o, here, d, lanes.data(), [&](int i, const float *result) {
                        if (a.taken && !a.taken[w * a.n_queries + i0 + i]) return;
                        float *row = out + (b * a.points + rows[i0 + i]) * channels + h * d;
                        std::memcpy(row, result, (D ? D : d) * sizeof(float));
                    });
                }
            }
        }
    });
}

template <int D>
void backward_of(const Problem &a, const Tokens grad, const Tokens out, const float *stats, float *dq, float *dk,
                 float *dv, float *dtable, int64_t tables, bool once) {
    const int64_t channels = a.heads * a.head_dim, blocks = a.padded_keys / LANES, groups = a.padded_queries / LANES;
    // Samples never meet, but for the table's gradient, of which each thread then has its own; nor do heads.
    const bool by_sample = tables > 0;
    in_parallel(by_sample ? a.batch : a.heads, by_sample ? tables : a.threads, [=](int64_t thread, int64_t first, int64_t last) {
        const int d = D ? D : static_cast<int>(a.head_dim);
        std::vector<float> query(a.n_queries * d), gradient(a.n_queries * d), delta(a.padded_queries),
            lanes(std::max(d, LANES) * LANES);
        // Of queries in vectors: their gradients, and, a row of keys after the other, those of the scores.
        std::vector<Vec> dq_t(groups * d), p_of(a.padded_queries), ds_of(a.padded_queries), scratch(4 * d);
        float *own = dtable + (by_sample ? thread : 0) * a.heads * a.n_queries * a.padded_keys;
        const int64_t b0 = by_sample ? first : 0, b1 = by_sample ? last : a.batch;
        const int64_t h0 = by_sample ? 0 : first, h1 = by_sample ? a.heads : last;
        for (int64_t b = b0; b < b1; b++)
            for (int64_t w = 0; w < a.windows; w++) {
                const int32_t *rows = a.queries + w * a.n_queries, *key_rows = a.keys + w * a.n_keys;
                const float *missing = a.missing ? a.missing + w * a.padded_keys : nullptr;
                for (int64_t h = h0; h < h1; h++) {
                    const int64_t at = ((a.table_windows > 1 ? w : 0) * a.heads + h) * a.n_queries * a.padded_keys;
                    const float *stat = stats + ((b * a.windows + w) * a.heads + h) * 2 * a.padded_queries;
                    for (int64_t i = 0; i < a.n_queries; i++) {
                        const bool is_taken = !a.taken || a.taken[w * a.n_queries + i];
                        const float *q = a.q.row(b, rows[i]) + h * d, *g = grad.row(b, rows[i]) + h * d;
                        float of_q[D ? D : 1], *to = D ? of_q : &query[i * d];
                        for (int c = 0; c < d; c++) to[c] = q[c] * a.scale;
                        if (D) std::memcpy(&query[i * d], of_q, d * sizeof(float));
                        if (is_taken)
                            std::memcpy(&gradient[i * d], g, d * sizeof(float));
                        else
                            std::memset(&gradient[i * d], 0, d * sizeof(float));
                    }
                    // Summed as the products with values below are, so that where a query sees one key alone the two
                    // cancel.
                    for (int64_t i0 = 0; i0 < a.n_queries; i0 += LANES) {
                        const int here = static_cast<int>(std::min<int64_t>(LANES, a.n_queries - i0));
                        Vec local[2 * (D ? D : 1)];
                        Vec *g = D ? local : scratch.data(), *o = g + d;
                        columns<D>(grad, b, rows + i0, here, h * d, d, g);
                        columns<D>(out, b, rows + i0, here, h * d, d, o);
                        store(&delta[i0], products<D>(g, o, d));
                        for (int i = 0; a.taken && i < here; i++)
                            if (!a.taken[w * a.n_queries + i0 + i]) delta[i0 + i] = 0;
                    }
                    std::fill(dq_t.begin(), dq_t.end(), Vec{});
                    for (int64_t n = 0; n < blocks; n++) {
                        const int64_t j = n * LANES;
                        const int here = static_cast<int>(std::min<int64_t>(LANES, a.n_keys - j));
                        Vec local[4 * (D ? D : 1)];
                        Vec *k_j = D ? local : scratch.data(), *v_j = k_j + d, *dk_j = v_j + d, *dv_j = dk_j + d;
                        columns<D>(a.k, b, key_rows + j, here, h * d, d, k_j);
                        columns<D>(a.v, b, key_rows + j, here, h * d, d, v_j);
                        for (int c = 0; c < d; c++) dk_j[c] = dv_j[c] = Vec{};
                        const Vec no_key = missing ? load(missing + j) : Vec{};
                        // One loop for each thing that has to stay in registers.
                        for (int64_t i = 0; i < a.n_queries; i++) {
                            const float *q = &query[i * d];
                            const Vec s = load(a.table + at + i * a.padded_keys + j) + no_key + products<D>(q, k_j, d);
                            p_of[i] = exponential(s - stat[i]) * stat[a.padded_queries + i];
                        }
                        for (int64_t i = 0; i < a.n_queries; i++) {
                            const float *g = &gradient[i * d];
                            ds_of[i] = p_of[i] * (products<D>(g, v_j, d) - delta[i]);
                            float *to = own + at + i * a.padded_keys + j;
                            store(to, load(to) + ds_of[i]);
                        }
                        for (int64_t i = 0; i < a.n_queries; i++) {
                            const float *g = &gradient[i * d];
                            for (int c = 0; c < d; c++) dv_j[c] += g[c] * p_of[i];
                        }
                        for (int64_t i = 0; i < a.n_queries; i++) {
                            const float *q = &query[i * d];
                            for (int c = 0; c < d; c++) dk_j[c] += q[c] * ds_of[i];
                        }
                        for (int64_t group = 0; group < groups; group++) {
                            Vec ds[LANES], local_dq[D ? D : 1];
                            Vec *dq_i = D ? local_dq : &dq_t[group * d];
                            for (int i = 0; i < LANES; i++) ds[i] = ds_of[group * LANES + i];
                            transpose(ds);
                            if (D) std::memcpy(dq_i, &dq_t[group * d], d * sizeof(Vec));
                            for (int i = 0; i < here; i++) {
                                const float *key = a.k.row(b, key_rows[j + i]) + h * d;
                                for (int c = 0; c < d; c++) dq_i[c] += key[c] * ds[i];
                            }
                            if (D) std::memcpy(&dq_t[group * d], dq_i, d * sizeof(Vec));
                        }
                        for (auto [from, to] : {std::pair(dk_j, dk), std::pair(dv_j, dv)})
                            each_row<D>(from, here, d, lanes.data(), [&, to = to](int i, const float *part) {
                                float *row = to + (b * a.key_points + key_rows[j + i]) * channels + h * d;
                                add<D>(row, part, d);
                            });
                    }
                    for (int64_t group = 0; group < groups; group++) {
                        const int64_t i0 = group * LANES;
                        const int here = static_cast<int>(std::min<int64_t>(LANES, a.n_queries - i0));
                        each_row<D>(&dq_t[group * d], here, d, lanes.data(), [&](int i, const float *part) {
                            float *row = dq + (b * a.points + rows[i0 + i]) * channels + h * d;
                            if (once) // the row has no gradient of another window
                                for (int c = 0; c < d; c++) row[c] = a.scale * part[c];
                            else
                                add<D>(row, part, d, a.scale);
                        });
                    }
                }
            }
    });
}

}  // namespace

extern "C" {

// `stats`, which may be null, is for `backward`: (batch, windows, heads, 2, padded queries).
void forward(const Problem *a, float *out, float *stats) {
    switch (a->head_dim) {
    case 4: return forward_of<4>(*a, out, stats);
    case 6: return forward_of<6>(*a, out, stats);
    case 8: return forward_of<8>(*a, out, stats);
    case 16: return forward_of<16>(*a, out, stats);
    default: return forward_of<0>(*a, out, stats);
    }
}

// The other way round the table is (windows, heads, queries, padded keys). `dtable`, zero at first, is so too. With
// `tables` above 0 the table is one for all windows, samples are shared out among so many threads, and there are as many of it.
// With `once` every query is in exactly one window, and `dq` need not be zero at first.
void backward(const Problem *a, const Tokens *grad, const Tokens *out, const float *stats, float *dq, float *dk,
              float *dv, float *dtable, int64_t tables, int32_t once) {
    switch (a->head_dim) {
    case 4: return backward_of<4>(*a, *grad, *out, stats, dq, dk, dv, dtable, tables, once);
    case 6: return backward_of<6>(*a, *grad, *out, stats, dq, dk, dv, dtable, tables, once);
    case 8: return backward_of<8>(*a, *grad, *out, stats, dq, dk, dv, dtable, tables, once);
    case 16: return backward_of<16>(*a, *grad, *out, stats, dq, dk, dv, dtable, tables, once);
    default: return backward_of<0>(*a, *grad, *out, stats, dq, dk, dv, dtable, tables, once);
    }
}
}
