/* Convolutional tanh nets with cross-entropy: losses, gradients of many nets, and the dense exact Hessian.
 *
 * One lane of a vector register is one example, so every product is weight (a broadcast scalar) times a vector
 * of examples: no patches are copied and nothing is padded. Maps are [row][column][channel] of vectors. A tile
 * is LANES examples; lanes beyond the last example carry weight zero.
 *
 * Compiled once per floating type (REAL, INT: float and int32_t, or double and int64_t) by compiled.py, which
 * also describes each function's arguments. Sums run over tiles first and over lanes last.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#define PIXELS 2 /* outputs side by side: their accumulators fill the registers */
#define TAPS 3
#elif defined(__AVX__)
#define BYTES 32
#define PIXELS 1
#define TAPS 1
#else
#define BYTES 16
#define PIXELS 1
#define TAPS 1
#endif
#define LANES ((int)(BYTES / sizeof(REAL)))
#define WIDE 8 /* channels side by side */
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

typedef REAL vec __attribute__((vector_size(BYTES)));
typedef INT ivec __attribute__((vector_size(BYTES)));

enum { CONV = 0, MEAN = 1 };

/* One stage: a convolution without padding (a linear layer is one whose kernel is the whole map), with tanh
 * where asked, or the mean over the map. Offsets are into the flat parameters; bias_at is -1 where none. */
typedef struct {
    int64_t kind, h, w, c, kh, kw, sh, sw, oh, ow, o, tanh, weight_at, bias_at;
} stage;

INLINE vec fill(REAL a) { return a - (vec){0}; }

INLINE vec choose(ivec where, vec a, vec b) { return (vec)(((ivec)a & where) | ((ivec)b & ~where)); }

/* exp: 2^n times a Taylor polynomial on |r| <= ln(2)/2, right to a few units of rounding. */
INLINE vec vexp(vec z) {
    const int wide = sizeof(REAL) == 8;
    const REAL magic = wide ? (REAL)6755399441055744.0 : (REAL)12582912.0f;
    const REAL low = wide ? (REAL)-700.0 : (REAL)-86.0f, high = wide ? (REAL)700.0 : (REAL)86.0f;
    z = choose(z < low, fill(low), z);
    z = choose(z > high, fill(high), z);
    vec shifted = z * (REAL)1.44269504088896340736 + magic;
    vec n = shifted - magic;
    vec r = z - n * (wide ? (REAL)6.93147180369123816490e-01 : (REAL)0.693359375f);
    r = r - n * (wide ? (REAL)1.90821492927058770002e-10 : (REAL)-2.12194440e-4f);
    static const double inverse[] = {1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040,
                                     1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800,
                                     1.0 / 479001600, 1.0 / 6227020800.0};
    vec y = fill((REAL)(wide ? inverse[13] : inverse[7]));
    _Pragma("GCC unroll 14") for (int i = wide ? 12 : 6; i >= 0; i--) y = y * r + (REAL)inverse[i];
    ivec bits = ((ivec)shifted - (ivec)fill(magic)) << (wide ? 52 : 23);
    return (vec)((ivec)y + bits);
}

/* tanh(x) = 1 - 2 / (exp(2x) + 1): right to a unit of rounding of 1. */
INLINE vec vtanh(vec x) { return (REAL)1 - (REAL)2 / (vexp(x + x) + (REAL)1); }

