// A decode step in three operators: products, rotation, attention.
//
// A step reads every weight once, so its limit is bytes / memory bandwidth: with one row of input a
// matrix does two operations for each number it reads. All that matters is that the numbers stream.
// What comes before a product (norm, gate) and after it (bias, residual) is done on the way.
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

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

using at::BFloat16, at::Half, at::Tensor, at::TensorList, std::optional;
constexpr int64_t GROUP = 32;
#ifdef __AVX512VNNI__
constexpr int64_t TOGETHER = 4;  // groups of 4-bit numbers that are unpacked at once
#else
constexpr int64_t TOGETHER = 1;
#endif

// A vector that begins where a cache line does: a load of 64 bytes across two costs twice.
template <typename T>
struct Aligned : std::allocator<T> {
  template <typename U> struct rebind { using other = Aligned<U>; };
  T* allocate(size_t n) { return static_cast<T*>(operator new(n * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* p, size_t) { operator delete(p, std::align_val_t(64)); }
};
template <typename T>
using vector = std::vector<T, Aligned<T>>;

// bf16 is the upper half of an fp32. `rounded<T>` is the fp32 that T would keep.
static float wide(float x) { return x; }
static float wide(BFloat16 x) { return std::bit_cast<float>(uint32_t(x.x) << 16); }
template <typename T>
static T narrow(float x) {
  if constexpr (std::is_same_v<T, float>) return x;
  uint32_t bits = std::bit_cast<uint32_t>(x);
  return T(uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16), T::from_bits());  // halves to even
}
template <>
float narrow<float>(float x) { return x; }
template <typename T>
static float rounded(float x) { return wide(narrow<T>(x)); }

// -- one row of a matrix with R rows of input, x (R, n) -> y (R,) ----------------------------------

template <int R>
static void dot(const float* w, const float* x, int64_t n, float* y) {
  for (int r = 0; r < R; r++) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += w[i] * x[r * n + i];  // -ffast-math allows vectors
    y[r] = sum;
  }
}

template <int R>
static void dot(const BFloat16* w, const BFloat16* x, int64_t n, float* y) {
  int64_t i = 0;
  for (int r = 0; r < R; r++) y[r] = 0;
#ifdef __AVX512BF16__  // 32 products at once, added in fp32; two sums, so that none waits for itself
  __m512 even[R] = {}, odd[R] = {};
  auto load = [](const BFloat16* p) { return (__m512bh)_mm512_loadu_si512(p); };
  for (; i + 64 <= n; i += 64) {
    __m512bh first = load(w + i), second = load(w + i + 32);
    for (int r = 0; r < R; r++) {
      even[r] = _mm512_dpbf16_ps(even[r], first, load(x + r * n + i));
      odd[r] = _mm512_dpbf16_ps(odd[r], second, load(x + r * n + i + 32));
    }
  }
  for (int r = 0; r < R; r++) y[r] = _mm512_reduce_add_ps(_mm512_add_ps(even[r], odd[r]));
#endif
  for (int r = 0; r < R; r++)
    for (int64_t j = i; j < n; j++) y[r] += wide(w[j]) * wide(x[r * n + j]);
}

// Rows of features (M, K) as integers in groups: feature = q * d.
template <typename Q>
struct Groups {
  int64_t K;
  vector<Q> q;            // (M, K)
  vector<float> d;        // (M, K/32)
  vector<int32_t> minus;  // (M, K/32, 4): -8 times the sum of a group, and three zeros

  // Beside 4 bits the order is that of unpacking: of TOGETHER groups the first halves, then the last.
  Groups(const vector<float>& x, int64_t K, float most, bool halves) : K(K), q(x.size()), d(x.size() / GROUP), minus(d.size() * 4) {
    for (int64_t g = 0; g < int64_t(d.size()); g++) {
      const float* from = x.data() + g * GROUP;
      float largest = 0;
      for (int i = 0; i < GROUP; i++) largest = std::max(largest, std::abs(from[i]));
      d[g] = largest / most;
      float inverse = largest > 0 ? most / largest : 0;
      int64_t place = g % (K / GROUP), at = place % TOGETHER;
      int64_t few = halves && place - at + TOGETHER <= K / GROUP ? TOGETHER : 1;
      if (few == 1) at = 0;
      for (int half = 0; half < 2; half++) {
        Q* to = &q[(g - at) * GROUP + half * few * 16 + at * 16];
        for (int i = 0; i < 16; i++) to[i] = std::nearbyint(from[half * 16 + i] * inverse);
        for (int i = 0; i < 16; i++) minus[g * 4] -= 8 * to[i];
      }
    }
  }
};

