// The two steps of a ConvNeXt block that PyTorch is slow at on a CPU: the depthwise convolution (its backward pass above
// all) and GELU with GRN. Matrix products, norms and sums are left to PyTorch.
//
// Compiled and loaded by cpu_kernels.py, which also says what the arguments mean and allocates every result; no torch
// headers, so that it compiles in seconds. Touch it for speed; not for what the steps mean (layout.py, grn.py), which the
// tests hold against PyTorch. Guarded by tests/models/test_cpu_kernels.py.
//
// Values are float or bfloat16, arithmetic is float. A `vec` holds LANES neighbouring channels. Results do not depend on
// the number of threads: what is added up in parts is cut into the same parts always.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

using integer = int64_t;
using bfloat16 = uint16_t;
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float unaligned_vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t bits_vec __attribute__((vector_size(4 * LANES)));
typedef int32_t int_vec __attribute__((vector_size(4 * LANES)));
typedef uint16_t half_vec __attribute__((vector_size(2 * LANES)));

// ---------------------------------------------------------------------------------------------- loading and storing

static inline vec all(float value) { return value - vec{}; }

static inline vec from_bits(half_vec half) { return (vec)(__builtin_convertvector(half, bits_vec) << 16); }

static inline half_vec to_bits(vec value) {  // round to nearest even; NaN stays NaN
    bits_vec bits = (bits_vec)value;
    bits_vec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    bits_vec quiet = (bits >> 16) | 0x40;
    return __builtin_convertvector((int_vec)(value == value) ? rounded : quiet, half_vec);
}

static inline vec load(const float* from) { return *(const unaligned_vec*)from; }
static inline vec load(const bfloat16* from) {
    half_vec half;
    std::memcpy(&half, from, sizeof half);
    return from_bits(half);
}
static inline void store(float* to, vec value) { *(unaligned_vec*)to = value; }
static inline void store(bfloat16* to, vec value) {
    half_vec half = to_bits(value);
    std::memcpy(to, &half, sizeof half);
}

// The last channels, where fewer than LANES are left; the other lanes are zero
static inline vec load(const float* from, int lanes) {
    if (lanes == LANES) return load(from);
    vec value = {};
    std::memcpy(&value, from, sizeof(float) * lanes);
    return value;
}
static inline vec load(const bfloat16* from, int lanes) {
    if (lanes == LANES) return load(from);
    half_vec half = {};
    std::memcpy(&half, from, sizeof(bfloat16) * lanes);
    return from_bits(half);
}
static inline void store(float* to, vec value, int lanes) {
    if (lanes == LANES) return store(to, value);
    std::memcpy(to, &value, sizeof(float) * lanes);
}
static inline void store(bfloat16* to, vec value, int lanes) {
    if (lanes == LANES) return store(to, value);
    half_vec half = to_bits(value);
    std::memcpy(to, &half, sizeof(bfloat16) * lanes);
}

// ------------------------------------------------------------------------------------------ depthwise 7 x 7 convolution
//
// Of each image, a band of rows and LANES channels are laid out in a buffer with zeros in hidden cells and around the
// map. There every output position finds its neighbours without asking which of them exist.

constexpr int KERNEL = 7, REACH = 3;
constexpr integer BUFFER_BYTES = 384 * 1024;  // stays in a second-level cache

// Cells of P x Q positions and C channels, `visible` of each image's grid of rows x columns cells, ascending; the
// grid positions of all of them in `cells` (index within the batch's grids), or null when each image is one cell.
struct Cells {
    const integer* cells;
    integer images, rows, columns, visible, P, Q, C;

    integer height() const { return rows * P; }
    integer pitch() const { return columns * Q + 2 * REACH; }  // positions per row of the buffer
    integer blocks() const { return (C + LANES - 1) / LANES; }
    int lanes(integer block) const { return std::min<integer>(LANES, C - block * LANES); }
    integer rows_per_band() const {
        integer fitting = BUFFER_BYTES / (integer)(pitch() * sizeof(vec)) - 2 * REACH;
        return std::min(height(), std::max<integer>(fitting, 8));
    }
    integer bands() const { return (height() + rows_per_band() - 1) / rows_per_band(); }
    integer grid_position(integer cell) const { return cells ? cells[cell] % (rows * columns) : 0; }
    integer first_row(integer cell) const { return grid_position(cell) / columns * P; }
    integer first_column(integer cell) const { return grid_position(cell) % columns * Q; }
    bool all_visible() const { return visible == rows * columns; }
};