INLINE REAL sum(vec v) {
    REAL total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

INLINE int64_t size_in(const stage *s) { return s->h * s->w * s->c; }
INLINE int64_t size_out(const stage *s) { return s->oh * s->ow * s->o; }
INLINE int64_t size_weight(const stage *s) { return s->kind == CONV ? s->kh * s->kw * s->c * s->o : 0; }

/* ---- forward: y (+)= x * W, channels c0 .. c0 + cn of x alone ------------------------------------------- */

INLINE void forward_block(const stage *s, const vec *x, const REAL *W, const REAL *b, vec *y, int oy, int ox,
                          int ob, int c0, int cn, const int P, const int O) {
    vec a[2][WIDE];
    vec *out = y + ((int64_t)oy * s->ow + ox) * s->o + ob;
    UNROLL for (int p = 0; p < P; p++)
        UNROLL for (int j = 0; j < O; j++) a[p][j] = b ? fill(b[ob + j]) : (vec){0};
    const int whole = cn == s->c; /* then a row of the window is contiguous */
    const int outer = whole ? 1 : s->kw, inner = whole ? s->kw * s->c : cn;
    for (int ky = 0; ky < s->kh; ky++)
        for (int kx = 0; kx < outer; kx++) {
            const vec *row = x + (((int64_t)oy * s->sh + ky) * s->w + ox * s->sw + kx) * s->c + c0;
            const REAL *w = W + (((int64_t)ky * s->kw + kx) * s->c + c0) * s->o + ob;
            for (int k = 0; k < inner; k++, w += s->o) {
                vec v[2];
                UNROLL for (int p = 0; p < P; p++) v[p] = row[k + p * s->sw * s->c];
                UNROLL for (int j = 0; j < O; j++) {
                    vec wj = fill(w[j]);
                    UNROLL for (int p = 0; p < P; p++) a[p][j] += v[p] * wj;
                }
            }
        }
    UNROLL for (int p = 0; p < P; p++)
        UNROLL for (int j = 0; j < O; j++) out[p * s->o + j] = a[p][j];
}

#define SWITCH(n, call)                                                                                       \
    switch (n) {                                                                                              \
    case 1: { enum { N = 1 }; call; break; }                                                                  \
    case 2: { enum { N = 2 }; call; break; }                                                                  \
    case 3: { enum { N = 3 }; call; break; }                                                                  \
    case 4: { enum { N = 4 }; call; break; }                                                                  \
    case 5: { enum { N = 5 }; call; break; }                                                                  \
    case 6: { enum { N = 6 }; call; break; }                                                                  \
    case 7: { enum { N = 7 }; call; break; }                                                                  \
    default: { enum { N = 8 }; call; break; }                                                                 \
    }

static void forward(const stage *s, const vec *x, const REAL *W, const REAL *b, vec *y, int c0, int cn) {
    if (s->kind == MEAN) {
        const REAL share = (REAL)1 / (REAL)(s->h * s->w);
        for (int c = 0; c < s->c; c++) {
            vec a = {0};
            for (int i = 0; i < s->h * s->w; i++) a += x[i * s->c + c];
            y[c] = a * share;
        }
        return;
    }
    for (int ob = 0; ob < s->o; ob += WIDE) {
        int left = s->o - ob < WIDE ? s->o - ob : WIDE;
        for (int oy = 0; oy < s->oh; oy++) {
            int ox = 0;
            for (; ox + PIXELS <= s->ow; ox += PIXELS)
                SWITCH(left, forward_block(s, x, W, b, y, oy, ox, ob, c0, cn, PIXELS, N))
            for (; ox < s->ow; ox++) SWITCH(left, forward_block(s, x, W, b, y, oy, ox, ob, c0, cn, 1, N))
        }
    }
}

static void tanhs(vec *y, int64_t count) {
    for (int64_t i = 0; i < count; i++) y[i] = vtanh(y[i]);
}

/* ---- gradient of the weights: G[k][o] += sum over places of x[k] g[o] ------------------------------------ */

INLINE void weight_block(const stage *s, const vec *x, const vec *g, vec *G, int ky, int k0, int ob, const int K,
                         const int O) {
    vec a[TAPS][WIDE];
    vec *at = G + ((int64_t)ky * s->kw * s->c + k0) * s->o + ob;
    UNROLL for (int k = 0; k < K; k++)
        UNROLL for (int j = 0; j < O; j++) a[k][j] = at[k * s->o + j];
    for (int oy = 0; oy < s->oh; oy++) {
        const vec *row = x + ((int64_t)oy * s->sh + ky) * s->w * s->c + k0;
        const vec *up = g + (int64_t)oy * s->ow * s->o + ob;
        for (int ox = 0; ox < s->ow; ox++, row += s->sw * s->c, up += s->o) {
            vec v[TAPS];
            UNROLL for (int k = 0; k < K; k++) v[k] = row[k];
            UNROLL for (int j = 0; j < O; j++) {
                vec gj = up[j];
                UNROLL for (int k = 0; k < K; k++) a[k][j] += v[k] * gj;
            }
        }
    }
    UNROLL for (int k = 0; k < K; k++)
        UNROLL for (int j = 0; j < O; j++) at[k * s->o + j] = a[k][j];
}

/* Of all input channels, or of channel ``only`` (where that is not negative). */
static void weight_gradient(const stage *s, const vec *x, const vec *g, vec *G, int only) {
    if (s->kind == MEAN) return;
    for (int ob = 0; ob < s->o; ob += WIDE) {
        int left = s->o - ob < WIDE ? s->o - ob : WIDE, row = s->kw * s->c;
        for (int ky = 0; ky < s->kh; ky++) {
            if (only >= 0) {
                for (int k = only; k < row; k += s->c) SWITCH(left, weight_block(s, x, g, G, ky, k, ob, 1, N))
                continue;
            }
            int k = 0;
            for (; k + TAPS <= row; k += TAPS) SWITCH(left, weight_block(s, x, g, G, ky, k, ob, TAPS, N))
            for (; k < row; k++) SWITCH(left, weight_block(s, x, g, G, ky, k, ob, 1, N))
        }
    }
}

static void bias_gradient(const stage *s, const vec *g, vec *G) {
    if (s->kind == MEAN || s->bias_at < 0) return;
    for (int64_t i = 0; i < s->oh * s->ow; i++)
        for (int j = 0; j < s->o; j++) G[j] += g[i * s->o + j];
}

/* ---- gradient of the inputs: gx[place][c] = sum over windows that hold it, times tanh' of y where given -- */

INLINE void input_block(const stage *s, const vec *g, const REAL *W, const vec *y, vec *gx, int iy, int ix, int cb,
                        int ky0, int ky1, int kx0, int kx1, const int P, const int C) {
    vec a[2][WIDE];
    UNROLL for (int p = 0; p < P; p++)
        UNROLL for (int j = 0; j < C; j++) a[p][j] = (vec){0};
    for (int ky = ky0; ky <= ky1; ky += s->sh)
        for (int kx = kx0; kx <= kx1; kx += s->sw) {
            const vec *up = g + ((int64_t)((iy - ky) / s->sh) * s->ow + (ix - kx) / s->sw) * s->o;
            const REAL *w = W + ((int64_t)ky * s->kw + kx) * s->o * s->c + cb;
            for (int o = 0; o < s->o; o++, w += s->c) {
                vec v[2];
                UNROLL for (int p = 0; p < P; p++) v[p] = up[o + p * s->o];
                UNROLL for (int j = 0; j < C; j++) {
                    vec wj = fill(w[j]);
                    UNROLL for (int p = 0; p < P; p++) a[p][j] += v[p] * wj;
                }
            }
        }
    UNROLL for (int p = 0; p < P; p++) { /* the next place of the same phase lies a stride further */
        int64_t at = ((int64_t)iy * s->w + ix + p * s->sw) * s->c + cb;
        UNROLL for (int j = 0; j < C; j++) {
            vec slope = y ? (REAL)1 - y[at + j] * y[at + j] : fill(1);
            gx[at + j] = a[p][j] * slope;
        }
    }
}

/* The taps k0, k0 + stride, ... up to k1 whose window at place ``i`` exists; none if k0 > k1. */
INLINE void taps(int64_t i, int64_t kernel, int64_t stride, int64_t windows, int *k0, int *k1) {
    int64_t first = i % stride, last = kernel - 1;
    while (first < kernel && (i - first) / stride >= windows) first += stride;
    if (last > i) last = i;
    *k0 = (int)first, *k1 = (int)last;
}

static void input_gradient(const stage *s, const vec *g, const REAL *W, const vec *y, vec *gx) {
    if (s->kind == MEAN) {
        const REAL share = (REAL)1 / (REAL)(s->h * s->w);
        for (int64_t i = 0; i < s->h * s->w; i++)
            for (int c = 0; c < s->c; c++) {
                vec v = y ? y[i * s->c + c] : (vec){0};
                gx[i * s->c + c] = g[c] * share * ((REAL)1 - v * v);
            }
        return;
    }
    for (int cb = 0; cb < s->c; cb += WIDE) {
        int left = s->c - cb < WIDE ? s->c - cb : WIDE;
        for (int iy = 0; iy < s->h; iy++) {
            int ky0, ky1;
            taps(iy, s->kh, s->sh, s->oh, &ky0, &ky1);
            for (int phase = 0; phase < s->sw; phase++)
                for (int ix = phase; ix < s->w;) {
                    int kx0, kx1, nx0, nx1, next = ix + (int)s->sw;
                    taps(ix, s->kw, s->sw, s->ow, &kx0, &kx1);
                    taps(next, s->kw, s->sw, s->ow, &nx0, &nx1);
                    /* two places of one phase with the same taps go side by side */
                    int same = PIXELS == 2 && next < s->w && kx0 == nx0 && (kx1 - kx0) / s->sw == (nx1 - nx0) / s->sw &&
                               kx1 >= kx0 && nx1 >= nx0;
                    if (same) {
                        SWITCH(left, input_block(s, g, W, y, gx, iy, ix, cb, ky0, ky1, kx0, kx1, PIXELS, N))
                        ix = next + (int)s->sw;
                    } else {
                        SWITCH(left, input_block(s, g, W, y, gx, iy, ix, cb, ky0, ky1, kx0, kx1, 1, N))
                        ix = next;
                    }
                }
        }
    }
}

/* ---- one net -------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t stages, parameters;
    const stage *s;
    REAL **up, **down, **bias; /* weights by [tap][c][o], by [tap][o][c], and biases */
    vec **x, **g, **G, **B;    /* maps, their signals, gradients of weights and biases, a stage each */
    vec **dx, **dg, **dz;      /* maps and signals along a direction, and maps before the tanh (Hessian alone) */
    void *memory[512];
    int owned;
} net;

