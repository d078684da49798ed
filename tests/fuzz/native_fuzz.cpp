// libFuzzer harness of src/fadeup/kernels/native.cpp: bytes become one call of `fadeup_run`, as native.py makes them or
// as its C ABI allows them, and every number that comes back is held against the formula written as plain loops.
//
// Each map lies in memory of its own of exactly its extent, so that AddressSanitizer sees one byte beyond it. Results lie
// in memory of 0xff: an element that keeps it was not written, and a byte between elements that loses it was. Bounds of
// error are those of a sum of so many terms in the accumulator's precision, with every factor's own rounding; nothing
// is asked where sums leave the accumulator's range, or where a weight so small that it may be 0 meets an infinity.
//
// FADEUP_FUZZ_BREAK = short | value | unwritten | gap makes the harness wrong in that way, to see that it tells.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

// ---- the C ABI, as native.py fills it in ----

enum Type : int64_t { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };
struct Map {
    char* data;
    int64_t batch, channel, row, column, type;
};
enum Name { DECODER, LOGITS, COARSE, ENCODER, GATE, OUT, GRAD, GRAD_DECODER, GRAD_LOGITS, GRAD_COARSE, GRAD_ENCODER, GRAD_GATE, NAMES };
const char* const NAME[] = {"decoder", "logits", "coarse", "encoder", "gate", "out", "grad",
                            "grad_decoder", "grad_logits", "grad_coarse", "grad_encoder", "grad_gate"};
struct Call {
    int64_t batches, channels, height, width, out_height, out_width, kernel_size, raw, stream, out_of_memory;
    Map maps[NAMES];
};
using Task = void (*)(int64_t, int64_t, void*);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Task task, void* context);
extern "C" int32_t fadeup_run(ParallelFor parallel_for, Call* call, int32_t backward);

extern "C" const char* __asan_default_options() {  // fresh scratch memory holds NaN
    return "malloc_fill_byte=255:max_malloc_fill_size=1073741824";
}

namespace {

const std::string broken = [] {
    const char* how = std::getenv("FADEUP_FUZZ_BREAK");
    return std::string(how ? how : "");
}();

/// Takes choices off the input, zeros at its end.
class Bytes {
  public:
    Bytes(const uint8_t* data, size_t size) : data(data), end(data + size) {}
    int byte() { return data < end ? *data++ : 0; }
    int below(int n) { return byte() % n; }
    bool flip() { return byte() & 1; }
    bool empty() const { return data >= end; }

