// One row of a matrix with R rows of input: where a decode step spends its time.
//
// A step reads every weight once, so its limit is bytes / memory bandwidth: with one row of input a
// matrix does two operations for each number it reads. All that matters is that the numbers stream.
//
// Letters: M rows of input, K features in, N out. A matrix is (N, K), in one of four formats:
//   float32, bfloat16   as they are
//   int8    (N, K), times a scale by row, fp32 (N, 1), or by group of 32, fp16 (N, K/32)
//   uint8   4 bits: bytes (N, K/2), scales fp16 (N, K/32). As in GGUF's Q4_0, byte j of the 16 of a
//           group holds its numbers j and j + 16, and 0 ... 15 means -8 ... 7
// With integer weights the input becomes integers too, by groups of 32 that have a scale each: of 16
// bits beside int8, where the error is nothing, and of 8 bits beside 4, where it is near 0.5 %.
//
// Each `dot` has a plain loop, which is what it computes, and where the processor has instructions
// for it the same in vectors of 512 bits. R rows of input are taken at once: a weight is read, and
// unpacked, once for all of them.

#pragma once
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

using c10::BFloat16, c10::Half;
constexpr int64_t GROUP = 32;
#ifdef __AVX512VNNI__
constexpr int64_t TOGETHER = 4;  // groups of 4-bit numbers that are unpacked at once
#else
constexpr int64_t TOGETHER = 1;
#endif

// Zeros that begin where a cache line does: a load of 64 bytes across two costs twice.
template <typename T>
struct Buffer {
  struct alignas(64) Line { T numbers[64 / sizeof(T)]; };
  std::vector<Line> lines;
  explicit Buffer(int64_t n) : lines((n * sizeof(T) + 63) / 64) {}
  operator T*() { return lines.data()->numbers; }
};

template <typename T>  // the fp32 that T would keep
static float rounded(float x) { return float(T(x)); }

// A row of numbers w (K,) with rows of features x (R, K) -> y (R,)
template <int R, typename T>
static void dot(const T* w, const T* x, int64_t K, float* y) {
  int64_t from = 0;
  std::fill_n(y, R, 0.f);
#ifdef __AVX512BF16__  // 32 products at once, added in fp32; two sums, so that none waits for itself
  if constexpr (std::is_same_v<T, BFloat16>) {
    __m512 even[R] = {}, odd[R] = {};
    auto load = [](const T* p) { return (__m512bh)_mm512_loadu_si512(p); };
    for (; from + 64 <= K; from += 64) {
      __m512bh first = load(w + from), second = load(w + from + 32);
      for (int r = 0; r < R; r++) {
        even[r] = _mm512_dpbf16_ps(even[r], first, load(x + r * K + from));
        odd[r] = _mm512_dpbf16_ps(odd[r], second, load(x + r * K + from + 32));
      }
    }
    for (int r = 0; r < R; r++) y[r] = _mm512_reduce_add_ps(_mm512_add_ps(even[r], odd[r]));
  }
#endif
  for (int r = 0; r < R; r++) {
    float sum = 0;
    for (int64_t i = from; i < K; i++) sum += float(w[i]) * float(x[r * K + i]);  // -ffast-math allows vectors
    y[r] += sum;
  }
}

// Rows of features (M, K) as integers in groups, feature = q * d: of 8 bits beside 4, else of 16.
template <typename Q>
struct Groups {
  int64_t K, count;
  Buffer<Q> q;            // (M, K)
  Buffer<float> d;        // (M, K/32)
  Buffer<int32_t> minus;  // (M, K/32, 4): -8 times the sum of a group, and three zeros