static void *room(net *n, size_t bytes) {
    size_t size = (bytes + 4095) / 4096 * 4096 + 4096;
    void *p = n->owned < 512 ? aligned_alloc(4096, size) : NULL;
    if (p) memset(p, 0, size), n->memory[n->owned++] = p;
    return p;
}

static void close_net(net *n) {
    for (int i = 0; i < n->owned; i++) free(n->memory[i]);
    free(n);
}

static net *open_net(const stage *s, int64_t stages, int64_t parameters, int second) {
    net *n = calloc(1, sizeof(net));
    if (!n) return NULL;
    n->s = s, n->stages = stages, n->parameters = parameters;
    void ***lists[] = {(void ***)&n->up, (void ***)&n->down, (void ***)&n->bias, (void ***)&n->x, (void ***)&n->g,
                       (void ***)&n->G,  (void ***)&n->B,    (void ***)&n->dx,   (void ***)&n->dg,
                       (void ***)&n->dz};
    int ok = stages <= 32;
    for (int i = 0; ok && i < 10; i++) ok = (*lists[i] = room(n, sizeof(void *) * (stages + 1))) != NULL;
    for (int64_t i = 0; ok && i < stages; i++) {
        int64_t weights = size_weight(&s[i]);
        ok = (n->up[i] = room(n, weights * sizeof(REAL))) && (n->down[i] = room(n, weights * sizeof(REAL))) &&
             (n->bias[i] = room(n, s[i].o * sizeof(REAL))) && (n->G[i] = room(n, weights * sizeof(vec))) &&
             (n->B[i] = room(n, s[i].o * sizeof(vec)));
    }
    for (int64_t i = 0; ok && i <= stages; i++) {
        int64_t count = i < stages ? size_in(&s[i]) : size_out(&s[i - 1]);
        ok = (n->x[i] = room(n, count * sizeof(vec))) && (n->g[i] = room(n, count * sizeof(vec)));
        if (ok && second)
            ok = (n->dx[i] = room(n, count * sizeof(vec))) && (n->dg[i] = room(n, count * sizeof(vec))) &&
                 (n->dz[i] = room(n, count * sizeof(vec)));
    }
    if (ok) return n;
    close_net(n);
    return NULL;
}