  private:
    const uint8_t *data, *end;
};

// ---- number formats ----

struct Format {
    int bytes, digits, least;  // digits after the point, exponent of the smallest normal number
    double largest;
};
constexpr Format FORMATS[] = {{4, 23, -126, FLT_MAX}, {8, 52, -1022, DBL_MAX}, {2, 7, -126, 0x1.fep127}, {2, 10, -14, 65504}};

template <class R>
R rounded(R x, const Format& to) {
    if (!std::isfinite(x) || x == 0) return x;
    const R unit = std::ldexp(R{1}, std::max(std::ilogb(x), to.least) - to.digits);
    const R near = std::nearbyint(x / unit) * unit;
    return std::fabs(near) > to.largest ? std::copysign(std::numeric_limits<R>::infinity(), x) : near;
}

void put(char* to, int64_t type, double x) {  // `x` is of that type already
    const float narrow = static_cast<float>(x);
    uint32_t bits;
    std::memcpy(&bits, &narrow, 4);
    uint16_t half = static_cast<uint16_t>(bits >> 16);
    if (type == FLOAT32) {
        std::memcpy(to, &narrow, 4);
    } else if (type == FLOAT64) {
        std::memcpy(to, &x, 8);
    } else {
        if (type == FLOAT16) {
            const double size = std::fabs(x);
            half = std::signbit(x) ? 0x8000 : 0;
            if (!std::isfinite(x)) {
                half |= std::isnan(x) ? 0x7e00 : 0x7c00;
            } else if (size < 0x1p-14) {
                half |= static_cast<uint16_t>(size * 0x1p24);
            } else {
                const int exponent = std::ilogb(size);
                half |= static_cast<uint16_t>((exponent + 14) * 1024 + static_cast<int>(std::ldexp(size, 10 - exponent)));
            }
        }
        std::memcpy(to, &half, 2);
    }
}

double get(const char* from, int64_t type) {
    if (type == FLOAT64) {
        double x;
        std::memcpy(&x, from, 8);
        return x;
    }
    uint32_t bits = 0;
    std::memcpy(&bits, from, static_cast<size_t>(FORMATS[type].bytes));
    if (type == FLOAT16) {
        const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
        double x = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : mantissa * 0x1p-24;
        if (exponent == 31) x = mantissa ? NAN : INFINITY;
        return bits & 0x8000 ? -x : x;
    }
    if (type == BFLOAT16) bits <<= 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// ---- maps in memory ----

enum Layout { CONTIGUOUS, CHANNELS_LAST, PADDED, EXPANDED, LAYOUTS };

/// A map, its memory, and its values in the order (b, c, y, x).
struct Buffer {
    int64_t shape[4] = {}, strides[4] = {}, type = 0, offset = 0, extent = 0;
    int layout = 0;
    char *memory = nullptr, *data = nullptr;
    std::vector<double> values;

    Buffer() = default;
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(memory); }
    explicit operator bool() const { return data != nullptr; }
    int64_t size() const { return shape[0] * shape[1] * shape[2] * shape[3]; }
    int64_t bytes() const { return FORMATS[type].bytes; }
    double operator()(int64_t b, int64_t c, int64_t y, int64_t x) const {
        return values[static_cast<size_t>(((b * shape[1] + c) * shape[2] + y) * shape[3] + x)];
    }
    char* at(int64_t index) const {
        int64_t place = 0;
        for (int i = 3; i >= 0; --i) {
            place += index % shape[i] * strides[i];
            index /= shape[i];
        }
        return data + place * bytes();
    }

    /// Chooses strides; of results, no two elements share memory.
    void lay(Bytes& choice, bool result) {
        layout = choice.below(LAYOUTS);
        if (result && layout == EXPANDED) layout = CHANNELS_LAST;
        offset = choice.below(4) ? 0 : 1 + choice.below(40);
        int order[] = {3, 2, 1, 0};  // from the innermost dimension
        if (layout == CHANNELS_LAST) {
            order[0] = 1, order[1] = 3, order[2] = 2;
        } else if (layout == PADDED) {
            std::swap(order[0], order[choice.below(4)]);
            std::swap(order[1], order[1 + choice.below(3)]);
            std::swap(order[2], order[2 + choice.below(2)]);
        }
        int64_t stride = layout == PADDED ? 1 + choice.below(3) : 1;
        const int repeated = layout == EXPANDED ? choice.byte() : 0;
        for (int i : order) {
            strides[i] = stride;
            if (repeated >> i & 1) {
                strides[i] = 0;
                continue;
            }
            stride *= shape[i];
            if (layout == PADDED) stride += choice.below(5);
            if (layout == PADDED && shape[i] == 1) strides[i] = choice.byte() * 257;  // torch has any number there
        }
    }

    void allocate(bool result) {
        extent = 1;
        for (int i = 0; i < 4; ++i) extent += (shape[i] - 1) * strides[i];
        const int64_t cut = result && broken == "short" ? 1 : 0;
        const size_t size = static_cast<size_t>((offset + extent - cut) * bytes());
        void* aligned = nullptr;  // as torch's memory is; with an offset no better than to an element
        if (posix_memalign(&aligned, 64, size)) std::abort();
        memory = static_cast<char*>(aligned);
        std::memset(memory, 0xff, size);
        data = memory + offset * bytes();
    }

    Map map() const { return {data, strides[0], strides[1], strides[2], strides[3], type}; }
};

enum Values { ORDINARY, LARGE, TINY, WIDE, ZERO, SPECIAL, VALUES };

double special(int which, const Format& format, double random) {
    const double unit = std::ldexp(1.0, format.least - format.digits);
    switch (which % 10) {
        case 0: return NAN;
        case 1: return INFINITY;
        case 2: return -INFINITY;
        case 3: return format.largest;
        case 4: return -format.largest;
        case 5: return unit;
        case 6: return -unit * std::floor(1000 * std::fabs(random));
        case 7: return -0.0;
        case 8: return 88 * random;
        default: return format.largest / 64 * random;
    }
}

void fill(Buffer& map, Bytes& choice) {
    const Format& format = FORMATS[map.type];
    const int kind = choice.below(VALUES);
    std::mt19937 random(static_cast<uint32_t>(choice.byte()));
    auto draw = [&] { return static_cast<double>(random()) * 0x1p-31 - 1; };
    auto set = [&](int64_t i, double x) { put(map.at(i), map.type, rounded(x, format)); };
    for (int64_t i = 0; i < map.size(); ++i) {
        const double x = draw();
        switch (kind) {
            case LARGE: set(i, 30 * x); break;
            case TINY: set(i, x * std::ldexp(1.0, format.least + 2)); break;
            case WIDE: set(i, x * std::ldexp(1.0, static_cast<int>(random() % 60) - 30)); break;
            case ZERO: set(i, 0); break;
            default: set(i, 3 * x);
        }
    }
    const int spots = kind == SPECIAL ? 1 + choice.below(6) : 0;
    for (int spot = 0; spot < spots; ++spot) {
        const int which = choice.byte();
        const int64_t from = (choice.byte() * 256 + choice.byte()) % map.size(), count = which & 128 ? choice.byte() : 1;
        for (int64_t i = from; i < std::min(map.size(), from + count); ++i) set(i, special(which & 127, format, draw()));
    }
    map.values.resize(static_cast<size_t>(map.size()));
    for (int64_t i = 0; i < map.size(); ++i) map.values[static_cast<size_t>(i)] = get(map.at(i), map.type);
}

// ---- a case ----

struct Case {
    int64_t batches, channels, height, width, out_height, out_width, kernel_size;
    bool raw = false, backward = false, stream = false;
    int threads = 0;
    Buffer maps[NAMES];

