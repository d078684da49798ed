// The fused primitives on a CPU, forward and backward. Plain C++17 behind a C ABI; native.py builds, loads and calls it.
//
//   w[t, y, x]  = softmax over t of (logits[t, y, x] + coarse[t, y', x'])        or, where raw, w = logits
//   up[c, y, x] = sum over t of w[t, y, x] * window(decoder[c], y', x')[t]
//   out         = g * encoder + (1 - g) * up,    g = sigmoid(gate[y', x'])
//
// Work is by decoder point: one decoder vector serves all output pixels above it ("children"), four at a time, whose sums
// stay in registers. Exact 2x is one such group of four; any other ratio is several. Threads own bands of decoder rows;
// every element has one writer, and its sum does not depend on where a band begins.
//
// Feature maps whose channels are adjacent are used where they lie. Others (contiguous, or any strides) pass through
// tiles of a few rows in the accumulator's type, transposed on the way. Kernels (logits) always pass through a row of
// scratch, so their layout and type are free.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// PAIRS pairs of vectors for each of four pixels, and DOT_COLUMNS taps of four pixels, fill the registers.
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, PAIRS = 2, DOT_COLUMNS = 5;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, PAIRS = 1, DOT_COLUMNS = 2;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, PAIRS = 2, DOT_COLUMNS = 5;
#else
constexpr int VECTOR_BYTES = 16, PAIRS = 1, DOT_COLUMNS = 2;
#endif
constexpr int GROUP = 4;  // children summed at a time, and decoder points whose gradient is