static void set_weights(net *n, const REAL *theta) {
    for (int64_t i = 0; i < n->stages; i++) {
        const stage *s = &n->s[i];
        if (s->kind == MEAN) continue;
        for (int64_t o = 0; o < s->o; o++)
            for (int64_t c = 0; c < s->c; c++)
                for (int64_t k = 0; k < s->kh * s->kw; k++) {
                    REAL w = theta[s->weight_at + (o * s->c + c) * s->kh * s->kw + k];
                    n->up[i][(k * s->c + c) * s->o + o] = w;
                    n->down[i][(k * s->o + o) * s->c + c] = w;
                }
        for (int64_t o = 0; o < s->o; o++) n->bias[i][o] = s->bias_at < 0 ? 0 : theta[s->bias_at + o];
    }
}

/* LANES examples into vectors: ``images`` is (n, c, h, w). */
static void pack(const stage *s, const REAL *images, const int64_t *idx, int lanes, vec *x) {
    int64_t area = s->h * s->w, whole = area * s->c;
    for (int lane = 0; lane < LANES; lane++) {
        const REAL *image = images + idx[lane < lanes ? lane : 0] * whole;
        for (int64_t c = 0; c < s->c; c++)
            for (int64_t i = 0; i < area; i++) ((REAL *)&x[i * s->c + c])[lane] = image[c * area + i];
    }
}