template <int R>
static void dot(const int8_t* w, const Half* d_w, const Groups<int16_t>& x, int64_t row, float* y) {
  const int64_t groups = x.K / GROUP;
  const int16_t* q = &x.q[row * x.K];
  const float* d = &x.d[row * groups];
#ifdef __AVX512VNNI__  // 32 products, added in pairs to 16 integers
  __m512 sum[R] = {};
  for (int64_t g = 0; g < groups; g++) {
    __m512i numbers = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)(w + g * GROUP)));
    __m512 scale = _mm512_set1_ps(d_w ? float(d_w[g]) : 1);
    for (int r = 0; r < R; r++) {
      __m512i s = _mm512_dpwssd_epi32(_mm512_setzero_si512(), numbers, _mm512_loadu_si512(q + r * x.K + g * GROUP));
      __m512 both = d_w ? _mm512_mul_ps(scale, _mm512_set1_ps(d[r * groups + g])) : _mm512_set1_ps(d[r * groups + g]);
      sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), both, sum[r]);
    }
  }
  for (int r = 0; r < R; r++) y[r] = _mm512_reduce_add_ps(sum[r]);
#else
  for (int r = 0; r < R; r++) {
    y[r] = 0;
    for (int64_t g = 0; g < groups; g++) {
      int32_t s = 0;
      for (int64_t i = g * GROUP; i < (g + 1) * GROUP; i++) s += int32_t(w[i]) * q[r * x.K + i];
      y[r] += s * d[r * groups + g] * (d_w ? float(d_w[g]) : 1);
    }
  }
#endif
}

// sum (w - 8) q = sum w q - 8 sum q, so that the unpacked halves 0 ... 15 are used as they are.
template <int R>
static void dot(const uint8_t* w, const Half* d_w, const Groups<int8_t>& x, int64_t row, float* y) {
  const int64_t groups = x.K / GROUP;
  const int8_t* q = &x.q[row * x.K];
  const float* d = &x.d[row * groups];
  const int32_t* minus = &x.minus[row * groups * 4];
  int64_t g = 0;
  for (int r = 0; r < R; r++) y[r] = 0;
#ifdef __AVX512VNNI__  // four groups at once: lanes 4g ... 4g + 3 of 16 are group g
  const __m512i low = _mm512_set1_epi8(15);
  const __m256i four = _mm256_set_epi16(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  const __m512i spread = _mm512_cvtepi16_epi32(four);
  __m512 sum[R] = {};
  for (; g + 4 <= groups; g += 4) {
    __m512i bytes = _mm512_loadu_si512(w + g * 16), first = _mm512_and_si512(bytes, low);
    __m512i last = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
    __m256i d4 = _mm256_set1_epi64x(*(const int64_t*)(d_w + g));
    __m512 scale = _mm512_cvtph_ps(_mm256_permutexvar_epi16(four, d4));
    for (int r = 0; r < R; r++) {
      const int8_t* at = q + r * x.K + g * GROUP;
      __m512i s = _mm512_loadu_si512(minus + (r * groups + g) * 4);
      s = _mm512_dpbusd_epi32(s, first, _mm512_loadu_si512(at));
      s = _mm512_dpbusd_epi32(s, last, _mm512_loadu_si512(at + 64));
      __m512 d_x = _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(_mm_loadu_ps(d + r * groups + g)));
      sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), _mm512_mul_ps(scale, d_x), sum[r]);
    }
  }
  for (int r = 0; r < R; r++) y[r] = _mm512_reduce_add_ps(sum[r]);
#endif
  for (int r = 0; r < R; r++)
    for (int64_t j = g; j < groups; j++) {
      int32_t s = minus[(r * groups + j) * 4];
      const int8_t* at = q + r * x.K + j * GROUP;
      for (int i = 0; i < 16; i++) s += (w[j * 16 + i] & 15) * at[i] + (w[j * 16 + i] >> 4) * at[i + 16];
      y[r] += s * d[r * groups + j] * float(d_w[j]);
    }
}

// -- products --------------------------------------------------------------------------------------