template <class T>
struct VectorOf {
    typedef T type __attribute__((vector_size(VECTOR_BYTES)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int LANES = VECTOR_BYTES / static_cast<int>(sizeof(T));

struct bfloat16 {
    uint16_t bits;
};
struct float16 {
    uint16_t bits;
};
template <class E>
struct AccumulatorOf {
    using type = float;
};
template <>
struct AccumulatorOf<double> {
    using type = double;
};
template <class E>
using Accumulator = typename AccumulatorOf<E>::type;
template <class A>
using Integer = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;

template <class V, class T>
inline V read(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V, class T>
inline void write(T* p, V v) {
    std::memcpy(p, &v, sizeof v);
}
template <class To, class From>
inline To bits(From from) {
    To to;
    static_assert(sizeof to == sizeof from);
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// ---- elements: two vectors at a time, in an order of lanes that only load, store and `element` know ----

template <class A>
struct Pair {
    Vector<A> lo, hi;
};

/// Which of the 2 * LANES elements lies in `lane` of vector `half` of a pair.
template <class E>
inline int element(int half, int lane) {
    // A 32-bit lane holds two bfloat16: a shift and a mask part them, where keeping the order would take shuffles.
    return std::is_same_v<E, bfloat16> ? 2 * lane + half : half * LANES<Accumulator<E>> + lane;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat16 x) { return bits<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(float16 x) {
#if defined(__F16C__)
    return _cvtsh_ss(x.bits);
#elif defined(__aarch64__)
    return static_cast<float>(bits<__fp16>(x.bits));
#else
    const uint32_t magnitude = x.bits & 0x7fffu;
    float value = bits<float>(magnitude << 13) * 0x1p112f;  // the exponent's bias goes from 15 to 127
    if (magnitude >= 0x7c00u) value = bits<float>((magnitude << 13) | 0x7f800000u);
    return (x.bits & 0x8000u) ? -value : value;
#endif
}

inline Vector<uint32_t> rounded_bits(Vector<float> x) {  // to bfloat16 in the upper half, ties to even, NaN kept
    const Vector<uint32_t> u = bits<Vector<uint32_t>>(x);
    const Vector<uint32_t> even = u + 0x7fffu + ((u >> 16) & 1u);
    return x == x ? even : (u | 0x400000u);
}
inline void narrow(float x, float* p) { *p = x; }
inline void narrow(double x, double* p) { *p = x; }
inline void narrow(float x, bfloat16* p) {
    const uint32_t u = bits<uint32_t>(x);
    p->bits = static_cast<uint16_t>((x == x ? u + 0x7fffu + ((u >> 16) & 1u) : (u | 0x400000u)) >> 16);
}
inline void narrow(float x, float16* p) {
#if defined(__F16C__)
    p->bits = static_cast<uint16_t>(_cvtss_sh(x, 0));
#elif defined(__aarch64__)
    p->bits = bits<uint16_t>(static_cast<__fp16>(x));
#else
    const uint32_t u = bits<uint32_t>(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {  // 65520 and more round to infinity
        half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the rounded subnormal in the low bits
        half = bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    p->bits = static_cast<uint16_t>(sign | half);
#endif
}

template <class A>
inline Pair<A> load(const A* p) {
    return {read<Vector<A>>(p), read<Vector<A>>(p + LANES<A>)};
}
inline Pair<float> load(const bfloat16* p) {
    const auto u = read<Vector<uint32_t>>(p);
    return {bits<Vector<float>>(u << 16), bits<Vector<float>>(u & 0xffff0000u)};
}
inline Pair<float> load(const float16* p) {
#if defined(__AVX512F__)
    return {(Vector<float>)_mm512_cvtph_ps(read<__m256i>(p)), (Vector<float>)_mm512_cvtph_ps(read<__m256i>(p + 16))};
#elif defined(__F16C__)
    return {(Vector<float>)_mm256_cvtph_ps(read<__m128i>(p)), (Vector<float>)_mm256_cvtph_ps(read<__m128i>(p + 8))};
#else
    Pair<float> out;
    for (int i = 0; i < LANES<float>; ++i) {
        out.lo[i] = widen(p[i]);
        out.hi[i] = widen(p[LANES<float> + i]);
    }
    return out;
#endif
}

/// Past the caches, where the result is too large to be found there again: memory is then not read before it is written.
template <class V>
inline void write_past_caches(void* p, V v) {
#if defined(__AVX512F__)
    _mm512_stream_si512(static_cast<__m512i*>(p), bits<__m512i>(v));
#elif defined(__AVX__)
    _mm256_stream_si256(static_cast<__m256i*>(p), bits<__m256i>(v));
#else
    write(p, v);
#endif
}
inline void finish_streaming() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

template <class A>
inline void store(A* p, Pair<A> x, bool stream) {
    if (stream) {
        write_past_caches(p, x.lo);
        write_past_caches(p + LANES<A>, x.hi);
    } else {
        write(p, x.lo);
        write(p + LANES<A>, x.hi);
    }
}
inline void store(bfloat16* p, Pair<float> x, bool stream) {
    const Vector<uint32_t> both = (rounded_bits(x.lo) >> 16) | (rounded_bits(x.hi) & 0xffff0000u);
    if (stream) {
        write_past_caches(p, both);
    } else {
        write(p, both);
    }
}
inline void store(float16* p, Pair<float> x, bool) {
#if defined(__AVX512F__)
    write(p, _mm512_cvtps_ph((__m512)x.lo, 0));
    write(p + 16, _mm512_cvtps_ph((__m512)x.hi, 0));
#elif defined(__F16C__)
    write(p, _mm256_cvtps_ph((__m256)x.lo, 0));
    write(p + 8, _mm256_cvtps_ph((__m256)x.hi, 0));
#else
    for (int i = 0; i < LANES<float>; ++i) {
        narrow(x.lo[i], p + i);
        narrow(x.hi[i], p + LANES<float> + i);
    }
#endif
}

/// The first n elements of a pair, n < 2 * LANES; zeros beyond.
template <class E>
inline Pair<Accumulator<E>> load_part(const E* p, int64_t n) {
#if defined(__AVX512BW__)
    if constexpr (sizeof(E) == 2) {
        const __m512i raw = _mm512_maskz_loadu_epi16((__mmask32{1} << n) - 1, p);
        return load(reinterpret_cast<const E*>(&raw));
    } else if constexpr (std::is_same_v<E, float>) {
        const uint64_t mask = (uint64_t{1} << n) - 1;
        return {(Vector<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p),
                (Vector<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), p + 16)};
    }
#endif
    alignas(64) E buffer[2 * LANES<Accumulator<E>>] = {};
    std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(E));
    return load(buffer);
}
template <class E>
inline void store_part(E* p, Pair<Accumulator<E>> x, int64_t n) {
    alignas(64) E buffer[2 * LANES<Accumulator<E>>];
    store(buffer, x, false);
    std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(E));
}
template <class A>
inline Vector<A> load_one(const A* p, int64_t n) {  // n <= LANES
    if (n == LANES<A>) return read<Vector<A>>(p);
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<A, float>) {
        return (Vector<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
    }
#endif
    Vector<A> out = {};
    std::memcpy(&out, p, static_cast<size_t>(n) * sizeof(A));
    return out;
}

/// Asks for the cache lines of N elements: a row of pixels is read from memory in short pieces that the hardware does
/// not foresee.
template <int N, class E>
inline void prefetch(const E* p) {
    for (int i = 0; i < N * static_cast<int>(sizeof(E)); i += 64) __builtin_prefetch(reinterpret_cast<const char*>(p) + i);
}

/// Keeps a vector in a register: the compiler would else fold its load into every use of it.
template <class V>
inline void keep(V& v) {
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#elif defined(__x86_64__)
    asm("" : "+x"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
}

// ---- within a vector ----

#if defined(__clang__)
#define SHUFFLE(A, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(A, a, b, ...) __builtin_shuffle(a, b, Vector<Integer<A>>{__VA_ARGS__})
#endif

template <class A, int... I>
inline Vector<A> neighbour_sums(Vector<A> a, Vector<A> b, std::integer_sequence<int, I...>) {
    return SHUFFLE(A, a, b, (2 * I)...) + SHUFFLE(A, a, b, (2 * I + 1)...);
}
/// Sums of neighbouring lanes of a, then of b.
template <class A>
inline Vector<A> neighbour_sums(Vector<A> a, Vector<A> b) {
    return neighbour_sums<A>(a, b, std::make_integer_sequence<int, LANES<A>>{});
}
/// Adds within blocks of 128 bits: after two rounds on four vectors, each block holds a part of their four sums.
template <int WIDTH, int... I>
inline Vector<float> block_sums(Vector<float> a, Vector<float> b, std::integer_sequence<int, I...>) {
    constexpr int L = LANES<float>;
    if constexpr (WIDTH == 1) {
        return SHUFFLE(float, a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * L)...) +
               SHUFFLE(float, a, b, (I / 4 * 4 + 2 + I % 4 / 2 + I % 2 * L)...);
    } else {
        return SHUFFLE(float, a, b, (I / 4 * 4 + I % 2 + I % 4 / 2 * L)...) +
               SHUFFLE(float, a, b, (I / 4 * 4 + 2 + I % 2 + I % 4 / 2 * L)...);
    }
}
template <int BY, int... I>
inline Vector<float> rotated(Vector<float> v, std::integer_sequence<int, I...>) {
    return SHUFFLE(float, v, v, ((I + BY) % LANES<float>)...);
}
/// The sums of four vectors.
inline void sums(const Vector<float>* v, float* out) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES<float>>{};
    const Vector<float> low = block_sums<1>(v[0], v[1], lanes), high = block_sums<1>(v[2], v[3], lanes);
    Vector<float> all = block_sums<2>(low, high, lanes);
    if constexpr (LANES<float> > 8) all += rotated<8>(all, lanes);
    if constexpr (LANES<float> > 4) all += rotated<4>(all, lanes);
    std::memcpy(out, &all, 4 * sizeof(float));
}
inline void sums(const Vector<double>* v, double* out) {
    for (int q = 0; q < 4; ++q) {
        out[q] = 0;
        for (int i = 0; i < LANES<double>; ++i) out[q] += v[q][i];
    }
}
template <class A>
inline A sum(Vector<A> v) {
    for (int lanes = LANES<A>; lanes > 1; lanes /= 2) v = neighbour_sums<A>(v, v);
    return v[0];
}
template <class A, int... I>
inline Vector<A> neighbour_maxima(Vector<A> a, Vector<A> b, std::integer_sequence<int, I...>) {
    const Vector<A> even = SHUFFLE(A, a, b, (2 * I)...), odd = SHUFFLE(A, a, b, (2 * I + 1)...);
    return even > odd ? even : odd;
}
template <class A>
inline Vector<A> neighbour_maxima(Vector<A> a, Vector<A> b) {
    return neighbour_maxima<A>(a, b, std::make_integer_sequence<int, LANES<A>>{});
}
/// The largest lane of each of four vectors.
template <class A>
inline void maxima(const Vector<A>* v, A* out) {
    const Vector<A> low = neighbour_maxima<A>(v[0], v[1]), high = neighbour_maxima<A>(v[2], v[3]);
    if constexpr (LANES<A> > 2) {
        Vector<A> all = neighbour_maxima<A>(low, high);
        for (int lanes = LANES<A> / 4; lanes > 1; lanes /= 2) all = neighbour_maxima<A>(all, all);
        std::memcpy(out, &all, 4 * sizeof(A));
    } else {
        std::memcpy(out, &low, 2 * sizeof(A));
        std::memcpy(out + 2, &high, 2 * sizeof(A));
    }
}

template <class A, int... I>
inline void interleave(const Vector<A>* in, Vector<A>* out, std::integer_sequence<int, I...>) {
    constexpr int n = LANES<A>;
    for (int i = 0; i < n / 2; ++i) {
        out[2 * i] = SHUFFLE(A, in[i], in[i + n / 2], (I / 2 + (I % 2) * n)...);
        out[2 * i + 1] = SHUFFLE(A, in[i], in[i + n / 2], (n / 2 + I / 2 + (I % 2) * n)...);
    }
}
/// Transposes LANES vectors: log2(LANES) rounds, each of which interleaves the upper half of the rows with the lower.
template <class A>
inline void transpose(Vector<A>* rows) {
    constexpr int n = LANES<A>;
    Vector<A> other[n];
    for (int lanes = n; lanes > 1; lanes /= 4) {
        interleave<A>(rows, other, std::make_integer_sequence<int, n>{});
        if (lanes == 2) {
            std::copy(other, other + n, rows);
        } else {
            interleave<A>(other, rows, std::make_integer_sequence<int, n>{});
        }
    }
}

/// e^x for x <= 0: relative error below 2e-7, exactly 0 below -87.3, NaN kept.
inline Vector<float> exponential(Vector<float> x) {
    // 1.5 * 2^23 + 127: adding it rounds to an integer, which then lies in the low bits, with the exponent's bias.
    const float magic = 12583039.f;
    const Vector<float> shifted = x * 1.44269504f + magic, n = shifted - magic;
    const Vector<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.f);
    const Vector<float> out = p * bits<Vector<float>>(bits<Vector<uint32_t>>(shifted) << 23);
    return x < -87.3f ? Vector<float>{} : out;
}
inline Vector<double> exponential(Vector<double> x) {
    for (int i = 0; i < LANES<double>; ++i) x[i] = std::exp(x[i]);
    return x;
}

// ---- the call ----

enum Type : int64_t { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };
constexpr size_t TYPE_SIZE[] = {4, 8, 2, 2};

/// A map (B, C, H, W) of any strides, counted in elements; absent where data is null.
struct Map {
    char* data;
    int64_t batch, channel, row, column, type;

    explicit operator bool() const { return data != nullptr; }
    char* at(int64_t b, int64_t c, int64_t y, int64_t x) const {
        return data + (b * batch + c * channel + y * row + x * column) * static_cast<int64_t>(TYPE_SIZE[type]);
    }
};

/// The arguments, laid out as native.py fills them in: all of 64 bits.
struct Call {
    int64_t batches, channels, height, width, out_height, out_width, kernel_size, raw, stream, out_of_memory;
    Map decoder, logits, coarse, encoder, gate, out, grad, grad_decoder, grad_logits, grad_coarse, grad_encoder, grad_gate;
};

using Task = void (*)(int64_t, int64_t, void*);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Task task, void* context);

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/// Scratch memory of a thread, kept from call to call up to a limit.
class Arena {
  public:
    ~Arena() { std::free(memory); }

    bool reserve(size_t bytes) {
        used = 0;
        if (bytes <= size) return true;
        std::free(memory);
        size = static_cast<size_t>(round_up(static_cast<int64_t>(bytes), 4096));
        memory = static_cast<char*>(std::aligned_alloc(64, size));
        if (!memory) size = 0;
        return memory != nullptr;
    }
    template <class T>
    T* take(int64_t count) {
        T* p = reinterpret_cast<T*>(memory + used);
        used += bytes_for<T>(count);
        return p;
    }
    template <class T>
    static size_t bytes_for(int64_t count) {
        return static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    }
    void trim() {
        if (size > (size_t{4} << 20)) {
            std::free(memory);
            memory = nullptr;
            size = 0;
        }
    }

  private:
    char* memory = nullptr;
    size_t size = 0, used = 0;
};
thread_local Arena arena;

// ---- tiles: pieces of a row, pixel after pixel with their channels adjacent, `stride` apart (a multiple of LANES) ----

template <class E, class A>
void load_tile_of(const Map& map, int64_t b, int64_t y, int64_t x0, int64_t n, int64_t channels, A* tile, int64_t stride) {
    constexpr int L = LANES<A>;
    auto at = [&](int64_t c, int64_t x) { return reinterpret_cast<const E*>(map.at(b, c, y, x0 + x)); };
    if (map.channel == 1 || channels == 1) {
        for (int64_t x = 0; x < n; ++x) {
            const E* p = at(0, x);
            for (int64_t c = 0; c < channels; ++c) tile[x * stride + c] = widen(p[c]);
        }
    } else if (map.column == 1) {
        for (int64_t c0 = 0; c0 < channels; c0 += L) {
            for (int64_t x = 0; x < n; x += 2 * L) {
                const int64_t wide = std::min<int64_t>(2 * L, n - x), deep = std::min<int64_t>(L, channels - c0);
                Vector<A> halves[2][L] = {};
                for (int64_t c = 0; c < deep; ++c) {
                    const auto pair = wide == 2 * L ? load(at(c0 + c, x)) : load_part(at(c0 + c, x), wide);
                    halves[0][c] = pair.lo;
                    halves[1][c] = pair.hi;
                }
                for (int half = 0; half < 2; ++half) {
                    transpose<A>(halves[half]);
                    for (int i = 0; i < L; ++i) {
                        const int64_t to = element<E>(half, i);
                        if (to < wide) write(tile + (x + to) * stride + c0, halves[half][i]);
                    }
                }
            }
        }
    } else {
        for (int64_t x = 0; x < n; ++x) {
            for (int64_t c = 0; c < channels; ++c) tile[x * stride + c] = widen(*at(c, x));
        }
    }
}

template <class E, class A>
void store_tile_of(const Map& map, int64_t b, int64_t y, int64_t x0, int64_t n, int64_t channels, const A* tile, int64_t stride) {
    constexpr int L = LANES<A>;
    auto at = [&](int64_t c, int64_t x) { return reinterpret_cast<E*>(map.at(b, c, y, x0 + x)); };
    if (map.channel == 1 || channels == 1) {
        for (int64_t x = 0; x < n; ++x) {
            E* p = at(0, x);
            for (int64_t c = 0; c < channels; ++c) narrow(tile[x * stride + c], p + c);
        }
    } else if (map.column == 1) {
        for (int64_t c0 = 0; c0 < channels; c0 += L) {
            for (int64_t x = 0; x < n; x += 2 * L) {
                const int64_t wide = std::min<int64_t>(2 * L, n - x), deep = std::min<int64_t>(L, channels - c0);
                Vector<A> halves[2][L] = {};
                for (int half = 0; half < 2; ++half) {
                    for (int i = 0; i < L; ++i) {
                        const int64_t from = element<E>(half, i);
                        if (from < wide) halves[half][i] = read<Vector<A>>(tile + (x + from) * stride + c0);
                    }
                    transpose<A>(halves[half]);
                }
                for (int64_t c = 0; c < deep; ++c) {
                    const Pair<A> pair = {halves[0][c], halves[1][c]};
                    if (wide == 2 * L) {
                        store(at(c0 + c, x), pair, false);
                    } else {
                        store_part(at(c0 + c, x), pair, wide);
                    }
                }
            }
        }
    } else {
        for (int64_t x = 0; x < n; ++x) {
            for (int64_t c = 0; c < channels; ++c) narrow(tile[x * stride + c], at(c, x));
        }
    }
}

/// Calls `then` with an element of the map's type; maps of float64 come with A = double, and only they do.
template <class A, class Then>
inline void with_type(const Map& map, Then then) {
    if constexpr (std::is_same_v<A, double>) {
        then(double{});
    } else if (map.type == FLOAT32) {
        then(float{});
    } else if (map.type == BFLOAT16) {
        then(bfloat16{});
    } else {
        then(float16{});
    }
}
template <class A, class... Args>
void load_tile(const Map& map, Args... args) {
    with_type<A>(map, [&](auto e) { load_tile_of<decltype(e), A>(map, args...); });
}
template <class A, class... Args>
void store_tile(const Map& map, Args... args) {
    with_type<A>(map, [&](auto e) { store_tile_of<decltype(e), A>(map, args...); });
}

// ---- the four inner loops; TAPS or K of 0 means: known when it runs ----

/// w[q * stride] = scale * softmax(a[q] + b) over the taps, for four pixels above one point; b may be null; lanes beyond
/// the taps become 0. `w` and `stride` are aligned.
template <class A, int TAPS>
inline void softmax(const A* const* a, const A* b, int taps, A scale, A* w, int64_t stride) {
    constexpr int L = LANES<A>, VECTORS = (TAPS + L - 1) / L;
    const int n = TAPS ? TAPS : taps, vectors = (n + L - 1) / L;
    constexpr A none = -std::numeric_limits<A>::infinity();
    Vector<A> local[GROUP][VECTORS ? VECTORS : 1], top[GROUP], total[GROUP];
    Vector<A>* v[GROUP];
    for (int q = 0; q < GROUP; ++q) {
        v[q] = TAPS ? local[q] : reinterpret_cast<Vector<A>*>(w + q * stride);
        top[q] = Vector<A>{} + none;
        total[q] = Vector<A>{};
    }
    for (int i = 0; i < vectors; ++i) {
        const int lanes = std::min(L, n - i * L);
        const Vector<A> below = b ? load_one(b + i * L, lanes) : Vector<A>{};
        Vector<A> outside = {};
        if (lanes < L) {
            for (int lane = 0; lane < L; ++lane) outside[lane] = lane < lanes ? 0 : none;
        }
        for (int q = 0; q < GROUP; ++q) {
            v[q][i] = load_one(a[q] + i * L, lanes) + below;
            if (lanes < L) v[q][i] += outside;
            top[q] = v[q][i] > top[q] ? v[q][i] : top[q];
        }
    }
    A largest[GROUP], sum[GROUP];
    maxima<A>(top, largest);
    for (int i = 0; i < vectors; ++i) {
        for (int q = 0; q < GROUP; ++q) {
            v[q][i] = exponential(v[q][i] - largest[q]);
            total[q] += v[q][i];
        }
    }
    sums(total, sum);
    for (int q = 0; q < GROUP; ++q) sum[q] = scale / sum[q];
    for (int i = 0; i < vectors; ++i) {
        for (int q = 0; q < GROUP; ++q) write(w + q * stride + i * L, v[q][i] * sum[q]);
    }
}

/// out[q] = gate * encoder[q] + sum over taps of w[q * stride + t] * tap[t], for NP pairs of channels from c, or `part` of one.
template <class E, int TAPS, int Q, int NP, bool PART = false, class A = Accumulator<E>>
inline void weigh_block(const E* const* tap, int taps, const A* w, int64_t stride, A gate, const E* const* encoder,
                        E* const* out, int64_t c, int64_t part, bool stream, int64_t ahead) {
    constexpr int STEP = 2 * LANES<A>;
    auto get = [&](const E* p) { return PART ? load_part(p, part) : load(p); };
    Pair<A> total[Q][NP];
    for (int q = 0; q < Q; ++q) {
        for (int i = 0; i < NP; ++i) {
            total[q][i] = Pair<A>{};
            if (encoder) {
                const Pair<A> e = get(encoder[q] + c + i * STEP);
                if (!PART) prefetch<STEP>(encoder[q] + c + i * STEP + ahead);
                total[q][i] = {e.lo * gate, e.hi * gate};
            }
        }
    }
    for (int t = 0; t < (TAPS ? TAPS : taps); ++t) {
        Pair<A> d[NP];
        const E* from = tap[t] + c;
        for (int i = 0; i < NP; ++i) d[i] = get(from + i * STEP);
        for (int q = 0; q < Q; ++q) {
            const A weight = w[q * (TAPS ? round_up(TAPS, LANES<A>) : stride) + t];
            for (int i = 0; i < NP; ++i) {
                total[q][i].lo += weight * d[i].lo;
                total[q][i].hi += weight * d[i].hi;
            }
        }
    }
    for (int q = 0; q < Q; ++q) {
        for (int i = 0; i < NP; ++i) {
            if (PART) {
                store_part(out[q] + c + i * STEP, total[q][i], part);
            } else {
                store(out[q] + c + i * STEP, total[q][i], stream);
            }
        }
    }
}

template <class E, int TAPS, int Q, class A = Accumulator<E>>
inline void weigh(const E* const* tap, int taps, const A* w, int64_t stride, A gate, const E* const* encoder, E* const* out,
                  int64_t channels, bool stream, int64_t ahead) {
    constexpr int64_t STEP = 2 * LANES<A>;
    constexpr int WIDE = TAPS ? PAIRS : 1;
    int64_t c = 0;
    for (; WIDE > 1 && c + WIDE * STEP <= channels; c += WIDE * STEP) {
        weigh_block<E, TAPS, Q, WIDE>(tap, taps, w, stride, gate, encoder, out, c, 0, stream, ahead);
    }
    for (; c + STEP <= channels; c += STEP) weigh_block<E, TAPS, Q, 1>(tap, taps, w, stride, gate, encoder, out, c, 0, stream, ahead);
    if (c < channels) weigh_block<E, TAPS, Q, 1, true>(tap, taps, w, stride, gate, encoder, out, c, channels - c, stream, ahead);
}

/// s[q * stride + i] = sum over channels of grad[q] * tap[i], for N taps.
template <class E, int Q, int N, class A = Accumulator<E>>
inline void dot_columns(const E* const* grad, const E* const* tap, int64_t channels, A* s, int64_t stride) {
    constexpr int64_t STEP = 2 * LANES<A>;
    Vector<A> total[Q * N] = {};
    auto add = [&](auto get, int64_t c) {
        Pair<A> g[Q];
        for (int q = 0; q < Q; ++q) g[q] = get(grad[q] + c);
        for (int i = 0; i < N; ++i) {
            Pair<A> d = get(tap[i] + c);
            keep(d.lo), keep(d.hi);
            for (int q = 0; q < Q; ++q) {
                total[q * N + i] += g[q].lo * d.lo;
                total[q * N + i] += g[q].hi * d.hi;
            }
        }
    };
    int64_t c = 0;
    for (; c + STEP <= channels; c += STEP) add([](const E* p) { return load(p); }, c);
    if (c < channels) add([n = channels - c](const E* p) { return load_part(p, n); }, c);
    A four[4];
    if constexpr (N > 4) {  // most sums are stored four at a time
        static_assert(N == 5);
        for (int q = 0; q < Q; ++q) {
            sums(total + q * N, four);
            std::memcpy(s + q * stride, four, sizeof four);
        }
        Vector<A> fifth[4];
        for (int q = 0; q < 4; ++q) fifth[q] = total[std::min(q, Q - 1) * N + 4];
        sums(fifth, four);
        for (int q = 0; q < Q; ++q) s[q * stride + 4] = four[q];
    } else {
        for (int i = 0; i < N; ++i) {
            Vector<A> column[4];
            for (int q = 0; q < 4; ++q) column[q] = total[std::min(q, Q - 1) * N + i];
            sums(column, four);
            for (int q = 0; q < Q; ++q) s[q * stride + i] = four[q];
        }
    }
}

/// All taps of a window, a few columns at a time.
template <class E, int K, int Q, class A = Accumulator<E>>
inline void dot(const E* const* grad, const E* const* tap, int kernel_size, int64_t channels, A* s, int64_t stride) {
    const int taps = kernel_size * kernel_size;
    constexpr int N = K == 3 && DOT_COLUMNS >= 3 ? 3 : DOT_COLUMNS;
    int t = 0;
    for (; t + N <= taps; t += N) dot_columns<E, Q, N>(grad, tap + t, channels, s + t, stride);
    for (; t < taps; ++t) dot_columns<E, Q, 1>(grad, tap + t, channels, s + t, stride);
}

/// grad_encoder = gate * grad, and returns sum over channels of grad * encoder.
template <class E, class A = Accumulator<E>>
inline A gate_one(const E* grad, const E* encoder, E* grad_encoder, A gate, int64_t channels, bool stream, int64_t ahead) {
    constexpr int64_t STEP = 2 * LANES<A>;
    Vector<A> lo = {}, hi = {};
    auto add = [&](Pair<A> g, Pair<A> e) {
        lo += g.lo * e.lo;
        hi += g.hi * e.hi;
        return Pair<A>{g.lo * gate, g.hi * gate};
    };
    int64_t c = 0;
    for (; c + STEP <= channels; c += STEP) {
        const Pair<A> scaled = add(load(grad + c), load(encoder + c));
        prefetch<STEP>(encoder + c + ahead);
        if (grad_encoder) store(grad_encoder + c, scaled, stream);
    }
    if (const int64_t n = channels - c) {
        const Pair<A> scaled = add(load_part(grad + c, n), load_part(encoder + c, n));
        if (grad_encoder) store_part(grad_encoder + c, scaled, n);
    }
    return sum<A>(lo + hi);
}

/// A row of decoder points as the gradient of the decoder needs it: the kernels of their children, and their gradients.
template <class E>
struct Source {
    const Accumulator<E>* weights;  // of the children of point 0, were it staged
    const E* grad;                  // of the first row of children, pixel `x0`
    int64_t rows, grad_row;
};

/// Gradient of up to four decoder points from x: sum over the children above the window around each of weight * grad.
/// TWO: every point has 2 x 2 children.
template <class E, int K, int NP, bool PART, bool TWO, class A = Accumulator<E>>
inline void gather_block(const Source<E>* source, int first_row, int last_row, int kernel_size, int64_t x, int points,
                         int64_t width, const int64_t* start, int64_t x0, int64_t taps, int64_t point, int64_t column,
                         int64_t c, int64_t part, E* const* out) {
    constexpr int STEP = 2 * LANES<A>;
    const int k = K ? K : kernel_size, reach = k / 2;
    auto get = [&](const E* p) { return PART ? load_part(p, part) : load(p); };
    Pair<A> total[GROUP][NP] = {};
    for (int row = first_row; row <= last_row; ++row) {
        const Source<E>& from = source[row];
        const int tap_row = (k - 1 - row) * k;
        // Column x - reach + u serves points p with 0 <= p - u + 2 * reach < k.
        auto add = [&](int u) __attribute__((always_inline)) {
            const int64_t nx = x - reach + u;
            if (nx < 0 || nx >= width || u > k - 2 + points) return;
            const A* w = from.weights + nx * point + tap_row + 2 * reach - u;
            const E* g = from.grad + (start[nx] - x0) * column + c;
            auto child = [&](const A* weight, const E* from) __attribute__((always_inline)) {
                Pair<A> value[NP];
                for (int n = 0; n < NP; ++n) value[n] = get(from + n * STEP);
                for (int p = 0; p < GROUP; ++p) {
                    if (p > u || p < u - 2 * reach) continue;
                    for (int n = 0; n < NP; ++n) {
                        total[p][n].lo += weight[p] * value[n].lo;
                        total[p][n].hi += weight[p] * value[n].hi;
                    }
                }
            };
            if constexpr (TWO) {
                const int64_t apart = round_up(K * K, LANES<A>);
                child(w, g), child(w + apart, g + column);
                g += from.grad_row;
                child(w + 2 * apart, g), child(w + 3 * apart, g + column);
                return;
            }
            const int64_t columns = start[nx + 1] - start[nx];
            for (int64_t i = 0; i < from.rows; ++i, g += from.grad_row) {
                for (int64_t px = 0; px < columns; ++px, w += taps) child(w, g + px * column);
            }
        };
        if constexpr (K == 5) {
            add(0), add(1), add(2), add(3), add(4), add(5), add(6), add(7);
        } else if constexpr (K == 3) {
            add(0), add(1), add(2), add(3), add(4), add(5);
        } else {
            for (int u = 0; u < k + GROUP - 1; ++u) add(u);
        }
    }
    for (int p = 0; p < points; ++p) {
        for (int n = 0; n < NP; ++n) {
            if (PART) {
                store_part(out[p] + c + n * STEP, total[p][n], part);
            } else {
                store(out[p] + c + n * STEP, total[p][n], false);
            }
        }
    }
}

/// Whether all maps of features are of that type with adjacent channels, so that they are used where they lie.
bool is_direct(const Call& call, int64_t type) {
    for (const Map* map : {&call.decoder, &call.encoder, &call.out, &call.grad, &call.grad_decoder, &call.grad_encoder}) {
        if (*map && (map->type != type || (map->channel != 1 && call.channels != 1))) return false;
    }
    return true;
}

// ---- bands of decoder rows ----

/// What a thread needs to go through some rows of decoder points. K is the window's side, or 0 where it is any.
template <class E, int K>
class Band {
    using A = Accumulator<E>;
    static constexpr int L = LANES<A>;
    static constexpr int TAPS = K * K;

  public:
    Band(const Call& call, bool backward)
        : call(call),
          side(K ? K : static_cast<int>(call.kernel_size)),
          reach(side / 2),
          taps(side * side),
          padded_taps(round_up(taps, L)),
          channels(call.channels),
          padded_channels(round_up(channels, L)),
          backward(backward),
          dots(call.grad_logits || call.grad_coarse || call.grad_gate),
          gathers(static_cast<bool>(call.grad_decoder)),
          reads_decoder(!backward || dots),
          staged(!is_direct(call, type_of())) {
        child_rows = (call.out_height - 1) / call.height + 1;
        child_columns = (call.out_width - 1) / call.width + 1;
        choose_segment();
    }

    /// Rows begin..end of all batch entries together; false where there is no memory for it.
    bool run(int64_t begin, int64_t end) {
        if (!arena.reserve(bytes())) return false;
        take_scratch();
        while (begin < end) {
            b = begin / call.height;
            const int64_t first = begin % call.height, last = std::min(call.height, first + end - begin);
            for (left = 0; left < call.width; left += segment) {
                right = std::min(call.width, left + segment);
                stage_from = std::max<int64_t>(0, left - reach);
                stage_to = std::min(call.width, right + reach);
                for (int64_t x = stage_from; x <= stage_to; ++x) start_table[x - stage_from] = first_child(x, call.width, call.out_width);
                first_pixel = start(stage_from);
                // Rows are staged `reach` ahead of the one that is computed.
                for (int64_t ahead = first - reach; ahead < last + reach; ++ahead) {
                    if (staged && reads_decoder) stage_decoder(ahead);
                    if (backward) stage_sources(ahead, first, last);
                    if (ahead - reach < first) continue;
                    if (backward) {
                        backward_row(ahead - reach);
                    } else {
                        forward_row(ahead - reach);
                    }
                }
            }
            begin += last - first;
        }
        finish_streaming();
        arena.trim();
        return true;
    }

  private:
    static int64_t type_of() {
        if constexpr (std::is_same_v<E, double>) return FLOAT64;
        if constexpr (std::is_same_v<E, bfloat16>) return BFLOAT16;
        if constexpr (std::is_same_v<E, float16>) return FLOAT16;
        return FLOAT32;
    }

    /// First output position whose source is `at` or later: the smallest y with y * size / out_size >= at.
    static int64_t first_child(int64_t at, int64_t size, int64_t out_size) { return (at * out_size + size - 1) / size; }
    int64_t start(int64_t x) const { return start_table[x - stage_from]; }
    int64_t row_start(int64_t y) const { return first_child(y, call.height, call.out_height); }
    int slot(int64_t row) const { return static_cast<int>(((row % side) + side) % side); }

    /// Columns at a time, so that what is staged stays in the caches nearest to the core.
    void choose_segment() {
        const int64_t children = child_rows * child_columns, kernels = children * padded_taps * (backward && gathers ? side : 1);
        int64_t column = kernels * static_cast<int64_t>(sizeof(A));
        if (staged) {
            int64_t vectors = side + children;
            if (backward) vectors += children * (gathers ? side + 1 : 2) + 1;
            column += vectors * padded_channels * static_cast<int64_t>(sizeof(A));
        }
        const int64_t budget = backward || staged ? 384 << 10 : 96 << 10;
        segment = std::max<int64_t>(GROUP, std::min<int64_t>(64, budget / column / GROUP * GROUP));
        if (gathers && !staged) {  // the output's gradient around a row is read `side` times
            const int64_t near = side * children * channels * static_cast<int64_t>(sizeof(E));
            segment = std::min(segment, std::max<int64_t>(4 * GROUP, (512 << 10) / std::max<int64_t>(near, 1) / GROUP * GROUP));
        }
        segment = std::min(segment, call.width);
    }

    // Sizes of the scratch buffers, in elements.
    int64_t staged_columns() const { return segment + 2 * reach; }
    int64_t staged_pixels() const { return staged_columns() * child_columns; }
    int64_t point_size() const { return round_up(child_rows * child_columns, GROUP) * padded_taps; }
    int64_t kernels_size() const { return staged_columns() * point_size(); }
    int64_t pixels_size() const { return child_rows * staged_pixels() * padded_channels; }
    int64_t decoder_size() const { return staged_columns() * padded_channels; }

    size_t bytes() const {
        const int64_t ring = backward ? side : 1;
        size_t total = Arena::bytes_for<A>(ring * kernels_size()) + Arena::bytes_for<A>(2 * staged_columns() * padded_taps) +
                       Arena::bytes_for<A>(child_rows * staged_pixels() * padded_taps);
        total += Arena::bytes_for<A>(2 * ring * staged_columns()) + Arena::bytes_for<int64_t>(staged_columns() + 1);
        total += Arena::bytes_for<const E*>(taps) + Arena::bytes_for<const E*>(side) + Arena::bytes_for<E>(channels + 2 * L) + Arena::bytes_for<Source<E>>(side);
        if (backward) total += Arena::bytes_for<A>(child_rows * staged_pixels() * padded_taps) + Arena::bytes_for<A>(GROUP * padded_taps);
        if (staged) {
            total += Arena::bytes_for<A>(side * decoder_size()) + Arena::bytes_for<A>(pixels_size());
            if (backward) total += Arena::bytes_for<A>((side + 1) * pixels_size()) + Arena::bytes_for<A>(decoder_size());
        }
        return total;
    }

    void take_scratch() {
        const int64_t ring = backward ? side : 1;
        kernels = arena.take<A>(ring * kernels_size());
        coarse_tile = arena.take<A>(2 * staged_columns() * padded_taps);
        logit_tile = arena.take<A>(child_rows * staged_pixels() * padded_taps);
        gates = arena.take<A>(2 * ring * staged_columns());
        start_table = arena.take<int64_t>(staged_columns() + 1);
        tap = arena.take<const E*>(taps);
        row_base = arena.take<const E*>(side);
        E* none = arena.take<E>(channels + 2 * L);
        std::memset(static_cast<void*>(none), 0, static_cast<size_t>(channels + 2 * L) * sizeof(E));
        zeros = none;
        sources = arena.take<Source<E>>(side);
        if (backward) {
            grad_kernels = arena.take<A>(child_rows * staged_pixels() * padded_taps);
            scores = arena.take<A>(GROUP * padded_taps);
        }
        if (staged) {  // E is then A
            decoder_tiles = reinterpret_cast<E*>(arena.take<A>(side * decoder_size()));
            pixel_tile = reinterpret_cast<E*>(arena.take<A>(pixels_size()));
            if (backward) {
                grad_tiles = reinterpret_cast<E*>(arena.take<A>((side + 1) * pixels_size()));
                grad_encoder_tile = grad_tiles + side * pixels_size();
                point_tile = reinterpret_cast<E*>(arena.take<A>(decoder_size()));
            }
        }
    }

    // -- staging --

    A* as_tile(E* tile) const { return reinterpret_cast<A*>(tile); }

    /// A row of the decoder into its tile, zeros outside.
    void stage_decoder(int64_t row) {
        E* tile = decoder_tiles + slot(row) * decoder_size();
        if (row < 0 || row >= call.height) return;
        load_tile<A>(call.decoder, b, row, stage_from, stage_to - stage_from, channels, as_tile(tile), padded_channels);
    }

    /// The kernels of the children of decoder points from..to of a row, times 1 - gate, into `target`; their gates too.
    void stage_kernels(int64_t row, int64_t from, int64_t to, A* target, A* gate_row) {
        const int64_t rows[] = {row_start(row), row_start(row + 1)}, y0 = rows[0], y1 = rows[1], x0 = start(from), n = start(to) - x0;
        A* rest_row = gate_row + staged_columns();
        for (int64_t x = from; x < to; ++x) {
            A gate = 0, rest = 1;
            if (call.gate) {
                A logit;
                load_tile<A>(call.gate, b, row, x, int64_t{1}, int64_t{1}, &logit, int64_t{L});
                gate = 1 / (1 + std::exp(-logit));
                rest = 1 / (1 + std::exp(logit));
            }
            gate_row[x - stage_from] = gate;
            rest_row[x - stage_from] = rest;
        }
        const A* coarse = nullptr;
        int64_t coarse_stride = padded_taps;
        if (call.coarse) {
            if (in_place(call.coarse)) {
                coarse = reinterpret_cast<const A*>(call.coarse.at(b, 0, row, from));
                coarse_stride = call.coarse.column;
            } else {
                load_tile<A>(call.coarse, b, row, from, to - from, int64_t{taps}, coarse_tile, padded_taps);
                coarse = coarse_tile;
            }
        }
        const bool staged_logits = !in_place(call.logits);
        const int64_t stride = staged_logits ? padded_taps : call.logits.column;
        const int64_t row_stride = staged_logits ? staged_pixels() * padded_taps : call.logits.row;
        if (staged_logits) {
            for (int64_t y = y0; y < y1; ++y) {
                load_tile<A>(call.logits, b, y, x0, n, int64_t{taps}, logit_tile + (y - y0) * row_stride, padded_taps);
            }
        }
        const A* logits = staged_logits ? logit_tile : reinterpret_cast<const A*>(call.logits.at(b, 0, y0, x0));
        for (int64_t x = from; x < to; ++x) {
            const A* below = coarse ? coarse + (x - from) * coarse_stride : nullptr;
            for_children(rows, x, [&](int64_t first, int count, const int64_t* ys, const int64_t* xs) {
                A* w = target + (x - stage_from) * point_size() + first * padded_taps;
                const A* a[GROUP];
                for (int q = 0; q < GROUP; ++q) {
                    const int i = q < count ? q : 0;  // the room for a group is always there
                    a[q] = logits + (ys[i] - y0) * row_stride + (xs[i] - x0) * stride;
                }
                if (!call.raw) return softmax<A, TAPS>(a, below, taps, rest_row[x - stage_from], w, padded_taps);
                for (int q = 0; q < count; ++q) std::memcpy(w + q * padded_taps, a[q], static_cast<size_t>(taps) * sizeof(A));
            });
        }
    }
    static bool in_place(const Map& map) {
        return map.channel == 1 && map.type == (std::is_same_v<A, double> ? FLOAT64 : FLOAT32);
    }

    /// Kernels and output gradients of a row's children, for the rows that need them.
    void stage_sources(int64_t row, int64_t first, int64_t last) {
        if (row < 0 || row >= call.height || (!gathers && (row < first || row >= last))) return;
        const int64_t from = gathers ? stage_from : left, to = gathers ? stage_to : right;
        const int64_t y0 = row_start(row), y1 = row_start(row + 1);
        if (!call.raw || gathers) {
            stage_kernels(row, from, to, kernels + slot(row) * kernels_size(), gates + 2 * slot(row) * staged_columns());
        }
        if (!staged) return;
        for (int64_t y = y0; y < y1; ++y) {
            E* tile = grad_tiles + slot(row) * pixels_size() + ((y - y0) * staged_pixels() + start(from) - first_pixel) * padded_channels;
            load_tile<A>(call.grad, b, y, start(from), start(to) - start(from), channels, as_tile(tile), padded_channels);
        }
    }

    // -- where things lie --

    /// Pixel (y, x) of a map of the output's size: in the map itself, or in a tile that holds the row's children.
    struct Pixels {
        E* base;
        int64_t y0, x0, row, column;
        E* at(int64_t y, int64_t x) const { return base + (y - y0) * row + (x - x0) * column; }
    };
    Pixels pixels(const Map& map, E* tiles, int64_t row, int tile = 0) const {
        if (staged) return {tiles + tile * pixels_size(), row_start(row), first_pixel, staged_pixels() * padded_channels, padded_channels};
        return {reinterpret_cast<E*>(map.at(b, 0, 0, 0)), 0, 0, map.row, map.column};
    }

    /// How far before its use a pixel is asked for: two points, and some hundred nanoseconds, on.
    int64_t ahead_of(const Pixels& map) const {
        return std::max<int64_t>(2 * child_columns * map.column, 4096 / static_cast<int64_t>(sizeof(E)));
    }

    /// Where the rows of the window around each point of `row` begin, at column 0; null outside.
    void find_rows(int64_t row) {
        decoder_column = staged ? padded_channels : call.decoder.column;
        inner_rows = row >= reach && row + reach < call.height;
        for (int i = 0; i < side; ++i) {
            const int64_t y = row + i - reach;
            row_base[i] = nullptr;
            if (y < 0 || y >= call.height) continue;
            row_base[i] = staged ? decoder_tiles + slot(y) * decoder_size() - stage_from * decoder_column
                                 : reinterpret_cast<const E*>(call.decoder.at(b, 0, y, 0));
        }
    }

    /// Pointers to the window around column x of the row of `find_rows`.
    void find_taps(int64_t x) {
        const int n = K ? K : side;
        const int64_t first = x - n / 2;
        if (inner_rows && first >= 0 && first + n <= call.width) {
            for (int i = 0; i < n; ++i) {
                const E* p = row_base[i] + first * decoder_column;
                for (int j = 0; j < n; ++j) tap[i * n + j] = p + j * decoder_column;
            }
            return;
        }
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j < n; ++j) {
                const bool inside = row_base[i] && first + j >= 0 && first + j < call.width;
                tap[i * n + j] = inside ? row_base[i] + (first + j) * decoder_column : zeros;
            }
        }
    }