class Buffer {
  public:
    explicit Buffer(const Cells& shape) : shape(shape) {
        size = (shape.rows_per_band() + 2 * REACH) * shape.pitch();
        at = (vec*)std::aligned_alloc(64, (size * sizeof(vec) + 63) / 64 * 64);
        std::memset((void*)at, 0, size * sizeof(vec));
    }
    ~Buffer() { std::free(at); }

    // Rows [first - REACH, last + REACH) of an image, as far as they exist
    template <class T> void fill(const T* values, integer image, integer first, integer last, integer block) {
        bool other_place = image != filled_image || first != filled_first;
        if (other_place && (shape.bands() > 1 || !shape.all_visible())) std::memset((void*)at, 0, size * sizeof(vec));
        filled_image = image, filled_first = first;
        int lanes = shape.lanes(block);
        for (integer cell = image * shape.visible; cell < (image + 1) * shape.visible; ++cell) {
            integer top = shape.first_row(cell);
            integer from = std::max(top, first - REACH), to = std::min(top + shape.P, last + REACH);
            for (integer row = from; row < to; ++row) {
                const T* source = values + ((cell * shape.P + row - top) * shape.Q) * shape.C + block * LANES;
                vec* target = at + (row - first + REACH) * shape.pitch() + shape.first_column(cell) + REACH;
                if (lanes == LANES)
                    for (integer x = 0; x < shape.Q; ++x) target[x] = load(source + x * shape.C);
                else
                    for (integer x = 0; x < shape.Q; ++x) target[x] = load(source + x * shape.C, lanes);
            }
        }
    }

    // The window of a position: its upper left corner, of the first position of a row of a cell
    const vec* window(integer row, integer column) const { return at + (row - filled_first) * shape.pitch() + column; }

  private:
    const Cells& shape;
    vec* at;
    integer size, filled_image = -1, filled_first = -1;
};

// N outputs side by side; each input is read once per row of the kernel. An addition takes four cycles, and four sums at
// least can grow at once: fewer outputs are added up in several parts each.
template <int N, class T>
static inline void convolve_piece(const vec* window, integer pitch, const vec* weights, vec bias, T* out, integer C, int lanes) {
    constexpr int PARTS = N >= 4 ? 1 : 4 / N;
    vec parts[PARTS][N] = {};
    for (int n = 0; n < N; ++n) parts[0][n] = bias;
#pragma GCC unroll 8
    for (int row = 0; row < KERNEL; ++row, window += pitch, weights += KERNEL) {
        vec* sums = parts[row % PARTS];
        vec taps[KERNEL];
        for (int tap = 0; tap < KERNEL; ++tap) taps[tap] = weights[tap];
#pragma GCC unroll 32
        for (int i = 0; i < N + KERNEL - 1; ++i) {
            vec value = window[i];
#pragma GCC unroll 8
            for (int tap = 0; tap < KERNEL; ++tap)
                if (i - tap >= 0 && i - tap < N) sums[i - tap] += value * taps[tap];
        }
    }
    vec* sums = parts[0];
    for (int part = 1; part < PARTS; ++part)
        for (int n = 0; n < N; ++n) sums[n] += parts[part][n];
    if (lanes == LANES)
        for (int n = 0; n < N; ++n) store(out + n * C, sums[n]);
    else
        for (int n = 0; n < N; ++n) store(out + n * C, sums[n], lanes);
}

template <class T>
static void convolve_row(const vec* window, integer pitch, const vec* weights, vec bias, T* out, integer length, integer C, int lanes) {
    integer x = 0;
    auto pieces = [&]<int N>(std::integral_constant<int, N>) {
        for (; x + N <= length; x += N) convolve_piece<N>(window + x, pitch, weights, bias, out + x * C, C, lanes);
    };
    if (length % 7 == 0) {  // 56, 28, 14, 7: the maps of a 224 px image
        pieces(std::integral_constant<int, 14>());
        pieces(std::integral_constant<int, 7>());
    }
    pieces(std::integral_constant<int, 8>());
    pieces(std::integral_constant<int, 4>());
    pieces(std::integral_constant<int, 2>());
    pieces(std::integral_constant<int, 1>());
}

