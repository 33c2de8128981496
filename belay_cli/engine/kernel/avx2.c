/* The loops with AVX2 and FMA: eight float64 are two registers. */

#include "loops.h"

#if defined(__x86_64__) && defined(__GNUC__)

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define ABREAST 1 /* by 4 outputs: 8 of the 16 registers are sums */

#include "x86.h"

typedef struct {
    __m256d low, high;
} D8;

INLINE D8 d8_load(const double *from) {
    D8 x = {_mm256_loadu_pd(from), _mm256_loadu_pd(from + 4)};
    return x;
}

INLINE void d8_store(double *to, D8 x) {
    _mm256_storeu_pd(to, x.low);
    _mm256_storeu_pd(to + 4, x.high);
}

INLINE D8 d8_set(double x) {
    D8 all = {_mm256_set1_pd(x), _mm256_set1_pd(x)};
    return all;
}

INLINE D8 d8_fma(D8 a, D8 b, D8 c) {
    D8 x = {_mm256_fmadd_pd(a.low, b.low, c.low), _mm256_fmadd_pd(a.high, b.high, c.high)};
    return x;
}

INLINE D8 d8_widen(F8 x) {
    D8 wide = {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
    return wide;
}

INLINE F8 d8_narrow(D8 x) { return _mm256_set_m128(_mm256_cvtpd_ps(x.high), _mm256_cvtpd_ps(x.low)); }

INLINE void quarter_store_f64(double *to, __m256d x, Mask *bad) {
    const __m256i exponent = _mm256_set1_epi64x(0x7ff0000000000000);
    __m256d nan = _mm256_castsi256_pd(_mm256_set1_epi64x(0x7ff8000000000000));
    __m256i bits = _mm256_castpd_si256(x);
    *bad = _mm256_or_si256(*bad, _mm256_cmpeq_epi64(_mm256_and_si256(bits, exponent), exponent));
    _mm256_storeu_pd(to, _mm256_blendv_pd(x, nan, _mm256_cmp_pd(x, x, _CMP_UNORD_Q)));
}

INLINE void d8_store_f64(void *to, D8 x, Mask *bad) {
    quarter_store_f64((double *)to, x.low, bad);
    quarter_store_f64((double *)to + 4, x.high, bad);
}

#include "body.h"

TARGET void average_avx2(const Work *work) { average_tiles(work); }

#endif
