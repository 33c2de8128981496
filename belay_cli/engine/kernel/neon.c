/* The loops with what every arm64 processor has: eight float64 are four registers. */

#include "loops.h"

#if defined(__aarch64__) && defined(__GNUC__)

#define INLINE static inline __attribute__((always_inline))
#define ABREAST 1 /* by 4 outputs: 16 of the 32 registers are sums */

#include <arm_neon.h>

typedef struct {
    float32x4_t low, high;
} F8;
typedef struct {
    float64x2_t part[4];
} D8;
typedef uint32x4_t Mask; /* not zero where an element was not finite */

INLINE Mask mask_none(void) { return vdupq_n_u32(0); }
INLINE int mask_any(Mask bad) { return vmaxvq_u32(bad) != 0; }

INLINE F8 f8_load_f32(const void *from) {
    F8 x = {vld1q_f32((const float *)from), vld1q_f32((const float *)from + 4)};
    return x;
}

INLINE F8 f8_load_f16(const void *from) {
    float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16((const uint16_t *)from));
    F8 x = {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
    return x;
}

INLINE F8 f8_load_bf16(const void *from) {
    uint16x8_t halves = vld1q_u16((const uint16_t *)from);
    F8 x = {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16)),
            vreinterpretq_f32_u32(vshll_high_n_u16(halves, 16))};
    return x;
}

INLINE float32x4_t one_nan(float32x4_t x) { return vbslq_f32(vceqq_f32(x, x), x, vreinterpretq_f32_u32(vdupq_n_u32(0x7fc00000))); }

INLINE float32x4_t checked(float32x4_t x, Mask *bad) {
    uint32x4_t exponent = vdupq_n_u32(0x7f800000);
    x = one_nan(x);
    *bad = vorrq_u32(*bad, vceqq_u32(vandq_u32(vreinterpretq_u32_f32(x), exponent), exponent));
    return x;
}

INLINE void f8_store_f32(void *to, F8 x, Mask *bad) {
    vst1q_f32((float *)to, checked(x.low, bad));
    vst1q_f32((float *)to + 4, checked(x.high, bad));
}

INLINE void halves_store(void *to, uint16x8_t halves, uint16_t every_exponent_bit, Mask *bad) {
    uint16x8_t exponent = vdupq_n_u16(every_exponent_bit);
    *bad = vorrq_u32(*bad, vreinterpretq_u32_u16(vceqq_u16(vandq_u16(halves, exponent), exponent)));
    vst1q_u16((uint16_t *)to, halves);
}

INLINE void f8_store_f16(void *to, F8 x, Mask *bad) {
    float16x8_t halves = vcvt_high_f16_f32(vcvt_f16_f32(one_nan(x.low)), one_nan(x.high));
    halves_store(to, vreinterpretq_u16_f16(halves), 0x7c00, bad);
}

/* To nearest, ties to even: half of the last place is added, less one where that place is even. */
INLINE uint32x4_t rounded_up(float32x4_t x) {
    uint32x4_t bits = vreinterpretq_u32_f32(one_nan(x));
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    return vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
}

INLINE void f8_store_bf16(void *to, F8 x, Mask *bad) {
    uint16x8_t halves = vshrn_high_n_u32(vshrn_n_u32(rounded_up(x.low), 16), rounded_up(x.high), 16);
    halves_store(to, halves, 0x7f80, bad);
}

INLINE D8 d8_load(const double *from) {
    D8 x = {{vld1q_f64(from), vld1q_f64(from + 2), vld1q_f64(from + 4), vld1q_f64(from + 6)}};
    return x;
}

INLINE void d8_store(double *to, D8 x) {
    for (int i = 0; i < 4; i++)
        vst1q_f64(to + 2 * i, x.part[i]);
}

INLINE D8 d8_set(double x) {
    D8 all = {{vdupq_n_f64(x), vdupq_n_f64(x), vdupq_n_f64(x), vdupq_n_f64(x)}};
    return all;
}

INLINE D8 d8_fma(D8 a, D8 b, D8 c) {
    for (int i = 0; i < 4; i++)
        c.part[i] = vfmaq_f64(c.part[i], a.part[i], b.part[i]);
    return c;
}

INLINE D8 d8_widen(F8 x) {
    D8 wide = {{vcvt_f64_f32(vget_low_f32(x.low)), vcvt_high_f64_f32(x.low), vcvt_f64_f32(vget_low_f32(x.high)),
                vcvt_high_f64_f32(x.high)}};
    return wide;
}

INLINE F8 d8_narrow(D8 x) {
    F8 narrow = {vcvt_high_f32_f64(vcvt_f32_f64(x.part[0]), x.part[1]),
                 vcvt_high_f32_f64(vcvt_f32_f64(x.part[2]), x.part[3])};
    return narrow;
}

INLINE void d8_store_f64(void *to, D8 x, Mask *bad) {
    const uint64x2_t exponent = vdupq_n_u64(0x7ff0000000000000);
    const float64x2_t nan = vreinterpretq_f64_u64(vdupq_n_u64(0x7ff8000000000000));
    for (int i = 0; i < 4; i++) {
        uint64x2_t bits = vreinterpretq_u64_f64(x.part[i]);
        uint64x2_t found = vceqq_u64(vandq_u64(bits, exponent), exponent);
        *bad = vorrq_u32(*bad, vreinterpretq_u32_u64(found));
        vst1q_f64((double *)to + 2 * i, vbslq_f64(vceqq_f64(x.part[i], x.part[i]), x.part[i], nan));
    }
}

typedef uint64_t FloatMode;

/* Subnormals are numbers and rounding is to nearest, whatever the program that calls has set. */
INLINE FloatMode exact_mode(void) {
    FloatMode before, exact = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(exact));
    return before;
}

INLINE void restore_mode(FloatMode before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }

#include "body.h"

void average_neon(const Work *work) { average_tiles(work); }

#endif