// A row of a cell: its window in the buffer and its first value
template <class T> struct CellRow {
    const vec* window;
    const T* values;
};

constexpr integer POSITIONS_TOGETHER = 16;  // of the rows whose weight gradients are added up in registers

// d weight[k] += sum over positions p of x[p] * dy[p - k] in rows of `length` positions, with the buffer holding dy
template <class T>
static void add_weight_gradient(const CellRow<T>* rows, integer count, integer length, integer pitch, integer C, int lanes, vec* sums) {
    auto add = [&](auto&& load_value) {
        for (int row = 0; row < KERNEL; ++row) {
            vec taps[KERNEL];
            for (int tap = 0; tap < KERNEL; ++tap) taps[tap] = sums[row * KERNEL + tap];
            for (integer r = 0; r < count; ++r) {
                const vec* line = rows[r].window + (KERNEL - 1 - row) * pitch;
                const T* values = rows[r].values;
                for (integer i = 0; i < length; ++i) {
                    vec value = load_value(values + i * C);
#pragma GCC unroll 8
                    for (int tap = 0; tap < KERNEL; ++tap) taps[tap] += value * line[i + KERNEL - 1 - tap];
                }
            }
            for (int tap = 0; tap < KERNEL; ++tap) sums[row * KERNEL + tap] = taps[tap];
        }
    };
    if (lanes == LANES)
        add([](const T* at) { return load(at); });
    else
        add([&](const T* at) { return load(at, lanes); });
}

constexpr int TAPS = KERNEL * KERNEL;

// One vec per tap, for each block of channels
class Weights {
  public:
    explicit Weights(const Cells& shape) : blocks(shape.blocks()) {
        at = (vec*)std::aligned_alloc(64, blocks * TAPS * sizeof(vec));
    }
    ~Weights() { std::free(at); }

    // Out of (C, 7, 7); by all threads of a parallel region together, which wait for each other
    void lay_out(const float* weight, const Cells& shape, bool flipped) {
#pragma omp for schedule(static)
        for (integer block = 0; block < blocks; ++block) {
            float* to = (float*)(at + block * TAPS);
            std::memset((void*)to, 0, TAPS * sizeof(vec));
            for (int lane = 0; lane < shape.lanes(block); ++lane)
                for (int tap = 0; tap < TAPS; ++tap)
                    to[(flipped ? TAPS - 1 - tap : tap) * LANES + lane] = weight[(block * LANES + lane) * TAPS + tap];
        }
    }
    const vec* of(integer block) const { return at + block * TAPS; }

  private:
    integer blocks;
    vec* at;
};

// Calls act(row of the map, column of its first position, offset of its first value) for the rows [first, last) of an image
template <class F> static void for_rows(const Cells& shape, integer image, integer first, integer last, F&& act) {
    for (integer cell = image * shape.visible; cell < (image + 1) * shape.visible; ++cell) {
        integer top = shape.first_row(cell), column = shape.first_column(cell);
        for (integer row = std::max(top, first); row < std::min(top + shape.P, last); ++row)
            act(row, column, (cell * shape.P + row - top) * shape.Q * shape.C);
    }
}

template <class T>
static void depthwise_forward(const T* x, const float* weight, const float* bias, T* out, const Cells& shape) {
    integer bands = shape.bands(), height = shape.rows_per_band();
    Weights weights(shape);
#pragma omp parallel
    {
        Buffer buffer(shape);
        weights.lay_out(weight, shape, false);
        // all blocks of a band after each other: hidden positions are zeroed once
#pragma omp for collapse(2) schedule(static)
        for (integer place = 0; place < shape.images * bands; ++place)
            for (integer block = 0; block < shape.blocks(); ++block) {
                integer image = place / bands, first = place % bands * height, last = std::min(first + height, shape.height());
                int lanes = shape.lanes(block);
                buffer.fill(x, image, first, last, block);
                vec start = load(bias + block * LANES, lanes);
                for_rows(shape, image, first, last, [&](integer row, integer column, integer offset) {
                    convolve_row(buffer.window(row, column), shape.pitch(), weights.of(block), start, out + offset + block * LANES,
                                 shape.Q, shape.C, lanes);
                });
            }
    }
}

