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

// work(thread, sample, i, j) for each row of the result, shared among threads.
template <class Function> void each_line(const Stencil &a, Function work) {
    const int64_t n_i = a.axis[0].n_out, n_j = a.axis[1].n_out;
    in_parallel(a.batch * n_i * n_j, a.threads, [=](int64_t thread, int64_t first, int64_t last) {
        for (int64_t line = first; line < last; line++) work(thread, line / n_j / n_i, line / n_j % n_i, line % n_j);
    });
}

// use(point of the result, point of the source, tap) for all that a line of the result is made of.
template <class Function> void each_pair(const Stencil &a, int64_t b, int64_t i, int64_t j, Function use) {
    const Lists &y = a.axis[0], &x = a.axis[1], &z = a.axis[2];
    for (int64_t k = 0; k < z.n_out; k++) {
        const int64_t out = ((b * y.n_out + i) * x.n_out + j) * z.n_out + k;
        for (int32_t p = y.start[i]; p < y.start[i + 1]; p++)
            for (int32_t q = x.start[j]; q < x.start[j + 1]; q++)
                for (int32_t r = z.start[k]; r < z.start[k + 1]; r++)
                    use(out, ((b * y.n_in + y.source[p]) * x.n_in + x.source[q]) * z.n_in + z.source[r],
                        (y.tap[p] * x.taps + x.tap[q]) * z.taps + z.tap[r]);
    }
}

}  // namespace

extern "C" {

// out = the stencil of x; weights are (taps, channels).
void stencil(const Stencil *a, const float *x, const float *weights, float *out) {
    const int64_t channels = a->channels, line = a->axis[2].n_out * channels;
    each_line(*a, [=](int64_t, int64_t b, int64_t i, int64_t j) {
        std::memset(out + ((b * a->axis[0].n_out + i) * a->axis[1].n_out + j) * line, 0, line * sizeof(float));
        each_pair(*a, b, i, j, [=](int64_t to, int64_t from, int64_t tap) {
            float *__restrict o = out + to * channels;
            const float *__restrict v = x + from * channels, *__restrict w = weights + tap * channels;
            for (int64_t c = 0; c < channels; c++) o[c] += w[c] * v[c];
        });
    });
}

// The gradient of the weights, (threads, taps, channels) and zero at first.
void stencil_weights(const Stencil *a, const float *x, const float *grad, float *of_weights) {
    const int64_t channels = a->channels, size = a->axis[0].taps * a->axis[1].taps * a->axis[2].taps * channels;
    each_line(*a, [=](int64_t thread, int64_t b, int64_t i, int64_t j) {
        each_pair(*a, b, i, j, [=](int64_t to, int64_t from, int64_t tap) {
            float *__restrict w = of_weights + thread * size + tap * channels;
            const float *__restrict v = x + from * channels, *__restrict g = grad + to * channels;
            for (int64_t c = 0; c < channels; c++) w[c] += g[c] * v[c];
        });
    });
}
}
