/* CRC-64/ISO as LTX uses it: P(x) = x^64 + x^4 + x^3 + x + 1, bits reflected, start value and final XOR ~0.
 *
 * In a reflected register bit 0 holds the coefficient of the highest power, so multiplying by x is a shift to the
 * right, and the first byte of a little-endian load holds the highest powers. All functions here take and return the
 * bare register: the caller applies the two inversions.
 */
#ifndef LITEFS_CRC64_IMPL_H
#define LITEFS_CRC64_IMPL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define CRC64_POLY UINT64_C(0xD800000000000000)

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define CRC64_HAVE_CLMUL 1
#include <immintrin.h>
#else
#define CRC64_HAVE_CLMUL 0
#endif

/* Row k holds, for each byte value, the register after that byte and k zero bytes. */
static uint64_t crc64_rows[16][256];

/* Folding constants, set by crc64_init: x^n mod P, reflected. A carry-less product of two reflected 64-bit values
 * reads, as a reflected 128-bit value, x times too big; hence each exponent is one less than the distance. */
static uint64_t crc64_x127, crc64_x191, crc64_x511, crc64_x575;

static inline uint64_t crc64_load(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

static uint64_t crc64_power_of_x(int n)
{
    uint64_t value = UINT64_C(1) << 63;
    while (n-- > 0)
        value = (value >> 1) ^ ((value & 1) ? CRC64_POLY : 0);
    return value;
}

static void crc64_init(void)
{
    for (int byte = 0; byte < 256; byte++) {
        uint64_t value = (uint64_t)byte;
        for (int bit = 0; bit < 8; bit++)
            value = (value >> 1) ^ ((value & 1) ? CRC64_POLY : 0);
        crc64_rows[0][byte] = value;
    }
    for (int row = 1; row < 16; row++)
        for (int byte = 0; byte < 256; byte++) {
            uint64_t value = crc64_rows[row - 1][byte];
            crc64_rows[row][byte] = (value >> 8) ^ crc64_rows[0][value & 0xff];
        }
    crc64_x127 = crc64_power_of_x(127);
    crc64_x191 = crc64_power_of_x(191);
    crc64_x511 = crc64_power_of_x(511);
    crc64_x575 = crc64_power_of_x(575);
}

/* Slice-by-16: sixteen independent look-ups for each 16 bytes. */
static uint64_t crc64_run_table(uint64_t reg, const uint8_t *p, size_t n)
{
    for (; n >= 16; p += 16, n -= 16) {
        uint64_t a = crc64_load(p) ^ reg;
        uint64_t b = crc64_load(p + 8);
        uint64_t left = 0, right = 0;
        for (int i = 0; i < 8; i++) {
            left ^= crc64_rows[15 - i][(a >> (8 * i)) & 0xff];
            right ^= crc64_rows[7 - i][(b >> (8 * i)) & 0xff];
        }
        reg = left ^ right;
    }
    while (n-- > 0)
        reg = (reg >> 8) ^ crc64_rows[0][(reg ^ *p++) & 0xff];
    return reg;
}

/* v * x^64 mod P. P has so few terms, all of them low, that shifts do it: x^64 = x^4 + x^3 + x + 1, and what that
 * product carries past x^63 (at most x^3) is replaced in the same way once more. */
static inline uint64_t crc64_times_x64(uint64_t v)
{
    uint64_t over = (v << 63) ^ (v << 61) ^ (v << 60);
    v ^= over;
    return v ^ (v >> 1) ^ (v >> 3) ^ (v >> 4);
}

/* Without tables, for what is too short to fold: 8 bytes a step, then the last 1..7 at once. */
static inline uint64_t crc64_run_short(uint64_t reg, const uint8_t *p, size_t n)
{
    for (; n >= 8; p += 8, n -= 8)
        reg = crc64_times_x64(reg ^ crc64_load(p));
    if (n > 0) {
        uint64_t word = 0;
        for (size_t i = 0; i < n; i++)
            word |= (uint64_t)p[i] << (8 * i);
        reg = (reg >> (8 * n)) ^ crc64_times_x64((reg ^ word) << (64 - 8 * n));
    }
    return reg;
}

#if CRC64_HAVE_CLMUL

static int crc64_clmul_usable(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}

__attribute__((target("pclmul,sse4.1")))
static inline __m128i crc64_fold(__m128i x, __m128i k, __m128i next)
{
    __m128i high = _mm_clmulepi64_si128(x, k, 0x00);
    __m128i low = _mm_clmulepi64_si128(x, k, 0x11);
    return _mm_xor_si128(_mm_xor_si128(high, low), next);
}

/* Four 128-bit remainders, each carried 512 bits forward per step, then folded into one and reduced. */
__attribute__((target("pclmul,sse4.1")))
static uint64_t crc64_run_clmul(uint64_t reg, const uint8_t *p, size_t n)
{
    if (n < 64)
        return crc64_run_short(reg, p, n);
    const __m128i far = _mm_set_epi64x((long long)crc64_x511, (long long)crc64_x575);
    const __m128i near = _mm_set_epi64x((long long)crc64_x127, (long long)crc64_x191);
    __m128i a = _mm_loadu_si128((const __m128i *)p);
    __m128i b = _mm_loadu_si128((const __m128i *)(p + 16));
    __m128i c = _mm_loadu_si128((const __m128i *)(p + 32));
    __m128i d = _mm_loadu_si128((const __m128i *)(p + 48));
    a = _mm_xor_si128(a, _mm_cvtsi64_si128((long long)reg));
    for (p += 64, n -= 64; n >= 64; p += 64, n -= 64) {
        a = crc64_fold(a, far, _mm_loadu_si128((const __m128i *)p));
        b = crc64_fold(b, far, _mm_loadu_si128((const __m128i *)(p + 16)));
        c = crc64_fold(c, far, _mm_loadu_si128((const __m128i *)(p + 32)));
        d = crc64_fold(d, far, _mm_loadu_si128((const __m128i *)(p + 48)));
    }
    a = crc64_fold(crc64_fold(crc64_fold(a, near, b), near, c), near, d);
    for (; n >= 16; p += 16, n -= 16)
        a = crc64_fold(a, near, _mm_loadu_si128((const __m128i *)p));
    /* The register after these 16 bytes is a * x^64 mod P, taken as two steps of 8 bytes. */
    reg = crc64_times_x64((uint64_t)_mm_cvtsi128_si64(a));
    reg = crc64_times_x64(reg ^ (uint64_t)_mm_extract_epi64(a, 1));
    return crc64_run_short(reg, p, n);
}

#else

static int crc64_clmul_usable(void)
{
    return 0;
}

static uint64_t crc64_run_clmul(uint64_t reg, const uint8_t *p, size_t n)
{
    return crc64_run_short(reg, p, n);
}

#endif

#endif