// partial: (slices, C, 50), the sums of 49 weights and the bias over the images and bands of each slice
template <class T>
static void depthwise_backward(const T* dy, const T* x, const float* weight, T* dx, float* partial, integer slices, const Cells& shape) {
    integer bands = shape.bands(), height = shape.rows_per_band(), places = shape.images * bands;
    Weights weights(shape);
#pragma omp parallel
    {
        Buffer buffer(shape);
        vec sums[TAPS + 1];
        weights.lay_out(weight, shape, true);
#pragma omp for collapse(2) schedule(dynamic, 1)
        for (integer slice = 0; slice < slices; ++slice)
            for (integer block = 0; block < shape.blocks(); ++block) {
                int lanes = shape.lanes(block);
                for (vec& sum : sums) sum = vec{};
                for (integer place = slice * places / slices; place < (slice + 1) * places / slices; ++place) {
                    integer image = place / bands, first = place % bands * height;
                    integer last = std::min(first + height, shape.height());
                    buffer.fill(dy, image, first, last, block);
                    CellRow<T> waiting[POSITIONS_TOGETHER];
                    integer count = 0;
                    auto add = [&] {
                        add_weight_gradient(waiting, count, shape.Q, shape.pitch(), shape.C, lanes, sums);
                        count = 0;
                    };
                    for_rows(shape, image, first, last, [&](integer row, integer column, integer offset) {
                        const vec* window = buffer.window(row, column);
                        offset += block * LANES;
                        convolve_row(window, shape.pitch(), weights.of(block), vec{}, dx + offset, shape.Q, shape.C, lanes);
                        const vec* here = window + REACH * shape.pitch() + REACH;
                        for (integer i = 0; i < shape.Q; ++i) sums[TAPS] += here[i];
                        waiting[count++] = {window, x + offset};
                        if (count * shape.Q >= POSITIONS_TOGETHER) add();
                    });
                    add();
                }
                float* to = partial + (slice * shape.C + block * LANES) * (TAPS + 1);
                for (int lane = 0; lane < lanes; ++lane)
                    for (int tap = 0; tap <= TAPS; ++tap) to[lane * (TAPS + 1) + tap] = sums[tap][lane];
            }
    }
}

// ----------------------------------------------------------------------------------------------------- GELU and GRN
//
// x is (B, M, F): M positions of each of B images, F channels. GRN needs the norms over M before it can scale, so there
// are two passes in each direction; GELU is computed anew in each, which costs less than a tensor of its own would.

// The normal distribution: Phi, and its derivative, the density. A kernel makes one for each thread and asks it.
#if defined(__AVX512F__)

// Phi(|x|) - 1/2 by the first terms of its Taylor series around the nearest of 32 nodes; all nodes' coefficients of a
// power lie in two registers, out of which one instruction takes each lane its own. No division, no exponential.
// Errors: 3e-8 of Phi, 2e-7 of the density.
constexpr int TERMS = 6, NODES = 2 * LANES;
constexpr float NODE_DISTANCE = 0.19f;  // the last node stands for all that is above 5.8, where Phi is 1 in float

static const struct Series {
    alignas(64) float coefficients[TERMS][NODES];

    Series() {
        for (int node = 0; node < NODES; ++node) {
            bool is_last = node == NODES - 1;
            double x = node * (double)NODE_DISTANCE, density = 0.3989422804014327 * __builtin_exp(-0.5 * x * x);
            double hermite[TERMS] = {1, x}, factor = -1;  // the density's n-th derivative is (-1)^n hermite[n] density
            for (int n = 2; n < TERMS; ++n) hermite[n] = x * hermite[n - 1] - (n - 1) * hermite[n - 2];
            coefficients[0][node] = is_last ? 0.5 : 0.5 * __builtin_erf(x * 0.7071067811865476);
            for (int n = 1; n < TERMS; ++n) {
                factor *= -(double)NODE_DISTANCE / n;
                coefficients[n][node] = is_last ? 0 : hermite[n - 1] * density * factor;
            }
        }
    }
} series;

class Normal {
  public:
    Normal() {
        for (int power = 0; power < TERMS; ++power)
            for (int half = 0; half < 2; ++half) table[power][half] = load(series.coefficients[power] + half * LANES);
    }
    vec cdf(vec x) const {
        vec unused;
        return evaluate<false>(x, unused);
    }
    vec cdf(vec x, vec& density) const { return evaluate<true>(x, density); }