    /// Calls `then(first, count, ys, xs)` for the children of point x in their order, at most four at a time; their
    /// rows are rows[0] to rows[1].
    template <class Then>
    void for_children(const int64_t* rows, int64_t x, Then then) const {
        int64_t ys[GROUP], xs[GROUP];
        int count = 0;
        int64_t first = 0;
        const int64_t y0 = rows[0], y1 = rows[1], px0 = start(x), px1 = start(x + 1);
        if (y1 - y0 == 2 && px1 - px0 == 2) {
            const int64_t two_rows[] = {y0, y0, y0 + 1, y0 + 1}, two_columns[] = {px0, px0 + 1, px0, px0 + 1};
            return then(first, GROUP, two_rows, two_columns);
        }
        for (int64_t y = y0; y < y1; ++y) {
            for (int64_t px = px0; px < px1; ++px) {
                ys[count] = y;
                xs[count] = px;
                if (++count == GROUP) {
                    then(first, GROUP, ys, xs);
                    first += GROUP;
                    count = 0;
                }
            }
        }
        if (count) then(first, count, ys, xs);
    }

    // -- forward --

    void forward_row(int64_t row) {
        stage_kernels(row, left, right, kernels, gates);
        const int64_t rows[] = {row_start(row), row_start(row + 1)}, y0 = rows[0], y1 = rows[1], x0 = start(left), n = start(right) - x0;
        const Pixels out = pixels(call.out, pixel_tile, row);
        if (staged && call.encoder) {
            for (int64_t y = y0; y < y1; ++y) {
                load_tile<A>(call.encoder, b, y, x0, n, channels, as_tile(out.at(y, x0)), padded_channels);
            }
        }
        const Pixels encoder = call.encoder ? pixels(call.encoder, pixel_tile, row) : out;
        find_rows(row);
        const int64_t ahead = ahead_of(encoder);
        for (int64_t x = left; x < right; ++x) {
            find_taps(x);
            const A gate = gates[x - stage_from];
            for_children(rows, x, [&](int64_t first, int count, const int64_t* ys, const int64_t* xs) {
                const A* w = kernels + (x - stage_from) * point_size() + first * padded_taps;
                const E* e[GROUP];
                E* o[GROUP];
                for (int q = 0; q < count; ++q) {
                    o[q] = out.at(ys[q], xs[q]);
                    e[q] = encoder.at(ys[q], xs[q]);
                }
                const E* const* with = call.encoder ? e : nullptr;
                const bool stream = call.stream && !staged;
                if (count == GROUP) return weigh<E, TAPS, GROUP>(tap, taps, w, padded_taps, gate, with, o, channels, stream, ahead);
                for (int q = 0; q < count; ++q) {
                    weigh<E, TAPS, 1>(tap, taps, w + q * padded_taps, padded_taps, gate, with ? with + q : with, o + q, channels, stream, ahead);
                }
            });
        }
        if (!staged) return;
        for (int64_t y = y0; y < y1; ++y) {
            store_tile<A>(call.out, b, y, x0, n, channels, as_tile(out.at(y, x0)), padded_channels);
        }
    }

