/* The loops with AVX-512: eight float64 are one register. */

#include "loops.h"

#if defined(__x86_64__) && defined(__GNUC__)

#define TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define ABREAST 4 /* by 4 outputs: 16 of the 32 registers are sums */

#include "x86.h"

typedef __m512d D8;

INLINE D8 d8_load(const double *from) { return _mm512_loadu_pd(from); }
INLINE void d8_store(double *to, D8 x) { _mm512_storeu_pd(to, x); }
INLINE D8 d8_set(double x) { return _mm512_set1_pd(x); }
INLINE D8 d8_fma(D8 a, D8 b, D8 c) { return _mm512_fmadd_pd(a, b, c); }
INLINE D8 d8_widen(F8 x) { return _mm512_cvtps_pd(x); }
INLINE F8 d8_narrow(D8 x) { return _mm512_cvtpd_ps(x); }

INLINE void d8_store_f64(void *to, D8 x, Mask *bad) {
    const __m512i exponent = _mm512_set1_epi64(0x7ff0000000000000);
    __m512i bits = _mm512_castpd_si512(x);
    __mmask8 found = _mm512_cmpeq_epi64_mask(_mm512_and_si512(bits, exponent), exponent);
    __mmask8 nan = _mm512_cmp_pd_mask(x, x, _CMP_UNORD_Q);
    *bad = _mm256_or_si256(*bad, _mm256_maskz_set1_epi32(found, -1));
    x = _mm512_mask_mov_pd(x, nan, _mm512_castsi512_pd(_mm512_set1_epi64(0x7ff8000000000000)));
    _mm512_storeu_pd((double *)to, x);
}

#include "body.h"

TARGET void average_avx512(const Work *work) { average_tiles(work); }

#endif