  private:
    template <bool with_density> vec evaluate(vec x, vec& density) const {
        constexpr float SCALE = 1 / NODE_DISTANCE, LAST = NODE_DISTANCE * (NODES - 1);
        constexpr float ROUNDING = 12582912;  // 1.5 * 2^23: of a sum with it only the integer is left, in the lowest bits
        int_vec sign = (int_vec)x & (int_vec)all(-0.0f);
        vec size = (vec)((int_vec)x ^ sign);
        size = LAST < size ? all(LAST) : size;  // NaN stays NaN
        vec node = size * SCALE + ROUNDING, rest = size * SCALE - (node - ROUNDING);
        auto coefficient = [&](int power) { return __builtin_shuffle(table[power][0], table[power][1], (int_vec)node); };
        vec value = coefficient(TERMS - 1), slope = {};
#pragma GCC unroll 8
        for (int power = TERMS - 2; power >= 0; --power) {
            if (with_density) slope = slope * rest + value;
            value = value * rest + coefficient(power);
        }
        if (with_density) density = slope * SCALE;
        return 0.5f + (vec)((int_vec)value ^ sign);
    }

    vec table[TERMS][2];
};

#else

struct Normal {
    // erf(z) = z P(z^2) / Q(z^2) on |z| <= 4, beyond which it is 1 in float; the coefficients are a minimax fit of our own
    // (relative error 2.5e-8, 3.6e-7 as computed here)
    vec cdf(vec x) const {
        vec z = x * 0.70710678118654752f;
        z = z < -4.0f ? all(-4.0f) : z;
        z = z > 4.0f ? all(4.0f) : z;
        vec t = z * z;
        vec p = all(1.9867934358365456e-06f), q = all(3.74202854373657e-05f);
        p = p * t + 0.0002845657675426124f, q = q * t + 0.0011855653606835748f;
        p = p * t + 0.0038833157750907264f, q = q * t + 0.015207192242278057f;
        p = p * t + 0.05310165499258249f, q = q * t + 0.11534970414265595f;
        p = p * t + 0.1935443331604434f, q = q * t + 0.5048567549953588f;
        p = p * t + 1.1283791393343758f, q = q * t + 1.0f;
        return 0.5f + 0.5f * (z * p / q);
    }
    vec cdf(vec x, vec& density) const {
        density = 0.3989422804014327f * exp_of_negative(-0.5f * x * x);
        return cdf(x);
    }

  private:
    // 2^k times the series of the rest, |rest| <= ln(2) / 2
    static vec exp_of_negative(vec x) {
        x = x < -87.0f ? all(-87.0f) : x;
        int_vec k = __builtin_convertvector(x * 1.44269504088896341f - 0.5f, int_vec);
        vec n = __builtin_convertvector(k, vec);
        vec r = (x - n * 0.693145751953125f) - n * 1.428606820309417e-06f;
        vec p = all(1.0f / 5040);
        p = p * r + 1.0f / 720;
        p = p * r + 1.0f / 120;
        p = p * r + 1.0f / 24;
        p = p * r + 1.0f / 6;
        p = p * r + 0.5f;
        p = p * r + 1.0f;
        p = p * r + 1.0f;
        return p * (vec)((k + 127) << 23);
    }
};

#endif

constexpr integer ROWS = 64, ROWS_AT_ONCE = 8;

// Numbers that live as long as a call
struct Workspace {
    explicit Workspace(integer count) : at((float*)std::aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64)) {}
    ~Workspace() { std::free(at); }
    float* const at;
};

static inline integer chunks_of(integer M) { return (M + ROWS - 1) / ROWS; }

// The functions below share their loops among the threads of the parallel region that they are called in.

