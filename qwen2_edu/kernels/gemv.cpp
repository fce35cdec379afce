// A decode step in three operators: products of one input, their rotation, and from there all that
// comes before the next products.
//
// A step reads every weight once, so its limit is bytes / memory bandwidth: with one row of input a
// matrix does two operations for each number it reads. All that matters is that the numbers stream.
// What comes before a product (norm) and after it (bias, gate, residual) is done on the way.
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
#include <cmath>
#include <limits>
#include <tuple>
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

// -- one row of a matrix with R rows of input, x (R, K) -> y (R,) ----------------------------------

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

// -- products --------------------------------------------------------------------------------------

using Maybe = c10::List<optional<Tensor>>;  // a scale or a bias for each matrix, or none

template <typename T>
struct Matrix {
  at::ScalarType kind;
  int64_t N;
  const void* data;
  const float* by_row = nullptr;   // one of the two scales, if the numbers are integers
  const Half* by_group = nullptr;
  const T* bias = nullptr;
};

// Matrices that multiply one input, one below the other: those from `begin` to `end` of the lists.
template <typename T>
struct Product {
  int64_t K, N = 0;
  std::vector<Matrix<T>> matrices;

  Product(int64_t K, TensorList weights, const Maybe& scales, const Maybe& biases, size_t begin, size_t end) : K(K) {
    for (size_t i = begin; i < end; i++) {
      const Tensor& w = weights[i];
      const auto kind = w.scalar_type();
      const optional<Tensor> d = scales[i], bias = biases[i];
      TORCH_CHECK(w.is_contiguous() && w.size(1) == (kind == at::kByte ? K / 2 : K), "a matrix does not fit ", K, " features");
      Matrix<T> matrix{kind, w.size(0), w.const_data_ptr()};
      if (d && d->scalar_type() == at::kFloat) matrix.by_row = d->const_data_ptr<float>();
      else if (d) matrix.by_group = d->const_data_ptr<Half>();
      if (bias) matrix.bias = bias->const_data_ptr<T>();
      matrices.push_back(matrix);
      N += matrix.N;
    }
  }
};

// Rows of features (M, K), normed if there is a norm, in each format that a product's matrices want.
template <typename T>
struct Features {
  int64_t K;
  Buffer<T> plain;
  optional<Groups<int16_t>> by16;
  optional<Groups<int8_t>> by8;

  Features(const Product<T>& product, const T* x, int64_t M, const T* norm, float eps) : K(product.K), plain(M * K) {
    Buffer<float> all(M * K);
    for (int64_t m = 0; m < M; m++, x += K) {
      float *row = all + m * K, squares = 0;
      for (int64_t i = 0; i < K; i++) row[i] = float(x[i]);
      if (norm) {  // statistics in fp32; rounded where the module rounds
        for (int64_t i = 0; i < K; i++) squares += row[i] * row[i];
        const float scale = 1 / std::sqrt(squares / K + eps);
        for (int64_t i = 0; i < K; i++) row[i] = rounded<T>(float(norm[i]) * rounded<T>(row[i] * scale));
      }
      std::copy_n(row, K, plain + m * K);
    }
    for (auto& matrix : product.matrices) {
      if (matrix.kind == at::kChar && !by16) by16.emplace(all, M, K);
      if (matrix.kind == at::kByte && !by8) by8.emplace(all, M, K);
    }
  }

  template <int R>  // row n of a matrix, and R rows of these from m on
  void times(const Matrix<T>& w, int64_t n, int64_t m, float* y) {
    const Half* d = w.by_group ? w.by_group + n * (K / GROUP) : nullptr;
    if (w.kind == at::kChar) dot<R>((const int8_t*)w.data + n * K, d, *by16, m, y);
    else if (w.kind == at::kByte) dot<R>((const uint8_t*)w.data + n * K / 2, d, *by8, m, y);
    else dot<R>((const T*)w.data + n * K, plain + m * K, K, y);
    for (int r = 0; r < R; r++) y[r] = rounded<T>(y[r] * (w.by_row ? w.by_row[n] : 1) + (w.bias ? float(w.bias[n]) : 0));
  }
};

// x (M, K) -> to (M, N), or, `gated`, (M, N / 2): silu(first matrix) * second. All threads of a team
// call it. Each makes the features for itself: to wait for another takes as long. They share the rows,
// in ever smaller parts of what is left: weights stream while parts are long, and none waits at the end.
template <typename T>
static void multiply(const Product<T>& product, const T* x, int64_t M, T* to, const Tensor* norm = nullptr,
                     float eps = 0, bool gated = false, const T* residual = nullptr) {
  Features<T> features(product, x, M, norm ? norm->const_data_ptr<T>() : nullptr, eps);
  const int64_t N = gated ? product.N / 2 : product.N, least = 1 + 16384 / product.K;
#pragma omp for schedule(guided, least)
  for (int64_t out = 0; out < N; out++) {
    int64_t n = out;
    auto w = product.matrices.begin();
    while (n >= w->N) n -= w++->N;
    auto rows = [&]<int R>(int64_t m) {
      float y[R], up[R];
      features.template times<R>(*w, n, m, y);
      if (gated) {
        features.template times<R>(w[1], n, m, up);
        for (int r = 0; r < R; r++) y[r] = rounded<T>(rounded<T>(y[r] / (1 + std::exp(-y[r]))) * up[r]);
      }
      for (int r = 0; r < R; r++) {
        const int64_t at = (m + r) * N + out;
        to[at] = T(residual ? float(residual[at]) + y[r] : y[r]);
      }
    };
    int64_t m = 0;
    for (; m + 4 <= M; m += 4) rows.template operator()<4>(m);
    for (; m < M; m++) rows.template operator()<1>(m);
  }
}

// -- attention -------------------------------------------------------------------------------------