    // -- backward --

    void backward_row(int64_t row) {
        if (dots || call.grad_encoder) own_row(row);
        if (gathers) gather_row(row);
    }

    /// Gradients that belong to the children of a row and to its points: of logits, coarse logits, encoder and gate.
    void own_row(int64_t row) {
        const int64_t rows[] = {row_start(row), row_start(row + 1)}, y0 = rows[0], y1 = rows[1], x0 = start(left), n = start(right) - x0;
        const Pixels grad = pixels(call.grad, grad_tiles, row, slot(row));
        const Pixels encoder = call.encoder ? pixels(call.encoder, pixel_tile, row) : grad;
        const Pixels grad_encoder = call.grad_encoder ? pixels(call.grad_encoder, grad_encoder_tile, row) : grad;
        if (staged && call.encoder) {
            for (int64_t y = y0; y < y1; ++y) {
                load_tile<A>(call.encoder, b, y, x0, n, channels, as_tile(encoder.at(y, x0)), padded_channels);
            }
        }
        const A *gate_row = gates + 2 * slot(row) * staged_columns(), *rest_row = gate_row + staged_columns();
        const A* row_kernels = kernels + slot(row) * kernels_size();
        A* coarse_row = coarse_tile + staged_columns() * padded_taps;
        if (dots) find_rows(row);
        const int64_t ahead = ahead_of(grad);
        const bool direct_logits = call.grad_logits && in_place(call.grad_logits);
        for (int64_t x = left; x < right; ++x) {
            if (dots) find_taps(x);
            const A gate = call.gate ? gate_row[x - stage_from] : 0, rest = call.raw ? 1 : rest_row[x - stage_from];
            A* coarse = coarse_row + (x - left) * padded_taps;
            std::fill(coarse, coarse + padded_taps, A{0});
            A gate_total = 0;
            for_children(rows, x, [&](int64_t first, int count, const int64_t* ys, const int64_t* xs) {
                const E* g[GROUP];
                for (int q = 0; q < count; ++q) {
                    g[q] = grad.at(ys[q], xs[q]);
                    // Where the decoder's gradient is computed too, it reads this row first: ask for its next new one.
                    const E* next = g[q] + (gathers ? reach * child_rows * grad.row : ahead);
                    for (int64_t c = 0; c < channels; c += 64 / static_cast<int64_t>(sizeof(E))) {
                        __builtin_prefetch(next + c, 0, 2);  // into the second cache: the first holds the window
                    }
                }
                if (dots) all_scores(count, g);
                for (int q = 0; q < count; ++q) {
                    const int64_t at = ((ys[q] - y0) * staged_pixels() + xs[q] - first_pixel) * padded_taps;
                    const A* w = row_kernels + (x - stage_from) * point_size() + (first + q) * padded_taps;
                    A* to_logits = direct_logits ? reinterpret_cast<A*>(call.grad_logits.at(b, 0, ys[q], xs[q])) : grad_kernels + at;
                    const A mean = dots ? kernel_gradient(w, scores + q * padded_taps, rest, coarse, to_logits) : 0;
                    if (!call.encoder) continue;
                    E* to = call.grad_encoder ? grad_encoder.at(ys[q], xs[q]) : nullptr;
                    gate_total += gate_one<E>(g[q], encoder.at(ys[q], xs[q]), to, gate, channels, call.stream && !staged, ahead) - mean;
                }
            });
            if (call.grad_gate) {
                const A value = gate_total * gate * rest;
                store_tile<A>(call.grad_gate, b, row, x, int64_t{1}, int64_t{1}, &value, int64_t{L});
            }
        }
        if (call.grad_coarse) store_tile<A>(call.grad_coarse, b, row, left, right - left, int64_t{taps}, coarse_row, padded_taps);
        for (int64_t y = y0; y < y1; ++y) {
            const A* tile = grad_kernels + ((y - y0) * staged_pixels() + x0 - first_pixel) * padded_taps;
            if (call.grad_logits && !direct_logits) store_tile<A>(call.grad_logits, b, y, x0, n, int64_t{taps}, tile, padded_taps);
            if (call.grad_encoder && staged) {
                store_tile<A>(call.grad_encoder, b, y, x0, n, channels, as_tile(grad_encoder.at(y, x0)), padded_channels);
            }
        }
    }