// Runs act(offset of the value, its channel, lanes, sums...) over M x F of each image in chunks of ROWS rows, with
// `num_sums` running sums per channel that end in partial (num_sums, B, chunks, F)
template <int num_sums, class F>
static void reduce_rows(float* partial, integer B, integer M, integer channels, F&& act) {
    integer chunks = chunks_of(M);
#pragma omp for schedule(static)
    for (integer item = 0; item < B * chunks; ++item) {
        integer image = item / chunks, first = item % chunks * ROWS, last = std::min(M, first + ROWS);
        float* out[num_sums];
        for (int s = 0; s < num_sums; ++s) {
            out[s] = partial + (s * B * chunks + item) * channels;
            std::memset(out[s], 0, sizeof(float) * channels);
        }
        for (integer top = first; top < last; top += ROWS_AT_ONCE)
            for (integer channel = 0; channel < channels; channel += LANES) {
                int lanes = std::min<integer>(LANES, channels - channel);
                vec sums[num_sums];
                for (int s = 0; s < num_sums; ++s) sums[s] = load(out[s] + channel, lanes);
                for (integer row = top; row < std::min(last, top + ROWS_AT_ONCE); ++row)
                    act((image * M + row) * channels + channel, lanes, sums);
                for (int s = 0; s < num_sums; ++s) store(out[s] + channel, sums[s], lanes);
            }
    }
}

// total (groups, F): sums over the chunks of partial (groups, chunks, F)
static void add_chunks(const float* partial, float* total, integer groups, integer chunks, integer F) {
#pragma omp for collapse(2) schedule(static)
    for (integer group = 0; group < groups; ++group)
        for (integer channel = 0; channel < F; channel += LANES) {
            int lanes = std::min<integer>(LANES, F - channel);
            vec sum = {};
            for (integer chunk = 0; chunk < chunks; ++chunk) sum += load(partial + (group * chunks + chunk) * F + channel, lanes);
            store(total + group * F + channel, sum, lanes);
        }
}

// D of an image: the mean of its channels' norms, and eps
static inline float denominator(const float* norms, integer F, double eps) {
    double sum = 0;
    for (integer channel = 0; channel < F; ++channel) sum += norms[channel];
    return (float)(sum / (double)F + eps);
}

// act(offset of the value, offset of its channel among those of all images, its channel, lanes) for all of x
template <class F> static void for_values(integer B, integer M, integer channels, F&& act) {
#pragma omp for schedule(static)
    for (integer row = 0; row < B * M; ++row) {
        integer image = row / M;
        for (integer channel = 0; channel < channels; channel += LANES)
            act(row * channels + channel, image * channels + channel, channel, std::min<integer>(LANES, channels - channel));
    }
}

// y (B, M, F) and norms (B, F) of GRN(GELU(x)); gamma and beta (F). With `in_place` y is x, and keeps GELU(x) between the
// two passes.
template <bool in_place, class T>
static void gelu_grn_forward(const T* x, const float* gamma, const float* beta, T* y, float* norms, double eps, integer B, integer M,
                             integer F) {
    Workspace partial(B * chunks_of(M) * F), scales(B * F);
#pragma omp parallel
    {
        const Normal normal;
        auto gelu = [&](vec value) { return value * normal.cdf(value); };
        reduce_rows<1>(partial.at, B, M, F, [&](integer at, int lanes, vec* sums) {
            vec value = gelu(load(x + at, lanes));
            sums[0] += value * value;
            if constexpr (in_place) store(y + at, value, lanes);
        });
        add_chunks(partial.at, norms, B, chunks_of(M), F);
#pragma omp for schedule(static)
        for (integer image = 0; image < B; ++image) {
            float *norm = norms + image * F, *scale = scales.at + image * F;
            for (integer channel = 0; channel < F; ++channel) norm[channel] = __builtin_sqrtf(norm[channel]);
            float mean = denominator(norm, F, eps);
            for (integer channel = 0; channel < F; ++channel) scale[channel] = 1 + gamma[channel] * (norm[channel] / mean);
        }
        for_values(B, M, F, [&](integer at, integer of_image, integer channel, int lanes) {
            vec value = load(x + at, lanes);
            if constexpr (!in_place) value = gelu(value);
            store(y + at, value * load(scales.at + of_image, lanes) + load(beta + channel, lanes), lanes);
        });
    }
}