  // Beside 4 bits the order is that of unpacking: of TOGETHER groups the first halves, then the last.
  Groups(const float* x, int64_t M, int64_t K)
      : K(K), count(K / GROUP), q(M * K), d(M * count), minus(M * count * 4) {
    for (int64_t g = 0; g < M * count; g++, x += GROUP) {
      float largest = 0, most = std::numeric_limits<Q>::max();
      for (int i = 0; i < GROUP; i++) largest = std::max(largest, std::abs(x[i]));
      d[g] = largest / most;
      float inverse = largest > 0 ? most / largest : 0;
      int64_t place = g % count, at = place % TOGETHER, few = TOGETHER;
      if (sizeof(Q) > 1 || place - at + TOGETHER > count) at = 0, few = 1;
      for (int half = 0; half < 2; half++) {
        Q* to = q + (g - at) * GROUP + (half * few + at) * 16;
        for (int i = 0; i < 16; i++) to[i] = std::nearbyint(x[half * 16 + i] * inverse);
        for (int i = 0; i < 16; i++) minus[g * 4] -= 8 * to[i];
      }
    }
  }
};

// A row of integers and, if d_w, their scales by group, with features from row m on. Of 4 bits, sum
// (w - 8) q = sum w q - 8 sum q, so that the unpacked halves 0 ... 15 are used as they are.
template <int R, typename W, typename Q>
static void dot(const W* w, const Half* d_w, Groups<Q>& x, int64_t m, float* y) {
  const int64_t K = x.K, count = x.count;
  const Q* q = x.q + m * K;
  const float* d = x.d + m * count;
  const int32_t* minus = x.minus + m * count * 4;
  int64_t from = 0;
  std::fill_n(y, R, 0.f);
#ifdef __AVX512VNNI__
  __m512 sum[R] = {};
  if constexpr (sizeof(Q) > 1) {  // 32 products, added in pairs to 16 integers
    for (; from < count; from++) {
      __m512i numbers = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)(w + from * GROUP)));
      const __m512 scale = _mm512_set1_ps(d_w ? float(d_w[from]) : 1);
      for (int r = 0; r < R; r++) {
        __m512i s = _mm512_dpwssd_epi32(_mm512_setzero_si512(), numbers, _mm512_loadu_si512(q + r * K + from * GROUP));
        __m512 d_x = _mm512_set1_ps(d[r * count + from]);
        sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), d_w ? _mm512_mul_ps(scale, d_x) : d_x, sum[r]);
      }
    }
  } else {  // four groups at once: lanes 4g ... 4g + 3 of 16 are group g
    const __m512i low = _mm512_set1_epi8(15);
    const __m256i four = _mm256_set_epi16(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    const __m512i spread = _mm512_cvtepi16_epi32(four);
    for (; from + 4 <= count; from += 4) {
      __m512i bytes = _mm512_loadu_si512(w + from * 16), first = _mm512_and_si512(bytes, low);
      __m512i last = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
      __m256i d4 = _mm256_set1_epi64x(*(const int64_t*)(d_w + from));
      __m512 scale = _mm512_cvtph_ps(_mm256_permutexvar_epi16(four, d4));
      for (int r = 0; r < R; r++) {
        const Q* at = q + r * K + from * GROUP;
        __m512i s = _mm512_loadu_si512(minus + (r * count + from) * 4);
        s = _mm512_dpbusd_epi32(s, first, _mm512_loadu_si512(at));
        s = _mm512_dpbusd_epi32(s, last, _mm512_loadu_si512(at + 64));
        __m512 d_x = _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(_mm_loadu_ps(d + r * count + from)));
        sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), _mm512_mul_ps(scale, d_x), sum[r]);
      }
    }
  }
  for (int r = 0; r < R; r++) y[r] = _mm512_reduce_add_ps(sum[r]);
#endif
  for (int r = 0; r < R; r++)
    for (int64_t g = from; g < count; g++) {
      const Q* at = q + r * K + g * GROUP;
      int32_t s = sizeof(Q) > 1 ? 0 : minus[(r * count + g) * 4];
      for (int i = 0; i < GROUP; i++) s += at[i] * (sizeof(Q) > 1 ? w[g * GROUP + i] : w[g * 16 + i % 16] >> i / 16 * 4 & 15);
      y[r] += s * d[r * count + g] * (d_w ? float(d_w[g]) : 1);
    }
}
