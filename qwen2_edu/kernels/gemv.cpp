// A decode step in three operators: products of one input, their rotation, and from there all that
// comes before the next products. dot.h says what a product reads, and how.
//
// What comes before a product (norm) and after it (bias, gate, residual) is done on the way. Letters:
// M rows of input, K features in, N out; B, T, S, H, G, D, E, F as in the package.

#include "dot.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

using at::Tensor, at::TensorList, std::optional;

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