    explicit Case(Bytes& choice) {
        sizes(choice);
        parts(choice);
        types(choice);
        for (int i = 0; i < NAMES; ++i) {
            if (!present[i]) continue;
            const bool fine = i == LOGITS || i == ENCODER || i == OUT || i == GRAD || i == GRAD_LOGITS || i == GRAD_ENCODER;
            const bool taps = i == LOGITS || i == COARSE || i == GRAD_LOGITS || i == GRAD_COARSE;
            const bool gate = i == GATE || i == GRAD_GATE, result = i == OUT || i >= GRAD_DECODER;
            const int64_t shape[] = {batches, taps ? kernel_size * kernel_size : gate ? 1 : channels, fine ? out_height : height,
                                     fine ? out_width : width};
            std::copy(shape, shape + 4, maps[i].shape);
            maps[i].lay(choice, result);
            maps[i].allocate(result);
            if (!result) fill(maps[i], choice);
        }
        const Buffer& streamed = maps[backward ? GRAD_ENCODER : OUT];
        stream = streamed && streamed.layout == CHANNELS_LAST && streamed.offset == 0 && channels * streamed.bytes() % 64 == 0;
        threads = choice.byte();
    }

    Call call() const {
        Call call = {batches, channels, height, width, out_height, out_width, kernel_size, raw, stream, 0, {}};
        for (int i = 0; i < NAMES; ++i) call.maps[i] = maps[i] ? maps[i].map() : Map{};
        return call;
    }

    void print() const {
        std::fprintf(stderr, "%s%s B%d C%d %dx%d -> %dx%d K%d stream %d threads %d\n", backward ? "backward" : "forward", raw ? " raw" : "",
                     int(batches), int(channels), int(height), int(width), int(out_height), int(out_width), int(kernel_size), stream, threads);
        for (int i = 0; i < NAMES; ++i) {
            const Buffer& m = maps[i];
            if (m) std::fprintf(stderr, "  %s: type %d strides %d %d %d %d offset %d\n", NAME[i], int(m.type), int(m.strides[0]),
                                int(m.strides[1]), int(m.strides[2]), int(m.strides[3]), int(m.offset));
        }
    }

  private:
    bool present[NAMES] = {};

    static int64_t enlarged(Bytes& choice, int64_t size) {
        switch (choice.below(6)) {
            case 0: return 2 * size - 1;
            case 1: return size;
            case 2: return size * (3 + choice.below(3));
            case 3: return size + choice.below(static_cast<int>(2 * size + 3));
            default: return 2 * size;
        }
    }

