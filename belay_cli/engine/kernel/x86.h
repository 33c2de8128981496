/* What both x86 kernels share: eight float32 from and to every dtype but float64. */

#include <immintrin.h>

typedef __m256 F8;
typedef __m256i Mask; /* not zero where an element was not finite */

INLINE Mask mask_none(void) { return _mm256_setzero_si256(); }

INLINE int mask_any(Mask bad) { return !_mm256_testz_si256(bad, bad); }

INLINE F8 f8_load_f32(const void *from) { return _mm256_loadu_ps((const float *)from); }

INLINE F8 f8_load_f16(const void *from) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)); }

INLINE F8 f8_load_bf16(const void *from) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

INLINE F8 f8_one_nan(F8 x) {
    F8 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    return _mm256_blendv_ps(x, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

INLINE void f8_store_f32(void *to, F8 x, Mask *bad) {
    __m256i bits, exponent = _mm256_set1_epi32(0x7f800000);
    x = f8_one_nan(x);
    bits = _mm256_castps_si256(x);
    *bad = _mm256_or_si256(*bad, _mm256_cmpeq_epi32(_mm256_and_si256(bits, exponent), exponent));
    _mm256_storeu_ps((float *)to, x);
}

INLINE void halves_store(void *to, __m128i halves, short every_exponent_bit, Mask *bad) {
    __m128i exponent = _mm_set1_epi16(every_exponent_bit);
    __m128i found = _mm_cmpeq_epi16(_mm_and_si128(halves, exponent), exponent);
    *bad = _mm256_or_si256(*bad, _mm256_set_m128i(found, found));
    _mm_storeu_si128((__m128i *)to, halves);
}

INLINE void f8_store_f16(void *to, F8 x, Mask *bad) {
    halves_store(to, _mm256_cvtps_ph(f8_one_nan(x), _MM_FROUND_TO_NEAREST_INT), 0x7c00, bad);
}

INLINE void f8_store_bf16(void *to, F8 x, Mask *bad) {
    /* To nearest, ties to even: half of the last place is added, less one where that place is even. */
    __m256i bits = _mm256_castps_si256(f8_one_nan(x));
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i high = _mm256_srli_epi32(up, 16);
    __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    halves_store(to, halves, 0x7f80, bad);
}

typedef unsigned int FloatMode;

/* Subnormals are numbers and rounding is to nearest, whatever the program that calls has set. */
INLINE FloatMode exact_mode(void) {
    FloatMode before = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return before;
}

INLINE void restore_mode(FloatMode before) { _mm_setcsr(before); }