static void run_forward(net *n) {
    for (int64_t i = 0; i < n->stages; i++) {
        forward(&n->s[i], n->x[i], n->up[i], n->bias[i], n->x[i + 1], 0, (int)n->s[i].c);
        if (n->s[i].tanh) tanhs(n->x[i + 1], size_out(&n->s[i]));
    }
}

/* What the examples of a tile are compared with: ``q`` is a row of soft labels each and ``total`` its sum. Where
 * ``q`` is NULL, q is the unit vector of the label. */
typedef struct {
    int64_t labels[64];
    vec *q, total;
} aims;

/* Softmax of the outputs into ``p``; the losses of the lanes where asked. */
static void softmax(const net *n, const aims *a, vec *p, REAL *losses) {
    int64_t classes = n->s[n->stages - 1].o;
    const vec *o = n->x[n->stages];
    vec top = o[0], total = {0};
    for (int64_t c = 1; c < classes; c++) top = choose(o[c] > top, o[c], top);
    for (int64_t c = 0; c < classes; c++) total += (p[c] = vexp(o[c] - top));
    for (int64_t c = 0; c < classes; c++) p[c] /= total;
    if (!losses) return;
    for (int lane = 0; lane < LANES; lane++) {
        REAL whole = (REAL)log((double)total[lane]) + top[lane];
        losses[lane] = a->q ? 0 : whole - o[a->labels[lane]][lane];
        if (a->q)
            for (int64_t c = 0; c < classes; c++) losses[lane] += a->q[c][lane] * (whole - o[c][lane]);
    }
}