    void sizes(Bytes& choice) {
        kernel_size = 1 + 2 * choice.below(5);
        batches = 1 + choice.below(3);
        channels = 1 + (choice.flip() ? choice.below(9) : choice.below(140));
        height = 1 + choice.below(9);
        width = 1 + (choice.below(8) ? choice.below(14) : choice.below(150));
        out_height = enlarged(choice, height);
        out_width = enlarged(choice, width);
        // Small enough for hundreds of calls a second.
        auto work = [&] { return batches * channels * kernel_size * kernel_size * out_height * out_width; };
        if (work() > WORK) batches = 1;
        while (work() > WORK && height > 1) out_height = (out_height + 1) / 2, height = (height + 1) / 2;
        if (work() > WORK) channels = std::max<int64_t>(1, channels * WORK / work());
        while (work() > WORK) out_width = (out_width + 1) / 2, width = (width + 1) / 2;
    }
    static constexpr int64_t WORK = 200000;

    /// Which maps there are: a forward or backward pass of reassemble, or one of the four calls of window_dot.
    void parts(Bytes& choice) {
        raw = choice.below(4) == 0;
        backward = choice.flip();
        const int asked = choice.byte(), given = choice.byte();
        present[DECODER] = true;
        present[LOGITS] = true;
        present[backward ? GRAD : OUT] = true;
        if (raw) {
            present[GRAD_DECODER] = backward && (asked & 1);
            present[GRAD_LOGITS] = backward && !(asked & 1);
            if (present[GRAD_LOGITS]) present[LOGITS] = false;
            return;
        }
        present[COARSE] = given & 1;
        present[ENCODER] = present[GATE] = given & 2;
        for (int i = DECODER; backward && i <= GATE; ++i) {
            present[GRAD_DECODER + i] = present[i] && ((asked >> i & 1) || asked >> 5 == 0);
        }
    }

    /// All float64, or any others; most often those of PyTorch: features of one type, kernels of one type.
    void types(Bytes& choice) {
        const int64_t others[] = {FLOAT32, BFLOAT16, FLOAT16};
        const int kind = choice.byte();
        const int64_t features = others[kind % 3], kernels = kind & 64 ? FLOAT32 : features;
        for (int i = DECODER; i <= GATE; ++i) {
            maps[i].type = i == DECODER || i == ENCODER ? features : kernels;
            if (kind >= 224) maps[i].type = others[choice.below(3)];
            if (kind >= 128 && kind < 160) maps[i].type = FLOAT64;
            maps[GRAD_DECODER + i].type = maps[i].type;
        }
        maps[OUT].type = maps[GRAD].type = maps[DECODER].type;
        if (raw) {  // one type for all
            for (Buffer& map : maps) map.type = maps[DECODER].type;
        }
    }
};

// ---- what is expected ----

/// Values, and how far from them a result may lie: infinitely where nothing is promised.
template <class R>
struct Expected {
    std::vector<R> value, bound;
    explicit Expected(const Buffer& map) : value(static_cast<size_t>(map.size())), bound(value.size()) {}
};

constexpr double ANY = std::numeric_limits<double>::infinity();

/// A sum of products in the accumulator's precision: its value, and the sizes that its error depends on.
template <class R>
struct Sum {
    R value = 0, size = 0, factors = 0;  // of all terms; of the finite ones; of what the weights multiply
    int64_t terms = 0;
    bool doubtful = false, finite = true;

    void add(R weight, R x, bool faint = false) {
        const R term = weight * x;
        value += term;
        ++terms;
        if (std::isfinite(term)) {
            size += std::fabs(term);
        } else {
            finite = false;
        }
        if (std::isfinite(x)) factors += std::fabs(x);
        if (faint && !std::isfinite(x)) doubtful = true;
    }
};

/// The formula at the head of native.cpp and its gradients. R is wider than the accumulator.
template <class R>
class Reference {
  public:
    explicit Reference(const Case& c)
        : c(c), k(c.kernel_size), taps(k * k), wide(c.maps[DECODER].type == FLOAT64),
          unit(wide ? DBL_EPSILON / 2 : FLT_EPSILON / 2), faint(wide ? 1e-307 : 4e-38), least(wide ? 5e-324 : 1.5e-45),
          limit((wide ? DBL_MAX : FLT_MAX) / 4),
          // e^x to 2e-7 in float32, the sum of a softmax, a sigmoid and their product
          weight_error(c.raw ? 0 : static_cast<R>(wide ? 4 * unit : 2e-7) + static_cast<R>(taps + 12) * unit) {
        for (int i = 0; i < NAMES; ++i) expected.emplace_back(c.maps[i]);
        weights.resize(static_cast<size_t>(taps));
    }