// Gradients dx (B, M, F), dgamma and dbeta (F). With h = GELU(x), N = G / D and y = h (1 + gamma N) + beta:
// dG = gamma S / D - mean over channels of (gamma S G) / D^2, S the sum over positions of h dy, and
// dh = dy (1 + gamma N) + h dG / G.
template <class T>
static void gelu_grn_backward(const T* x, const T* dy, const float* gamma, const float* norms, T* dx, float* dgamma, float* dbeta,
                              double eps, integer B, integer M, integer F) {
    integer chunks = chunks_of(M);
    Workspace partial(2 * B * chunks * F), sums(2 * B * F), scales(B * F), pulls(B * F);
    float *products = sums.at, *gradients = sums.at + B * F;
#pragma omp parallel
    {
        const Normal normal;
        reduce_rows<2>(partial.at, B, M, F, [&](integer at, int lanes, vec* sums) {
            vec value = load(x + at, lanes), gradient = load(dy + at, lanes);
            sums[0] += value * normal.cdf(value) * gradient;
            sums[1] += gradient;
        });
        add_chunks(partial.at, sums.at, 2 * B, chunks, F);
#pragma omp for schedule(static)
        for (integer image = 0; image < B; ++image) {
            const float* norm = norms + image * F;
            float *product = products + image * F, *scale = scales.at + image * F, *pull = pulls.at + image * F;
            float mean = denominator(norm, F, eps);
            double shared = 0;
            for (integer channel = 0; channel < F; ++channel) shared += (double)gamma[channel] * product[channel] * norm[channel];
            float from_mean = (float)(shared / (double)F / ((double)mean * mean));
            for (integer channel = 0; channel < F; ++channel) {
                float ratio = norm[channel] / mean, of_norm = gamma[channel] * product[channel] / mean - from_mean;
                scale[channel] = 1 + gamma[channel] * ratio;
                pull[channel] = norm[channel] > 0 ? of_norm / norm[channel] : 0;  // a channel of zeros pulls nothing
                product[channel] *= ratio;                                       // from here on: this image's part of dgamma
            }
        }
#pragma omp for schedule(static) nowait
        for (integer channel = 0; channel < F; ++channel) {
            dgamma[channel] = dbeta[channel] = 0;
            for (integer at = channel; at < B * F; at += F) dgamma[channel] += products[at], dbeta[channel] += gradients[at];
        }
        for_values(B, M, F, [&](integer at, integer of_image, integer, int lanes) {
            vec value = load(x + at, lanes), density, below = normal.cdf(value, density);
            vec slope = below + value * density;
            vec gradient = load(dy + at, lanes) * load(scales.at + of_image, lanes) + value * below * load(pulls.at + of_image, lanes);
            store(dx + at, gradient * slope, lanes);
        });
    }
}

// --------------------------------------------------------------------------------- entry points, one per kind of values

#define ENTRY_POINTS(T, SUFFIX)                                                                                             \
    extern "C" void depthwise_forward_##SUFFIX(const T* x, const float* weight, const float* bias, T* out,                 \
                                               const integer* cells, integer images, integer rows, integer columns,                \
                                               integer visible, integer P, integer Q, integer C) {                                 \
        depthwise_forward(x, weight, bias, out, Cells{cells, images, rows, columns, visible, P, Q, C});                    \
    }                                                                                                                      \
    extern "C" void depthwise_backward_##SUFFIX(const T* dy, const T* x, const float* weight, T* dx, float* partial,       \
                                                integer slices, const integer* cells, integer images, integer rows,                \
                                                integer columns, integer visible, integer P, integer Q, integer C) {                 \
        depthwise_backward(dy, x, weight, dx, partial, slices, Cells{cells, images, rows, columns, visible, P, Q, C});     \
    }                                                                                                                      \
    extern "C" void gelu_grn_forward_##SUFFIX(const T* x, const float* gamma, const float* beta, T* y, float* norms, double eps,  \
                                              integer B, integer M, integer F) {                                                 \
        gelu_grn_forward<false>(x, gamma, beta, y, norms, eps, B, M, F);                                                   \
    }                                                                                                                      \
    extern "C" void gelu_grn_backward_##SUFFIX(const T* x, const T* dy, const float* gamma, const float* norms, T* dx,     \
                                               float* dgamma, float* dbeta, double eps, integer B, integer M, integer F) {             \
        gelu_grn_backward(x, dy, gamma, norms, dx, dgamma, dbeta, eps, B, M, F);                                           \
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(bfloat16, bfloat16)

// Of float32 alone: narrower values would be rounded once more between the passes
extern "C" void gelu_grn_in_place_float32(float* x, const float* gamma, const float* beta, double eps, integer B, integer M, integer F) {
    Workspace norms(B * F);
    gelu_grn_forward<true>(x, gamma, beta, x, norms.at, eps, B, M, F);
}
