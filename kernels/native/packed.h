// Keys and values as the products want them.

#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <vector>

#include "call.h"
#include "vectors.h"

namespace probe {

// Keys transposed tile by tile, [depth, TILE] each, padded with zeros; values
// as they lie where that will do, else copied with rows padded to a multiple of STEP. In float32, or, where the inputs are
// bfloat16 and the processor multiplies pairs of those, with each pair (of widths of a key, of keys of a value) in the
// place of one float32.
struct Packed {
  const Call& call;
  const bool pairs;       // bfloat16 by pairs
  const bool few;         // so few queries that each key's products are taken as it lies
  const int64_t depth;    // of a key, in floats or pairs
  const int64_t width;    // of an output row
  const float* value = nullptr;
  int64_t value_row, value_head, value_text;

  Packed(const Call& call, bool few)
      : call(call),
        pairs(PAIRS && !few && !call.partial && call.key.scalar_type() == at::kBFloat16),
        few(few && call.key.stride(3) == 1),
        depth(pairs ? (call.key.size(3) + 1) / 2 : call.key.size(3)),
        width((call.value.size(3) + STEP - 1) / STEP * STEP) {
    if (call.value.scalar_type() == at::kFloat && call.value.stride(3) == 1 && width == call.value.size(3)) {
      value = call.value.data_ptr<float>();
      value_text = call.value.stride(0), value_head = call.value.stride(1), value_row = call.value.stride(2);
    }
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.key.scalar_type(), "pack", [&] { pack<scalar_t>(); });
  }

  const float* key_tile(int64_t text, int64_t kv_head, int64_t tile) const {
    return keys_.data() + ((text * call.kv_heads() + kv_head) * call.key_tiles() + tile) * depth * TILE;
  }
  // The values from key j on; by pairs, j is even.
  const float* value_at(int64_t text, int64_t kv_head, int64_t j) const {
    return value + text * value_text + kv_head * value_head + (pairs ? j / 2 : j) * value_row;
  }
  template <typename scalar>
  const scalar* key_at(int64_t text, int64_t kv_head, int64_t j) const {
    return call.key.data_ptr<scalar>() + text * call.key.stride(0) + kv_head * call.key.stride(1) + j * call.key.stride(2);
  }

 private:
  std::vector<float> keys_, values_;

  template <typename scalar>
  void pack() {
    const int64_t tiles = call.key_tiles(), count = call.batch() * call.kv_heads() * tiles;
    const bool own_values = value == nullptr;
    if (!few) keys_.resize(count * depth * TILE);
    if (own_values) {
      value_row = width, value_head = tiles * TILE / (pairs ? 2 : 1) * width, value_text = call.kv_heads() * value_head;
      values_.resize(call.batch() * value_text);
      value = values_.data();
    }
    if (few && !own_values) return;
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t head = n / tiles, start = n % tiles * TILE, size = std::min(TILE, call.keys() - start);
        if (!few) take<scalar, true>(call.key, head, start, size, keys_.data() + n * depth * TILE);
        if (own_values) {
          take<scalar, false>(call.value, head, start, size, values_.data() + n * TILE / (pairs ? 2 : 1) * width);
        }
      }
    });
  }

  // Copies `size` rows of a head from `start` on, keys transposed.
  template <typename scalar, bool TRANSPOSED>
  void take(const Tensor& tensor, int64_t head, int64_t start, int64_t size, float* to) const {
    constexpr int64_t SQUARE = 16;  // rows and widths at once, so that lines are used while they are near
    const Tensor own = tensor[head / call.kv_heads()][head % call.kv_heads()];
    const int64_t row = own.stride(0), step = own.stride(1), columns = own.size(1);
    const scalar* from = own.data_ptr<scalar>() + start * row;
    auto* halves = reinterpret_cast<scalar*>(to);  // of pairs
    for (int64_t j0 = 0; j0 < size; j0 += SQUARE) {
      for (int64_t d0 = 0; d0 < columns; d0 += SQUARE) {
        const int64_t j1 = std::min(j0 + SQUARE, size), d1 = std::min(d0 + SQUARE, columns);
        for (int64_t d = d0; d < d1; ++d) {
          for (int64_t j = j0; j < j1; ++j) {
            const scalar x = from[j * row + d * step];
            if (pairs) halves[TRANSPOSED ? (d / 2 * TILE + j) * 2 + d % 2 : (j / 2 * width + d) * 2 + j % 2] = x;
            else to[TRANSPOSED ? d * TILE + j : j * width + d] = static_cast<float>(x);
          }
        }
      }
    }
  }
};

}  // namespace probe