    std::vector<Expected<R>> expected;

    void compute() {
        for (int64_t b = 0; b < c.batches; ++b) {
            for (int64_t y = 0; y < c.out_height; ++y) {
                for (int64_t x = 0; x < c.out_width; ++x) {
                    at(b, y, x);
                    if (c.backward) {
                        backward();
                    } else {
                        forward();
                    }
                }
            }
        }
        for (const int i : {GRAD_DECODER, GRAD_COARSE, GRAD_GATE}) finish(i);
    }

  private:
    size_t index(int map, int64_t channel, int64_t row, int64_t column) const {
        const int64_t* shape = c.maps[map].shape;
        return static_cast<size_t>(((b * shape[1] + channel) * shape[2] + row) * shape[3] + column);
    }
    bool is_faint(R x) const { return x > 0 && x < faint; }
    R bound_of(const Sum<R>& sum) const {
        if (sum.doubtful || sum.size > limit) return ANY;
        return sum.size * (weight_error + static_cast<R>(sum.terms + 8) * unit) + (c.raw ? 0 : faint) * sum.factors +
               static_cast<R>(sum.terms + 1) * least;
    }
    void set(int map, size_t at, R value, R bound) {
        expected[static_cast<size_t>(map)].value[at] = value;
        expected[static_cast<size_t>(map)].bound[at] = bound;
    }
    R window(int64_t channel, int64_t t) const {
        const int64_t row = sy + t / k - k / 2, column = sx + t % k - k / 2;
        const bool inside = row >= 0 && row < c.height && column >= 0 && column < c.width;
        return inside ? c.maps[DECODER](b, channel, row, column) : 0;
    }
    R narrowed(R x) const { return rounded(x, FORMATS[wide ? FLOAT64 : FLOAT32]); }

    /// The kernel of an output pixel, and its gate.
    void at(int64_t batch, int64_t row, int64_t column) {
        b = batch, y = row, x = column;
        sy = y * c.height / c.out_height, sx = x * c.width / c.out_width;
        gate = 0, rest = 1;
        if (c.maps[GATE]) {
            const R logit = c.maps[GATE](b, 0, sy, sx);
            gate = 1 / (1 + std::exp(-logit)), rest = 1 / (1 + std::exp(logit));
        }
        if (!c.maps[LOGITS]) return;
        R top = -std::numeric_limits<R>::infinity(), total = 0;
        for (int64_t t = 0; t < taps; ++t) {
            R& w = weights[static_cast<size_t>(t)];
            w = c.maps[LOGITS](b, t, y, x);
            if (c.maps[COARSE]) w = narrowed(w + static_cast<R>(c.maps[COARSE](b, t, sy, sx)));
            if (!(w <= top)) top = w;  // NaN stays
        }
        if (c.raw) return;
        for (R& w : weights) total += w = std::exp(narrowed(w - top));
        for (R& w : weights) w /= total;
    }

    void forward() {
        for (int64_t ch = 0; ch < c.channels; ++ch) {
            Sum<R> sum;
            if (c.maps[ENCODER]) sum.add(gate, c.maps[ENCODER](b, ch, y, x), is_faint(gate));
            for (int64_t t = 0; t < taps; ++t) {
                const R w = weights[static_cast<size_t>(t)] * rest;
                sum.add(w, window(ch, t), !c.raw && is_faint(w));
            }
            set(OUT, index(OUT, ch, y, x), sum.value, bound_of(sum));
        }
    }

    void backward() {
        if (c.maps[GRAD_DECODER]) to_decoder();
        if (c.maps[GRAD_ENCODER]) {
            for (int64_t ch = 0; ch < c.channels; ++ch) {
                Sum<R> sum;
                sum.add(gate, c.maps[GRAD](b, ch, y, x), is_faint(gate));
                set(GRAD_ENCODER, index(GRAD_ENCODER, ch, y, x), sum.value, bound_of(sum));
            }
        }
        if (c.maps[GRAD_LOGITS] || c.maps[GRAD_COARSE] || c.maps[GRAD_GATE]) to_kernels();
    }