    void all_scores(int count, const E* const* g) {
        if (count == GROUP) return dot<E, K, GROUP>(g, tap, side, channels, scores, padded_taps);
        for (int q = 0; q < count; ++q) dot<E, K, 1>(g + q, tap, side, channels, scores + q * padded_taps, padded_taps);
    }

    /// grad of the logits, w * (s - mean) with mean = sum of w * s / (1 - gate), which is returned: grad · up. `w` has
    /// the factor 1 - gate in it already. Adds to the gradient of the coarse logits. Where raw, the scores themselves.
    A kernel_gradient(const A* w, const A* s, A rest, A* coarse, A* out) const {
        if (call.raw) {
            std::memcpy(out, s, static_cast<size_t>(taps) * sizeof(A));
            return 0;
        }
        A none[L];
        const int vectors = static_cast<int>(padded_taps) / L, last = taps - (vectors - 1) * L;
        Vector<A> total = {};
        for (int i = 0; i < vectors; ++i) total += read<Vector<A>>(w + i * L) * load_one(s + i * L, i + 1 < vectors ? L : last);
        const A weighted = sum<A>(total);
        A mean = rest == 0 && weighted == 0 ? 0 : weighted / rest;
        if (taps == 1) mean = s[0] + 0 * w[0];  // exactly no gradient, but NaN where the kernel is
        for (int i = 0; i < vectors; ++i) {
            const Vector<A> value = read<Vector<A>>(w + i * L) * (load_one(s + i * L, i + 1 < vectors ? L : last) - mean);
            if (i + 1 < vectors || last == L) {
                write(out + i * L, value);
            } else {
                write(none, value);
                std::memcpy(out + i * L, none, static_cast<size_t>(last) * sizeof(A));
            }
            write(coarse + i * L, read<Vector<A>>(coarse + i * L) + value);
        }
        return mean;
    }

