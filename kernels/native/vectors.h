// Vectors of whatever width the processor has, in the compiler's own vector types: products, exponentials, sums.

#pragma once

#include <cstdint>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace probe {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int COLS = 2;  // 8 x 2 sums, 2 columns and 1 row fit in 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr int COLS = 1;  // 16 registers
#else
constexpr int LANES = 4;
constexpr int COLS = 2;
#endif
constexpr int ROWS = 8;              // rows that a product takes at once
constexpr int STEP = LANES * COLS;   // and columns

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef float Anywhere __attribute__((vector_size(LANES * 4), aligned(4)));

inline Vec load(const float* p) { return *reinterpret_cast<const Anywhere*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Anywhere*>(p) = v; }
inline Vec all(float x) { return Vec{} + x; }
inline Vec most(Vec a, Vec b) { return a > b ? a : b; }

inline float sum(Vec v) {
  float x[LANES];
  store(x, v);
  for (int n = LANES / 2; n; n /= 2) {
    for (int l = 0; l < n; ++l) x[l] += x[l + n];
  }
  return x[0];
}

inline float most(Vec v) {
  float x[LANES];
  store(x, v);
  for (int n = LANES / 2; n; n /= 2) {
    for (int l = 0; l < n; ++l) x[l] = x[l] > x[l + n] ? x[l] : x[l + n];
  }
  return x[0];
}

inline Vec counting() {
  Vec v;
  for (int l = 0; l < LANES; ++l) v[l] = static_cast<float>(l);
  return v;
}

// 2^x for x <= 0, 0 from 2^-127 down; relative error 1e-7.
inline Vec exp2_down(Vec x) {
  x = most(all(-127.f), x);  // in this order, not-a-number stays one
  const Vec magic = all(12582912.f);  // 1.5 * 2^23: adding it rounds to a whole number, which then stands in the low bits
  const Vec shifted = x + magic;
  const Vec r = x - (shifted - magic);
  Vec y = all(0.0001534581242594868f);
  y = y * r + 0.0013399930903688073f;
  y = y * r + 0.009618489071726799f;
  y = y * r + 0.05550328642129898f;
  y = y * r + 0.24022646248340607f;
  y = y * r + 0.6931471824645996f;
  y = y * r + 1.f;
  const Ints power = (reinterpret_cast<Ints>(shifted) - reinterpret_cast<Ints>(magic) + 127) << 23;
  return y * reinterpret_cast<Vec>(power);
}

// tanh, to 1e-7 of its value: near 0, where 1 - exp would cancel, its series.
inline Vec tanh(Vec x) {
  const Vec size = x < 0.f ? -x : x, square = x * x;
  const Vec e = exp2_down(size * (-2.f * 1.4426950408889634f));
  const Vec far = (1.f - e) / (1.f + e);
  const Vec near = x * (1.f + square * (-1.f / 3 + square * (2.f / 15 + square * (-17.f / 315 + square * (62.f / 2835)))));
  return size < 0.3f ? near : (x < 0.f ? -far : far);
}

// Where the processor multiplies pairs of bfloat16 in one step, a pair takes the place of one float32.
#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;
inline Vec add_products(Vec sum, Vec a, Vec b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
inline void store_pairs(float* to, const float* from) { store(to, (Vec)_mm512_cvtne2ps_pbh(load(from + LANES), load(from))); }
#else
constexpr bool PAIRS = false;
inline Vec add_products(Vec sum, Vec, Vec) { return sum; }
inline void store_pairs(float*, const float*) {}
#endif

// c [R, COLS * LANES] = or += a [R, depth] b [depth, COLS * LANES], sums held in registers.
template <int R, bool ADD, bool BY_PAIRS>
inline __attribute__((always_inline)) void tile(const float* a, int64_t a_row, const float* b, int64_t b_row,
                                                int64_t depth, float* c, int64_t c_row) {
  Vec sums[R][COLS];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < COLS; ++n) sums[r][n] = ADD ? load(c + r * c_row + n * LANES) : Vec{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec columns[COLS];
    for (int n = 0; n < COLS; ++n) columns[n] = load(b + k * b_row + n * LANES);
    for (int r = 0; r < R; ++r) {
      const Vec row = all(a[r * a_row + k]);
      for (int n = 0; n < COLS; ++n) {
        sums[r][n] = BY_PAIRS ? add_products(sums[r][n], row, columns[n]) : sums[r][n] + row * columns[n];
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < COLS; ++n) store(c + r * c_row + n * LANES, sums[r][n]);
  }
}

// c [rows <= ROWS, cols] = or += a [rows, depth] b [depth, cols]; cols is a multiple of STEP.
template <bool ADD, bool BY_PAIRS>
void product(int64_t rows, int64_t cols, int64_t depth, const float* a, int64_t a_row, const float* b, int64_t b_row,
             float* c, int64_t c_row) {
  for (int64_t n = 0; n < cols; n += STEP) {
    if (rows == ROWS) {
      tile<ROWS, ADD, BY_PAIRS>(a, a_row, b + n, b_row, depth, c + n, c_row);
      continue;
    }
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) tile<4, ADD, BY_PAIRS>(a + r * a_row, a_row, b + n, b_row, depth, c + r * c_row + n, c_row);
    for (; r + 2 <= rows; r += 2) tile<2, ADD, BY_PAIRS>(a + r * a_row, a_row, b + n, b_row, depth, c + r * c_row + n, c_row);
    for (; r < rows; ++r) tile<1, ADD, BY_PAIRS>(a + r * a_row, a_row, b + n, b_row, depth, c + r * c_row + n, c_row);
  }
}

template <typename scalar>
float dot(const float* a, const scalar* b, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < size; ++d) sum += a[d] * static_cast<float>(b[d]);
  return sum;
}

}  // namespace probe