template <typename T>
static void rotate(Tensor& x, const Tensor& cos, const Tensor& sin, int64_t heads) {
  const int64_t D = cos.size(-1), width = x.size(-1), M = x.numel() / width;
  for (int64_t m = 0; m < M; m++)
    for (int64_t h = 0; h < heads; h++) {
      T *first = x.mutable_data_ptr<T>() + m * width + h * D, *second = first + D / 2;
      const T *c = cos.const_data_ptr<T>() + m * D, *s = sin.const_data_ptr<T>() + m * D;
      for (int64_t i = 0; i < D / 2; i++) {
        float a = float(first[i]), b = float(second[i]), co = float(c[i]), si = float(s[i]);
        first[i] = T(rounded<T>(a * co) - rounded<T>(b * si));
        second[i] = T(rounded<T>(b * co) + rounded<T>(a * si));
      }
    }
}

// q (B, T, H, D), k and v (B, G, S, D) -> to (B, T, H * D); all threads of a team call it.
template <typename T>
static void attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_at, const Tensor& k_at, int64_t window, T* to) {
  const int64_t rows = q.size(1), H = q.size(2), D = q.size(3), G = k.size(1), S = k.size(2);
  std::vector<float> weights(S), sum(D);
#pragma omp for schedule(dynamic, 1)
  for (int64_t u = 0; u < q.size(0) * rows * H; u++) {
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
      for (int64_t i = 0; i < D; i++) sum[i] += weights[s] * float(value[i]);
    }
    for (int64_t i = 0; i < D; i++) to[u * D + i] = T(sum[i] / total);
  }
}

// -- what Python sees: each for two dtypes ---------------------------------------------------------

// Matrices of one input, after a norm if there is one: x (…, K) -> (…, N)
template <typename T>
static Tensor linear(const Tensor& input, TensorList weights, const Maybe& scales, const Maybe& biases, const optional<Tensor>& norm, double eps) {
  const Tensor x = input.contiguous();
  const Product<T> product(x.size(-1), weights, scales, biases, 0, weights.size());
  auto shape = x.sizes().vec();
  shape.back() = product.N;
  Tensor y = at::empty(shape, x.options());
  T* to = y.mutable_data_ptr<T>();
#pragma omp parallel num_threads(at::get_num_threads())
  multiply(product, x.const_data_ptr<T>(), x.numel() / product.K, to, norm ? &*norm : nullptr, eps);
  return y;
}

// From an attention to what comes before the next: attention, o, + x, norm, gate and up, down, +, norm,
// q and k and v, or the head. One team does it all, as to start one takes longer than to wait for one.
// weights: o, gate, up, down, and the matrices of what comes next. Answers x (B, T, E), y (B, T, N).
template <typename T>
static std::tuple<Tensor, Tensor> block(const Tensor& x, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_at, const Tensor& k_at, int64_t window,
                                        TensorList weights, const Maybe& scales, const Maybe& biases, TensorList norms, at::ArrayRef<double> eps) {
  const int64_t E = x.size(-1), M = x.numel() / E, F = weights[1].size(0);
  auto product = [&](int64_t K, size_t begin, size_t end) { return Product<T>(K, weights, scales, biases, begin, end); };
  const auto o = product(q.size(2) * q.size(3), 0, 1), gate_up = product(E, 1, 3), down = product(F, 3, 4), next = product(E, 4, weights.size());
  Tensor after = at::empty(x.sizes(), x.options()), y = at::empty({x.size(0), x.size(1), next.N}, x.options());
  Buffer<T> attended(M * o.K), middle(M * E), hidden(M * F);
  T *to = after.mutable_data_ptr<T>(), *to_y = y.mutable_data_ptr<T>();
#pragma omp parallel num_threads(at::get_num_threads())
  {
    attend<T>(q, k, v, q_at, k_at, window, attended);
    multiply<T>(o, attended, M, middle, nullptr, 0, false, x.const_data_ptr<T>());
    multiply<T>(gate_up, middle, M, hidden, &norms[0], eps[0], true);
    multiply<T>(down, hidden, M, to, nullptr, 0, false, middle);
    multiply<T>(next, to, M, to_y, &norms[1], eps[1]);
  }
  return {after, y};
}

#define FOR_DTYPE(of, x) ((x).scalar_type() == at::kFloat ? of<float> : of<BFloat16>)
TORCH_LIBRARY(qwen2_edu, m) {
  m.def("linear(Tensor x, Tensor[] weights, Tensor?[] scales, Tensor?[] biases, Tensor? norm=None, float eps=0) -> Tensor");
  m.def("rotate_(Tensor(a!) x, Tensor cos, Tensor sin, int heads) -> ()");
  m.def("block(Tensor x, Tensor q, Tensor k, Tensor v, Tensor q_at, Tensor k_at, int window, Tensor[] weights, Tensor?[] scales, Tensor?[] biases, Tensor[] norms, float[] eps) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(qwen2_edu, CPU, m) {
  m.impl("linear", [](const Tensor& x, TensorList weights, const Maybe& scales, const Maybe& biases, const optional<Tensor>& norm, double eps) {
    return FOR_DTYPE(linear, x)(x, weights, scales, biases, norm, eps);
  });
  m.impl("rotate_", [](Tensor x, const Tensor& cos, const Tensor& sin, int64_t heads) { FOR_DTYPE(rotate, x)(x, cos, sin, heads); });
  m.impl("block", [](const Tensor& x, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_at, const Tensor& k_at, int64_t window,
                     TensorList weights, const Maybe& scales, const Maybe& biases, TensorList norms, at::ArrayRef<double> eps) {
    return FOR_DTYPE(block, x)(x, q, k, v, q_at, k_at, window, weights, scales, biases, norms, eps);
  });
}