    /// Gradient of a row of the decoder, from the children of the rows around it.
    void gather_row(int64_t row) {
        const int first = static_cast<int>(std::max<int64_t>(0, reach - row));
        const int last = static_cast<int>(std::min<int64_t>(side - 1, call.height - 1 - row + reach));
        const int64_t column = staged ? padded_channels : call.grad.column;
        for (int i = first; i <= last; ++i) {
            const int64_t near = row + i - reach;
            Source<E>& source = sources[i];
            source.weights = kernels + slot(near) * kernels_size() - stage_from * point_size();
            source.rows = row_start(near + 1) - row_start(near);
            const Pixels grad = pixels(call.grad, grad_tiles, near, slot(near));
            source.grad = grad.at(row_start(near), first_pixel);
            source.grad_row = grad.row;
        }
        // Channels outside, points inside: the rows of a block of channels then stay in the nearest cache.
        constexpr int64_t STEP = 2 * L;
        constexpr int WIDE = K ? PAIRS : 1;
        int64_t c = 0;
        for (; WIDE > 1 && c + WIDE * STEP <= channels; c += WIDE * STEP) gather<WIDE>(row, first, last, column, c, 0);
        for (; c + STEP <= channels; c += STEP) gather<1>(row, first, last, column, c, 0);
        if (c < channels) gather<1, true>(row, first, last, column, c, channels - c);
        if (!staged) return;
        store_tile<A>(call.grad_decoder, b, row, left, right - left, channels, as_tile(point_tile), padded_channels);
    }