template <typename T>
static Tensor linear_of(const Tensor& x, TensorList weights, TensorList scales, TensorList biases,
                        const optional<Tensor>& norm, double eps, bool gated, const optional<Tensor>& residual) {
  const int64_t width = x.size(-1), M = x.numel() / width, K = gated ? width / 2 : width;
  const T* from = x.const_data_ptr<T>();
  vector<float> in(M * K);
  for (int64_t m = 0; m < M; m++) {
    const T *gate = from + m * width, *up = gate + K;
    float *row = &in[m * K], squares = 0;
    for (int64_t i = 0; i < K; i++) row[i] = wide(gate[i]);
    if (gated)
      for (int64_t i = 0; i < K; i++) row[i] = rounded<T>(rounded<T>(row[i] / (1 + std::exp(-row[i]))) * wide(up[i]));
    if (norm) {  // statistics in fp32; rounded where the module rounds
      const T* weight = norm->const_data_ptr<T>();
      for (int64_t i = 0; i < K; i++) squares += row[i] * row[i];
      float scale = 1 / std::sqrt(squares / K + float(eps));
      for (int64_t i = 0; i < K; i++) row[i] = rounded<T>(wide(weight[i]) * rounded<T>(row[i] * scale));
    }
  }
  vector<T> plain(M * K);
  optional<Groups<int16_t>> by16;
  optional<Groups<int8_t>> by8;
  int64_t N = 0;
  for (const Tensor& w : weights) {
    auto kind = w.scalar_type();
    TORCH_CHECK(w.is_contiguous() && w.size(1) == (kind == at::kByte ? K / 2 : K), "a matrix does not fit ", K, " features");
    if (kind == at::kChar && !by16) by16.emplace(in, K, 32767, false);
    else if (kind == at::kByte && !by8) by8.emplace(in, K, 127, true);
    N += w.size(0);
  }
  for (int64_t i = 0; i < M * K; i++) plain[i] = narrow<T>(in[i]);
  auto shape = x.sizes().vec();
  shape.back() = N;
  Tensor out = at::empty(shape, x.options());
  T* to = out.mutable_data_ptr<T>();
  const T* add = residual ? residual->const_data_ptr<T>() : nullptr;

  at::parallel_for(0, N, 1 + 16384 / K, [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // output of the matrix's first row
    for (size_t i = 0; i < weights.size(); i++) {
      const auto kind = weights[i].scalar_type();
      const void* data = weights[i].const_data_ptr();
      const bool whole = kind == at::kChar && scales[i].scalar_type() == at::kFloat;  // one scale a row
      const float* d_row = whole ? scales[i].const_data_ptr<float>() : nullptr;
      const Half* d_groups = (kind == at::kChar || kind == at::kByte) && !whole ? scales[i].const_data_ptr<Half>() : nullptr;
      const T* bias = biases.empty() ? nullptr : biases[i].const_data_ptr<T>();
      auto rows = [&]<int R>(int64_t n, int64_t m) {  // row n of the matrix, R rows of input from m on
        float y[R];
        const Half* d = d_groups ? d_groups + n * (K / GROUP) : nullptr;
        if (kind == at::kChar) dot<R>((const int8_t*)data + n * K, d, *by16, m, y);
        else if (kind == at::kByte) dot<R>((const uint8_t*)data + n * K / 2, d, *by8, m, y);
        else dot<R>((const T*)data + n * K, &plain[m * K], K, y);
        for (int r = 0; r < R; r++) {
          float sum = rounded<T>((d_row ? y[r] * d_row[n] : y[r]) + (bias ? wide(bias[n]) : 0));
          int64_t at = (m + r) * N + first + n;
          to[at] = narrow<T>(add ? wide(add[at]) + sum : sum);
        }
      };
      for (int64_t n = std::max<int64_t>(begin - first, 0); n < std::min(end - first, weights[i].size(0)); n++) {
        int64_t m = 0;
        for (; m + 4 <= M; m += 4) rows.template operator()<4>(n, m);
        for (; m < M; m++) rows.template operator()<1>(n, m);
      }
      first += weights[i].size(0);
    }
  });
  return out;
}

// -- attention -------------------------------------------------------------------------------------