/* Signals at the outputs: weight (total p - q), which is weight (p - e_y) for a label. */
static void output_signals(net *n, const aims *a, const vec *p, vec weight) {
    vec *g = n->g[n->stages];
    if (a->q)
        for (int64_t c = 0; c < n->s[n->stages - 1].o; c++) g[c] = (a->total * p[c] - a->q[c]) * weight;
    else {
        for (int64_t c = 0; c < n->s[n->stages - 1].o; c++) g[c] = p[c] * weight;
        for (int lane = 0; lane < LANES; lane++) ((REAL *)&g[a->labels[lane]])[lane] -= weight[lane];
    }
    const stage *last = &n->s[n->stages - 1];
    if (last->tanh)
        for (int64_t c = 0; c < last->o; c++) g[c] *= (REAL)1 - n->x[n->stages][c] * n->x[n->stages][c];
}

/* From the outputs down to stage ``first``; gradients of weights are summed where ``weights``. g[i + 1] ends as
 * the signal before stage i's tanh. */
static void run_backward(net *n, int64_t first, int weights) {
    for (int64_t i = n->stages - 1; i >= first; i--) {
        const stage *s = &n->s[i];
        if (weights) weight_gradient(s, n->x[i], n->g[i + 1], n->G[i], -1), bias_gradient(s, n->g[i + 1], n->B[i]);
        if (i > first) input_gradient(s, n->g[i + 1], n->down[i], n->s[i - 1].tanh ? n->x[i] : NULL, n->g[i]);
    }
}

static void clear(net *n, int64_t first) {
    for (int64_t i = first; i < n->stages; i++) {
        memset(n->G[i], 0, size_weight(&n->s[i]) * sizeof(vec));
        memset(n->B[i], 0, n->s[i].o * sizeof(vec));
    }
}

/* Adds the lanes of all gradients from stage ``first`` on to ``out``, in torch's order of parameters. */
static void collect(const net *n, int64_t first, REAL *out) {
    for (int64_t i = first; i < n->stages; i++) {
        const stage *s = &n->s[i];
        if (s->kind == MEAN) continue;
        for (int64_t o = 0; o < s->o; o++)
            for (int64_t c = 0; c < s->c; c++)
                for (int64_t k = 0; k < s->kh * s->kw; k++)
                    out[s->weight_at + (o * s->c + c) * s->kh * s->kw + k] += sum(n->G[i][(k * s->c + c) * s->o + o]);
        if (s->bias_at >= 0)
            for (int64_t o = 0; o < s->o; o++) out[s->bias_at + o] += sum(n->B[i][o]);
    }
}

/* Of the examples ``idx``: from ``labels``, or from the rows of ``soft`` (n, classes) where that is given. */
static int aims_of(const int64_t *labels, const REAL *soft, int64_t classes, const int64_t *idx, int lanes, aims *a) {
    a->total = (vec){0};
    for (int lane = 0; lane < LANES; lane++) {
        int64_t i = idx[lane < lanes ? lane : 0];
        if (!soft) a->labels[lane] = labels[i];
        for (int64_t c = 0; soft && c < classes; c++) {
            ((REAL *)&a->q[c])[lane] = soft[i * classes + c];
            ((REAL *)&a->total)[lane] += soft[i * classes + c];
        }
    }
    return lanes;
}

int lanes(void) { return LANES; }

/* Sums of gradients and losses over ``count`` examples ``idx`` for ``m`` nets: thetas (m, p), out (m, p),
 * losses (m, count) or NULL. Net j leaves out example skip[j] (-1: none) where skip is given. ``soft`` (n, classes)
 * stands in the place of ``labels`` where it is not NULL. */
