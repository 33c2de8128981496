/* CRC-32 by carry-less multiplication, where the processor has it, and by tables.

The checksum is the remainder of the data, taken as a polynomial over bits, modulo the polynomial of degree 32. Folding
keeps that remainder: 16 bytes times x^n mod P stand for the same 16 bytes n bits further on. So four running vectors
take 64 bytes a step, are folded into one, and that one is reduced by Barrett's method. The constants are x^n mod P with
their bits reflected, for the distances that are folded over; they follow from P alone, and are those of V. Gopal et al.,
"Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel, 2009. */

#include "crc32.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
#define FOLDS 1
#endif

#define POLYNOMIAL 0xEDB88320u

static uint32_t table[8][256]; /* [k][b]: the checksum of a byte b with k zero bytes behind it */

#ifdef __GNUC__
__attribute__((constructor))
#endif
static void fill_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? POLYNOMIAL : 0);
        table[0][byte] = value;
    }
    for (int k = 1; k < 8; k++)
        for (int byte = 0; byte < 256; byte++)
            table[k][byte] = table[k - 1][byte] >> 8 ^ table[0][table[k - 1][byte] & 255];
}

/* Eight bytes a step. The value is inverted, as it is between steps. */
static uint32_t by_tables(uint32_t value, const unsigned char *data, size_t count) {
    for (; count >= 8; data += 8, count -= 8) {
        value ^= data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
        value = table[7][value & 255] ^ table[6][value >> 8 & 255] ^ table[5][value >> 16 & 255] ^
                table[4][value >> 24] ^ table[3][data[4]] ^ table[2][data[5]] ^ table[1][data[6]] ^ table[0][data[7]];
    }
    for (; count; data++, count--)
        value = value >> 8 ^ table[0][(value ^ *data) & 255];
    return value;
}

#ifdef FOLDS
#define TARGET __attribute__((target("pclmul,sse4.1")))

TARGET static inline __m128i load(const unsigned char *data) { return _mm_loadu_si128((const __m128i *)data); }

/* A vector moved over a distance, which its two constants stand for, and added to what lies there. */
TARGET static inline __m128i fold(__m128i vector, __m128i constants, __m128i there) {
    __m128i low = _mm_clmulepi64_si128(vector, constants, 0x00), high = _mm_clmulepi64_si128(vector, constants, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), there);
}

/* The same for `count` bytes, at least 64 and a multiple of 16. */
TARGET static uint32_t by_folding(uint32_t value, const unsigned char *data, size_t count) {
    const __m128i over_64 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4); /* x^(512-32), x^(512+32) */
    const __m128i over_16 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0); /* x^(128-32), x^(128+32) */
    const __m128i over_8 = _mm_set_epi64x(0, 0x0163cd6124);             /* x^64 */
    const __m128i barrett = _mm_set_epi64x(0x01f7011641, 0x01db710641); /* x^64 / P, P */
    const __m128i halves = _mm_setr_epi32(-1, 0, -1, 0);
    __m128i a = _mm_xor_si128(load(data), _mm_cvtsi32_si128((int)value));
    __m128i b = load(data + 16), c = load(data + 32), d = load(data + 48), part;
    for (data += 64, count -= 64; count >= 64; data += 64, count -= 64) {
        a = fold(a, over_64, load(data));
        b = fold(b, over_64, load(data + 16));
        c = fold(c, over_64, load(data + 32));
        d = fold(d, over_64, load(data + 48));
    }
    a = fold(fold(fold(a, over_16, b), over_16, c), over_16, d);
    for (; count >= 16; data += 16, count -= 16)
        a = fold(a, over_16, load(data));
    a = _mm_xor_si128(_mm_srli_si128(a, 8), _mm_clmulepi64_si128(a, over_16, 0x10));
    part = _mm_srli_si128(a, 4);
    a = _mm_xor_si128(_mm_clmulepi64_si128(_mm_and_si128(a, halves), over_8, 0x00), part);
    part = _mm_clmulepi64_si128(_mm_and_si128(a, halves), barrett, 0x10);
    part = _mm_clmulepi64_si128(_mm_and_si128(part, halves), barrett, 0x00);
    return (uint32_t)_mm_extract_epi32(_mm_xor_si128(a, part), 1);
}
#endif

uint32_t belay_crc32(uint32_t value, const unsigned char *data, size_t count) {
    value = ~value;
#ifdef FOLDS
    if (count >= 64 && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1")) {
        size_t whole = count & ~(size_t)15;
        value = by_folding(value, data, whole);
        data += whole;
        count -= whole;
    }
#endif
    return ~by_tables(value, data, count);
}