    template <int NP, bool PART = false>
    void gather(int64_t row, int first, int last, int64_t column, int64_t c, int64_t part) {
        for (int64_t x = left; x < right; x += GROUP) {
            const int points = static_cast<int>(std::min<int64_t>(GROUP, right - x));
            E* out[GROUP];
            for (int p = 0; p < points; ++p) {
                out[p] = staged ? point_tile + (x + p - left) * padded_channels
                                : reinterpret_cast<E*>(call.grad_decoder.at(b, 0, row, x + p));
            }
            if (K && call.out_height == 2 * call.height && call.out_width == 2 * call.width) {
                gather_block<E, K, NP, PART, K != 0>(sources, first, last, side, x, points, call.width, start_table - stage_from,
                                                     first_pixel, padded_taps, point_size(), column, c, part, out);
            } else {
                gather_block<E, 0, NP, PART, false>(sources, first, last, side, x, points, call.width, start_table - stage_from,
                                                    first_pixel, padded_taps, point_size(), column, c, part, out);
            }
        }
    }

    const Call& call;
    const int side;
    const int64_t reach;
    const int taps;
    const int64_t padded_taps, channels, padded_channels;
    const bool backward, dots, gathers, reads_decoder, staged;
    int64_t child_rows, child_columns, segment;
    int64_t b = 0, left = 0, right = 0, stage_from = 0, stage_to = 0, first_pixel = 0;
    A *kernels = nullptr, *coarse_tile = nullptr, *logit_tile = nullptr, *gates = nullptr, *grad_kernels = nullptr, *scores = nullptr;
    int64_t* start_table = nullptr;
    const E **tap = nullptr, **row_base = nullptr;
    int64_t decoder_column = 0;
    bool inner_rows = false;
    const E* zeros = nullptr;
    Source<E>* sources = nullptr;
    E *decoder_tiles = nullptr, *pixel_tile = nullptr, *grad_tiles = nullptr, *grad_encoder_tile = nullptr, *point_tile = nullptr;
};