int gradients(const stage *s, int64_t stages, int64_t p, const REAL *images, const int64_t *labels, const REAL *soft,
              const int64_t *idx, int64_t count, const REAL *thetas, int64_t m, const int64_t *skip, REAL *out,
              REAL *losses) {
    net *n = open_net(s, stages, p, 0);
    int64_t tiles = (count + LANES - 1) / LANES, classes = s[stages - 1].o, block = 64;
    vec *packed = n ? room(n, (size_t)block * size_in(&s[0]) * sizeof(vec)) : NULL;
    vec *probability = n ? room(n, classes * sizeof(vec)) : NULL, *own = n ? n->x[0] : NULL;
    aims a = {.q = n && soft ? room(n, classes * sizeof(vec)) : NULL};
    if (!packed || !probability || (soft && !a.q)) {
        if (n) close_net(n);
        return 1;
    }
    for (int64_t start = 0; start < tiles; start += block) {
        int64_t stop = start + block < tiles ? start + block : tiles;
        for (int64_t t = start; t < stop; t++) {
            int64_t left = count - t * LANES;
            pack(&s[0], images, idx + t * LANES, (int)(left < LANES ? left : LANES),
                 packed + (t - start) * size_in(&s[0]));
        }
        for (int64_t j = 0; j < m; j++) {
            set_weights(n, thetas + j * p);
            clear(n, 0);
            for (int64_t t = start; t < stop; t++) {
                int64_t left = count - t * LANES;
                int here = aims_of(labels, soft, classes, idx + t * LANES, (int)(left < LANES ? left : LANES), &a);
                REAL tile_losses[64];
                vec weight = {0};
                for (int lane = 0; lane < here; lane++)
                    ((REAL *)&weight)[lane] = skip && skip[j] >= 0 && skip[j] == idx[t * LANES + lane] ? 0 : 1;
                n->x[0] = packed + (t - start) * size_in(&s[0]);
                run_forward(n);
                softmax(n, &a, probability, losses ? tile_losses : NULL);
                if (losses)
                    for (int lane = 0; lane < here; lane++) losses[j * count + t * LANES + lane] = tile_losses[lane];
                if (!out) continue;
                output_signals(n, &a, probability, weight);
                run_backward(n, 0, 1);
            }
            if (out) collect(n, 0, out + j * p);
        }
    }
    n->x[0] = own;
    close_net(n);
    return 0;
}

/* ---- the exact Hessian of the summed losses, column by column --------------------------------------------- */

/* dz of the stage along its own parameter ``(k, o)`` (k < 0: its bias): channel o alone is not zero. */
static void unit_tangent(const stage *s, const vec *x, int64_t ky, int64_t kx, int64_t c, int64_t o, vec *dz) {
    memset(dz, 0, size_out(s) * sizeof(vec));
    for (int64_t oy = 0; oy < s->oh; oy++)
        for (int64_t ox = 0; ox < s->ow; ox++)
            dz[(oy * s->ow + ox) * s->o + o] =
                ky < 0 ? fill(1) : x[((oy * s->sh + ky) * s->w + ox * s->sw + kx) * s->c + c];
}

/* One direction at one tile: dz[first + 1] holds that of stage ``first``, channel ``o`` alone; the gradients of all
 * stages from ``first`` on, differentiated along it, are added to G and B. This is Pearlmutter's R-operator. The
 * direction changes no weight above stage ``first``, and nothing below it is asked for: the Hessian is symmetric. */
