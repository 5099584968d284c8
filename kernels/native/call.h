// What one call computes: tensors, mask, and where the results go.

#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>

namespace probe {

using at::Tensor;
using std::optional;

constexpr int64_t TILE = 256;  // keys; sums over a tile are float32, over a row double
// A hidden key's score. Finite, so that weight times score is 0 and not NaN; far below any score that can occur.
constexpr float HIDDEN = -1e30f;
constexpr float LN2 = 0.693147180559945309f;
constexpr float NaN = std::numeric_limits<float>::quiet_NaN();
constexpr float INFINITE = std::numeric_limits<float>::infinity();

struct Range {
  int64_t start, stop;
  int64_t size() const { return std::max<int64_t>(stop - start, 0); }
};

Range within(Range range, Range outer) {
  const int64_t start = std::clamp(range.start, outer.start, outer.stop);
  return {start, std::clamp(range.stop, start, outer.stop)};
}

// A result that is not asked for has no tensor.
struct Call {
  const Tensor &query, &key, &value;
  bool causal;
  int64_t window, ahead;  // ahead: key index at the position of query 0; window 0 for none
  int64_t first_key;
  const optional<Tensor> &hidden, &pairs;
  double scale, softcap;  // softcap 0 for none
  const optional<Tensor>& sinks;
  const Tensor &output, &lse;
  const optional<Tensor> &entropy, &distance, &windowed;
  int64_t windowed_distance;
  const optional<Tensor> &top_weight, &top_key, &sets, &mass, &partial, &received, &counted;
  int64_t lo, hi;
  const optional<Tensor>& pooled;
  int64_t tile_rows, tile_cols;

  int64_t batch() const { return query.size(0); }
  int64_t heads() const { return query.size(1); }
  int64_t queries() const { return query.size(2); }
  int64_t keys() const { return key.size(2); }
  int64_t kv_heads() const { return key.size(1); }
  int64_t group() const { return heads() / kv_heads(); }
  int64_t key_tiles() const { return (keys() + TILE - 1) / TILE; }

  // Where a statistic of query `row`, counted over texts and heads, lies.
  static float* at(const optional<Tensor>& statistic, int64_t row) {
    const Tensor& t = *statistic;
    return t.data_ptr<float>() + row * (t.numel() / (t.size(0) * t.size(1) * t.size(2)));
  }

  // The keys that query i may see by position; the other masks hide more.
  Range seen(int64_t i) const {
    Range cols{0, keys()};
    if (window) cols.start = i + ahead - window + 1;
    if (causal) cols.stop = i + ahead + 1;
    return within({cols.start, std::max(cols.stop, cols.start)}, {0, keys()});
  }
};

}  // namespace probe