    void to_decoder() {
        if (sums.empty()) sums.resize(static_cast<size_t>(c.maps[GRAD_DECODER].size()));
        for (int64_t t = 0; t < taps; ++t) {
            const int64_t row = sy + t / k - k / 2, column = sx + t % k - k / 2;
            if (row < 0 || row >= c.height || column < 0 || column >= c.width) continue;
            const R w = weights[static_cast<size_t>(t)] * rest;
            for (int64_t ch = 0; ch < c.channels; ++ch) {
                sums[index(GRAD_DECODER, ch, row, column)].add(w, c.maps[GRAD](b, ch, y, x), !c.raw && is_faint(w));
            }
        }
    }

    /// Gradients of logits, coarse logits and gate: p * (1 - g) * (s - mean), and g * (1 - g) * (grad . encoder - mean).
    void to_kernels() {
        std::vector<Sum<R>> scores(static_cast<size_t>(taps));
        Sum<R> gated;
        R mean = 0, size = 0, all = 0;
        bool doubtful = false, finite = true, weak = is_faint(rest) || is_faint(gate);
        for (int64_t t = 0; t < taps; ++t) {
            Sum<R>& s = scores[static_cast<size_t>(t)];
            for (int64_t ch = 0; ch < c.channels; ++ch) s.add(c.maps[GRAD](b, ch, y, x), window(ch, t));
            if (c.raw) {
                set(GRAD_LOGITS, index(GRAD_LOGITS, t, y, x), s.value, bound_of(s));
                continue;
            }
            const R w = weights[static_cast<size_t>(t)];
            mean += w * s.value;
            size += w * s.size;
            all += s.size;
            finite = finite && s.finite;
            weak = weak || is_faint(w) || is_faint(w * rest);
        }
        if (c.raw) return;
        if (c.maps[ENCODER]) {
            for (int64_t ch = 0; ch < c.channels; ++ch) gated.add(c.maps[GRAD](b, ch, y, x), c.maps[ENCODER](b, ch, y, x));
        }
        doubtful = all > limit || gated.size > limit || (weak && !(finite && gated.finite));
        const R error = 2 * weight_error + static_cast<R>(taps + c.channels + 16) * unit;
        const R slips = faint * all + static_cast<R>(taps + c.channels + 8) * least;
        for (int64_t t = 0; t < taps; ++t) {
            const Sum<R>& s = scores[static_cast<size_t>(t)];
            const R w = weights[static_cast<size_t>(t)] * rest;
            const R value = taps == 1 ? 0 * (w * s.value) : w * (s.value - mean);
            const R bound = doubtful ? ANY : error * w * (s.size + size) + slips;
            if (c.maps[GRAD_LOGITS]) set(GRAD_LOGITS, index(GRAD_LOGITS, t, y, x), value, bound);
            if (c.maps[GRAD_COARSE]) add(GRAD_COARSE, index(GRAD_COARSE, t, sy, sx), value, bound, w * (s.size + size));
        }
        if (!c.maps[GRAD_GATE]) return;
        const R slope = gate * rest, bound = doubtful ? ANY : slope * error * (gated.size + size) + slips + faint * gated.size;
        add(GRAD_GATE, index(GRAD_GATE, 0, sy, sx), (gated.value - mean) * slope, bound, slope * (gated.size + size));
    }

    /// Adds a pixel's share to a gradient of its point.
    void add(int map, size_t at, R value, R bound, R size) {
        Expected<R>& e = expected[static_cast<size_t>(map)];
        e.value[at] += value;
        const R children = static_cast<R>((c.out_height / c.height + 1) * (c.out_width / c.width + 1));
        e.bound[at] += bound + size * children * unit + least;
    }

    void finish(int map) {
        if (map != GRAD_DECODER || !c.maps[GRAD_DECODER]) return;
        if (sums.empty()) sums.resize(static_cast<size_t>(c.maps[GRAD_DECODER].size()));
        for (size_t i = 0; i < sums.size(); ++i) set(GRAD_DECODER, i, sums[i].value, bound_of(sums[i]));
    }