static void second(net *n, int64_t first, int64_t o, const vec *p, vec weight) {
    int64_t last = n->stages - 1;
    for (int64_t i = first; i <= last; i++) {
        const stage *s = &n->s[i];
        vec *dz = n->dz[i + 1], *dy = n->dx[i + 1], *y = n->x[i + 1];
        if (i > first) {
            int only = i == first + 1 && s->kind == CONV; /* dx has one channel */
            forward(s, n->dx[i], n->up[i], NULL, dz, only ? (int)o : 0, only ? 1 : (int)s->c);
        }
        for (int64_t k = 0; k < size_out(s); k++) {
            vec slope = s->tanh ? (REAL)1 - y[k] * y[k] : fill(1);
            dy[k] = dz[k] * slope;
        }
    }
    vec *d = n->dx[last + 1], *dg = n->dg[last + 1], pairing = {0};
    for (int64_t c = 0; c < n->s[last].o; c++) pairing += p[c] * d[c];
    for (int64_t c = 0; c < n->s[last].o; c++) dg[c] = p[c] * (d[c] - pairing) * weight;
    for (int64_t i = last; i >= first; i--) {
        const stage *s = &n->s[i];
        vec *signal = n->dg[i + 1], *y = n->x[i + 1], *g = n->g[i + 1], *dz = n->dz[i + 1];
        if (s->tanh) /* g is that before the tanh, so d(g' (1 - y^2)) = dg' (1 - y^2) - 2 y g dz */
            for (int64_t k = 0; k < size_out(s); k++)
                signal[k] = signal[k] * ((REAL)1 - y[k] * y[k]) - (REAL)2 * y[k] * g[k] * dz[k];
        weight_gradient(s, n->x[i], signal, n->G[i], -1);
        bias_gradient(s, signal, n->B[i]);
        if (i == first) break;
        weight_gradient(s, n->dx[i], g, n->G[i], i == first + 1 ? (int)o : -1);
        input_gradient(s, signal, n->down[i], NULL, n->dg[i]);
    }
}

/* Adds the Hessian of sum_i weight_i L_i over ``count`` examples to H (p, p): entries of row r whose column belongs
 * to r's own stage or to a later one. The rest follows from symmetry. */
int hessian(const stage *s, int64_t stages, int64_t p, const REAL *images, const int64_t *labels, const REAL *soft,
            const int64_t *idx, int64_t count, const REAL *weights, const REAL *theta, REAL *H) {
    net *n = open_net(s, stages, p, 1);
    int64_t classes = s[stages - 1].o;
    vec *probability = n ? room(n, classes * sizeof(vec)) : NULL;
    aims a = {.q = n && soft ? room(n, classes * sizeof(vec)) : NULL};
    if (!probability || (soft && !a.q)) {
        if (n) close_net(n);
        return 1;
    }
    set_weights(n, theta);
    for (int64_t at = 0; at < count; at += LANES) {
        int64_t left = count - at;
        int here = aims_of(labels, soft, classes, idx + at, (int)(left < LANES ? left : LANES), &a);
        vec weight = {0};
        for (int lane = 0; lane < here; lane++) ((REAL *)&weight)[lane] = weights ? weights[at + lane] : 1;
        pack(&s[0], images, idx + at, here, n->x[0]);
        run_forward(n);
        softmax(n, &a, probability, NULL);
        output_signals(n, &a, probability, weight);
        run_backward(n, 0, 0);
        if (soft) weight *= a.total; /* the Hessian of a loss in its outputs is total (diag(p) - p p') */
        for (int64_t i = 0; i < stages; i++) {
            if (s[i].kind == MEAN) continue;
            for (int64_t o = 0; o < s[i].o; o++)
                for (int64_t k = s[i].bias_at < 0 ? 0 : -1; k < s[i].c * s[i].kh * s[i].kw; k++) {
                    int64_t area = s[i].kh * s[i].kw, row = k < 0 ? s[i].bias_at + o : s[i].weight_at + o * s[i].c * area + k;
                    int64_t place = k < 0 ? 0 : k % area, c = k < 0 ? 0 : k / area;
                    unit_tangent(&s[i], n->x[i], k < 0 ? -1 : place / s[i].kw, place % s[i].kw, c, o, n->dz[i + 1]);
                    clear(n, i);
                    second(n, i, o, probability, weight);
                    collect(n, i, H + row * p);
                }
        }
    }
    close_net(n);
    return 0;
}
