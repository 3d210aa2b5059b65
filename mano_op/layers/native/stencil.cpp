// Stencils for each channel, between a grid and one of fewer or more points, channels last. See
// mano_op/layers/native/stencil.py, which calls it.
//
// Along each axis every point of the result has a list of (point of the source, tap of the stencil); a point of
// the grid has the product of these lists. The gradient of the source is the same with the lists the other way
// round.

#include "vectors.h"

extern "C" {

struct Lists {
    const int32_t *start;  // n_out + 1: where the list of each point begins
    const int32_t *source, *tap;
    int64_t n_out, n_in, taps;
};

struct Stencil {
    Lists axis[3];
    int64_t batch, channels;
    int32_t threads;
};
}

namespace {

// A line of the source along the last axis: its first point, and the first tap that belongs to it.
struct Line {
    int64_t point, tap;
};

// work(thread, first point, lines) for each line of the result and those of the source that it is made of; lines are
// shared among threads.
template <class Function> void each_line(const Stencil &a, Function work) {
    const int64_t n_i = a.axis[0].n_out, n_j = a.axis[1].n_out;
    in_parallel(a.batch * n_i * n_j, a.threads, [=](int64_t thread, int64_t first, int64_t last) {
        const Lists &y = a.axis[0], &x = a.axis[1], &z = a.axis[2];
        std::vector<Line> lines;
        for (int64_t line = first; line < last; line++) {
            const int64_t b = line / n_j / n_i, i = line / n_j % n_i, j = line % n_j;
            lines.clear();
            for (int32_t p = y.start[i]; p < y.start[i + 1]; p++)
                for (int32_t q = x.start[j]; q < x.start[j + 1]; q++)
                    lines.push_back({((b * y.n_in + y.source[p]) * x.n_in + x.source[q]) * z.n_in,
                                     (y.tap[p] * x.taps + x.tap[q]) * z.taps});
            work(thread, line * z.n_out, lines);
        }
    });
}

// A point of the source, and the weights that its channels are multiplied by.
struct Part {
    const float *x, *weights;
};

// One point of the result: V vectors of its channels, from channel c on, which stay in registers.
template <int V> INLINE void add_up(const Part *parts, int64_t n, int64_t c, float *out) {
    Vec sum[V] = {};
    for (int64_t i = 0; i < n; i++)
        for (int v = 0; v < V; v++)
            sum[v] += load(parts[i].weights + c + v * LANES) * load(parts[i].x + c + v * LANES);
    for (int v = 0; v < V; v++) store(out + c + v * LANES, sum[v]);
}

inline void add_up_all(const Part *parts, int64_t n, int64_t channels, float *out) {
    int64_t c = 0;
    for (; c + 4 * LANES <= channels; c += 4 * LANES) add_up<4>(parts, n, c, out);
    for (; c + 2 * LANES <= channels; c += 2 * LANES) add_up<2>(parts, n, c, out);
    for (; c + LANES <= channels; c += LANES) add_up<1>(parts, n, c, out);
    const int rest = static_cast<int>(channels - c);
    if (!rest) return;
    float sum[LANES] = {};
    for (int64_t i = 0; i < n; i++) {
        const float *w = parts[i].weights + c, *x = parts[i].x + c;
        for (int l = 0; l < rest; l++) sum[l] += w[l] * x[l];
    }
    std::memcpy(out + c, sum, rest * sizeof(float));
}

}  // namespace

extern "C" {

// out = the stencil of x; weights are (taps, channels).
void stencil(const Stencil *a, const float *x, const float *weights, float *out) {
    const int64_t channels = a->channels;
    const Lists &z = a->axis[2];
    int64_t most = 0;
    for (int64_t k = 0; k < z.n_out; k++) most = std::max<int64_t>(most, z.start[k + 1] - z.start[k]);
    each_line(*a, [=, &z](int64_t, int64_t to, const std::vector<Line> &lines) {
        std::vector<Part> parts(lines.size() * most);
        for (int64_t k = 0; k < z.n_out; k++) {
            Part *end = parts.data();
            for (const Line &line : lines)
                for (int32_t r = z.start[k]; r < z.start[k + 1]; r++)
                    *end++ = {x + (line.point + z.source[r]) * channels, weights + (line.tap + z.tap[r]) * channels};
            add_up_all(parts.data(), end - parts.data(), channels, out + (to + k) * channels);
        }
    });
}

// The gradient of the weights, (threads, taps, channels) and zero at first.
void stencil_weights(const Stencil *a, const float *x, const float *grad, float *of_weights) {
    const int64_t channels = a->channels, size = a->axis[0].taps * a->axis[1].taps * a->axis[2].taps * channels;
    const Lists &z = a->axis[2];
    each_line(*a, [=, &z](int64_t thread, int64_t to, const std::vector<Line> &lines) {
        for (int64_t k = 0; k < z.n_out; k++)
            for (const Line &line : lines)
                for (int32_t r = z.start[k]; r < z.start[k + 1]; r++) {
                    float *__restrict w = of_weights + thread * size + (line.tap + z.tap[r]) * channels;
                    const float *__restrict v = x + (line.point + z.source[r]) * channels;
                    const float *__restrict g = grad + (to + k) * channels;
                    for (int64_t c = 0; c < channels; c++) w[c] += g[c] * v[c];
                }
    });
}
}
