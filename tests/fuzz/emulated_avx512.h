// The AVX-512 path of native.cpp for a CPU that has AVX2 only: `-include` this, and the compiler halves its vectors of 64
// bytes. The instructions that it asks for by name are loops here, which touch the memory that those would touch.

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __AVX512F__ 1
#define __AVX512BW__ 1

namespace emulated {
typedef float Floats __attribute__((vector_size(64)));
typedef long long Integers __attribute__((vector_size(64)));

inline Floats cvtph_ps(__m256i half) {
    const __m256 parts[] = {_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
    Floats out;
    std::memcpy(&out, parts, sizeof out);
    return out;
}
inline __m256i cvtps_ph(Floats x) {
    __m256 parts[2];
    std::memcpy(parts, &x, sizeof parts);
    return _mm256_set_m128i(_mm256_cvtps_ph(parts[1], 0), _mm256_cvtps_ph(parts[0], 0));
}
template <class To, class Part>
To maskz_loadu(uint64_t mask, const void* from) {
    To out = {};
    for (unsigned i = 0; i < sizeof(To) / sizeof(Part); ++i) {
        if (mask >> i & 1) std::memcpy(reinterpret_cast<Part*>(&out) + i, static_cast<const Part*>(from) + i, sizeof(Part));
    }
    return out;
}
inline void stream_si512(void* to, Integers x) {
    if (reinterpret_cast<uintptr_t>(to) % 64) std::abort();  // as the instruction does
    std::memcpy(to, &x, sizeof x);
}
}  // namespace emulated

#define _mm512_cvtph_ps emulated::cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(x, rounding) emulated::cvtps_ph(x)
#define _mm512_maskz_loadu_ps(mask, from) emulated::maskz_loadu<emulated::Floats, float>(mask, from)
#define _mm512_maskz_loadu_epi16(mask, from) emulated::maskz_loadu<emulated::Integers, uint16_t>(mask, from)
#define _mm512_stream_si512(to, x) emulated::stream_si512(to, x)
#define asm(...)  // it names registers of 64 bytes