template <class E, int K, bool BACKWARD>
void rows(int64_t begin, int64_t end, void* context) {
    Call& call = *static_cast<Call*>(context);
    if (!Band<E, K>(call, BACKWARD).run(begin, end)) __atomic_store_n(&call.out_of_memory, 1, __ATOMIC_RELAXED);
}

template <class E, int K>
Task task(int32_t backward) {
    return backward ? rows<E, K, true> : rows<E, K, false>;
}

}  // namespace

// The compiler takes its time, so native.py has it make two halves at once: 1 is float32, 2 the other types.
#ifndef FADEUP_PART
#define FADEUP_PART 0
#endif

extern "C" void* fadeup_other_task(const void* call, int64_t type, int32_t backward);

#if FADEUP_PART != 1
extern "C" void* fadeup_other_task(const void* context, int64_t type, int32_t backward) {
    const Call& call = *static_cast<const Call*>(context);
    Task found = call.kernel_size == 5 ? task<bfloat16, 5>(backward) : task<bfloat16, 0>(backward);
    if (type == FLOAT64) found = task<double, 0>(backward);
    if (type == FLOAT16) found = task<float16, 0>(backward);
    return reinterpret_cast<void*>(found);
}
#endif

#if FADEUP_PART != 2
namespace {

Task task_for(const Call& call, int32_t backward) {
    const int64_t type = backward ? call.grad.type : call.out.type;
    if (type == FLOAT64 || (type != FLOAT32 && is_direct(call, type))) {
        return reinterpret_cast<Task>(fadeup_other_task(&call, type, backward));
    }
    switch (call.kernel_size) {
        case 5: return task<float, 5>(backward);
        case 3: return task<float, 3>(backward);
        default: return task<float, 0>(backward);
    }
}

int32_t in_turn(int64_t begin, int64_t end, int64_t, Task task, void* context) {
    task(begin, end, context);
    return 0;
}

struct Peak {
    int64_t rounds;
    float sink;
};
void multiply_add(int64_t begin, int64_t end, void* context) {
    Peak& peak = *static_cast<Peak*>(context);
    constexpr int CHAINS = 12;  // enough to hide the latency, few enough for 16 registers
    for (int64_t item = begin; item < end; ++item) {
        Vector<float> total[CHAINS] = {}, factor = Vector<float>{} + 0.999f, all = {};
        for (int k = 0; k < CHAINS; ++k) total[k] += static_cast<float>(k);  // alike, they would be computed once
        for (int64_t i = 0; i < peak.rounds; ++i) {
            for (int k = 0; k < CHAINS; ++k) total[k] = total[k] * factor + factor;
        }
        for (int k = 0; k < CHAINS; ++k) all += total[k];
        __atomic_store(&peak.sink, &reinterpret_cast<float&>(all), __ATOMIC_RELAXED);  // so that it is not left out
    }
}

}  // namespace

extern "C" {

/// Runs one call on PyTorch's threads, or on this one where `parallel_for` is null. 0, or 1 for want of memory.
int32_t fadeup_run(ParallelFor parallel_for, Call* call, int32_t backward) {
    const int64_t items = call->batches * call->height;
    const int64_t work = call->out_width * (call->out_height / call->height + 1) * call->kernel_size * call->kernel_size * (call->channels + 16);
    const int64_t grain = std::max<int64_t>(1, (1 << 17) / std::max<int64_t>(1, work));  // some 10 µs of work a thread
    const Task task = task_for(*call, backward);
    call->out_of_memory = 0;
    (parallel_for ? parallel_for : in_turn)(0, items, grain, task, call);
    return static_cast<int32_t>(call->out_of_memory);
}

/// `items` times `rounds` * the returned number of multiply–adds, in registers: for the machine's peak.
int64_t fadeup_peak(ParallelFor parallel_for, int64_t items, int64_t rounds) {
    Peak peak = {rounds, 0};
    (parallel_for ? parallel_for : in_turn)(0, items, 1, multiply_add, &peak);
    return 12 * LANES<float>;
}
}
#endif