    const Case& c;
    const int64_t k, taps;
    const bool wide;
    const R unit, faint, least, limit, weight_error;
    int64_t b = 0, y = 0, x = 0, sy = 0, sx = 0;
    R gate = 0, rest = 1;
    std::vector<R> weights;
    std::vector<Sum<R>> sums;
};

// ---- the check ----

[[noreturn]] void fail(const Case& c, int map, const char* what, int64_t at, double found, double wanted, double bound) {
    std::fprintf(stderr, "native_fuzz: %s of %s, element %lld: got %.17g, expected %.17g within %.3g\n", what, NAME[map],
                 static_cast<long long>(at), found, wanted, bound);
    c.print();
    std::abort();
}

/// Every element was written, and no byte between them.
void check_memory(const Case& c, int map) {
    const Buffer& m = c.maps[map];
    if (broken == "gap" && m.offset) m.memory[0] = 0;
    std::vector<bool> owned(static_cast<size_t>((m.offset + m.extent) * m.bytes()));
    const char poison[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
    for (int64_t i = 0; i < m.size(); ++i) {
        char* p = m.at(i);
        if (broken == "unwritten" && i + 1 == m.size()) std::memcpy(p, poison, static_cast<size_t>(m.bytes()));
        if (!std::memcmp(p, poison, static_cast<size_t>(m.bytes()))) fail(c, map, "unwritten element", i, 0, 0, 0);
        for (int64_t j = 0; j < m.bytes(); ++j) owned[static_cast<size_t>(p - m.memory + j)] = true;
    }
    for (size_t i = 0; i < owned.size(); ++i) {
        if (!owned[i] && m.memory[i] != -1) fail(c, map, "byte between the elements", static_cast<int64_t>(i), m.memory[i], -1, 0);
    }
}

template <class R>
void check_values(const Case& c, int map, const Expected<R>& expected) {
    const Buffer& m = c.maps[map];
    const Format& format = FORMATS[m.type];
    for (int64_t i = 0; i < m.size(); ++i) {
        const R bound = expected.bound[static_cast<size_t>(i)], found = get(m.at(i), m.type);
        R wanted = expected.value[static_cast<size_t>(i)];
        if (broken == "value") wanted += 4 * bound;
        if (bound == ANY || (std::isnan(wanted) && std::isnan(found))) continue;
        if (std::isinf(wanted) ? found == wanted : std::fabs(found - wanted) <= bound) continue;
        const bool rounds_there = rounded(wanted - bound, format) <= found && found <= rounded(wanted + bound, format);
        if (std::isinf(wanted) || !rounds_there) {
            fail(c, map, "value", i, static_cast<double>(found), static_cast<double>(wanted), static_cast<double>(bound));
        }
    }
}

template <class R>
void check(const Case& c) {
    Reference<R> reference(c);
    reference.compute();
    for (int i = OUT; i < NAMES; ++i) {
        if (!c.maps[i] || i == GRAD) continue;
        check_memory(c, i);
        check_values(c, i, reference.expected[static_cast<size_t>(i)]);
    }
}

/// Bands of odd sizes, from the last to the first, or on two threads.
int threads_choice = 0;
int32_t in_odd_bands(int64_t begin, int64_t end, int64_t, Task task, void* context) {
    auto some = [=](int64_t from, int64_t to) {
        for (int64_t step = 1 + threads_choice / 8 % 5; to > from; to -= step) task(std::max(from, to - step), to, context);
    };
    if (threads_choice % 8 > 2) {
        some(begin, end);
        return 0;
    }
    const int64_t middle = begin + (end - begin) * (threads_choice / 8 % 7) / 6;
    std::thread other(some, middle, end);
    some(begin, middle);
    other.join();
    return 0;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Bytes choice(data, size);
    const Case c(choice);
    Call call = c.call();
    threads_choice = c.threads / 2;
    if (fadeup_run(c.threads & 1 ? in_odd_bands : nullptr, &call, c.backward)) {
        c.print();
        std::abort();
    }
    if (c.maps[DECODER].type == FLOAT64) {
        check<long double>(c);
    } else {
        check<double>(c);
    }
    return 0;
}