template <typename T>
static void rotate_of(Tensor& x, const Tensor& cos, const Tensor& sin, int64_t heads) {
  const int64_t D = cos.size(-1), width = x.size(-1), M = x.numel() / width;
  for (int64_t m = 0; m < M; m++)
    for (int64_t h = 0; h < heads; h++) {
      T *first = x.mutable_data_ptr<T>() + m * width + h * D, *second = first + D / 2;
      const T *c = cos.const_data_ptr<T>() + m * D, *s = sin.const_data_ptr<T>() + m * D;
      for (int64_t i = 0; i < D / 2; i++) {
        float a = wide(first[i]), b = wide(second[i]), co = wide(c[i]), si = wide(s[i]);
        first[i] = narrow<T>(rounded<T>(a * co) - rounded<T>(b * si));
        second[i] = narrow<T>(rounded<T>(b * co) + rounded<T>(a * si));
      }
    }
}

template <typename T>
static Tensor attend_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_at, const Tensor& k_at, int64_t window) {
  const int64_t B = q.size(0), rows = q.size(1), H = q.size(2), D = q.size(3), G = k.size(1), S = k.size(2);
  Tensor out = at::empty({B, rows, H * D}, q.options());
  at::parallel_for(0, B * rows * H, 1 + 16384 / (S * D), [&](int64_t begin, int64_t end) {
    vector<float> weights(S), sum(D);
    for (int64_t u = begin; u < end; u++) {
      const int64_t h = u % H, t = u / H % rows, b = u / H / rows, g = h / (H / G);
      const T* query = q.const_data_ptr<T>() + b * q.stride(0) + t * q.stride(1) + h * q.stride(2);
      const T* keys = k.const_data_ptr<T>() + b * k.stride(0) + g * k.stride(1);
      const T* values = v.const_data_ptr<T>() + b * v.stride(0) + g * v.stride(1);
      const int64_t now = q_at.const_data_ptr<int64_t>()[b * rows + t], *at = k_at.const_data_ptr<int64_t>() + b * S;
      float most = -1e30, total = 0;
      for (int64_t s = 0; s < S; s++) {  // the one visibility rule: see masks.py
        weights[s] = -1e30;
        if (at[s] < 0 || at[s] > now || at[s] <= now - window) continue;
        dot<1>(query, keys + s * k.stride(2), D, &weights[s]);
        most = std::max(most, weights[s] /= std::sqrt(float(D)));
      }
      for (int64_t s = 0; s < S; s++) total += weights[s] = std::exp(weights[s] - most);
      std::fill(sum.begin(), sum.end(), 0.f);
      for (int64_t s = 0; s < S; s++) {
        const T* value = values + s * v.stride(2);
        for (int64_t i = 0; i < D; i++) sum[i] += weights[s] * wide(value[i]);
      }
      T* to = out.mutable_data_ptr<T>() + u * D;
      for (int64_t i = 0; i < D; i++) to[i] = narrow<T>(sum[i] / total);
    }
  });
  return out;
}

// -- what Python sees: the same for both dtypes ----------------------------------------------------

static Tensor linear(const Tensor& x, TensorList weights, TensorList scales, TensorList biases,
                     const optional<Tensor>& norm, double eps, bool gated, const optional<Tensor>& residual) {
  auto of = x.scalar_type() == at::kFloat ? linear_of<float> : linear_of<BFloat16>;
  return of(x, weights, scales, biases, norm, eps, gated, residual);
}
static void rotate_(Tensor x, const Tensor& cos, const Tensor& sin, int64_t heads) {
  (x.scalar_type() == at::kFloat ? rotate_of<float> : rotate_of<BFloat16>)(x, cos, sin, heads);
}
static Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_at, const Tensor& k_at, int64_t window) {
  return (q.scalar_type() == at::kFloat ? attend_of<float> : attend_of<BFloat16>)(q, k, v, q_at, k_at, window);
}

TORCH_LIBRARY(qwen2_edu, m) {
  m.def("linear(Tensor x, Tensor[] weights, Tensor[] scales, Tensor[] biases, Tensor? norm, float eps, bool gated, Tensor? residual) -> Tensor");
  m.def("rotate_(Tensor(a!) x, Tensor cos, Tensor sin, int heads) -> ()");
  m.def("attend(Tensor q, Tensor k, Tensor v, Tensor q_at, Tensor k_at, int window) -> Tensor");
}
TORCH_LIBRARY_IMPL(qwen2_edu, CPU, m) {
  m.impl("linear", linear);
  m.impl("rotate_", rotate_);
  m.impl("attend", attend);
}
