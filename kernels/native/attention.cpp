// Attention that returns statistics, on CPUs: whole rows of a block of queries at a time.
//
// A block is some queries of one head (of all heads of a KV head, where queries are few). Its scores lie in the cache,
// cut into cells of ROWS queries x TILE keys. One sweep over the cells makes the scores, hides what is masked and finds
// each row's peak; a second turns scores into e = 2^(s - peak), adds up what is linear in e, and multiplies by the
// values; then every row's sum is known, and a third adds up what the keys receive. Threads share the blocks out by
// head, early ones paired with late ones, which a causal mask makes long.
//
// Scores are kept in units of log 2, for exp2 is cheaper than exp; what leaves is in nats.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "vectors.h"

namespace probe {
namespace {

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

// What one call computes: tensors, mask, and where the results go; a result that is not asked for has no tensor.
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

// Keys and values as the products want them: keys transposed tile by tile, [depth, TILE] each, padded with zeros; values
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

// Some queries of `heads` heads that share a KV head, from `head` on.
struct Block {
  int64_t text, head, heads;
  Range queries;
};

struct Row {
  int64_t i, head, at;  // query, head, and number over all texts and heads; at -1 beyond the block's end
  Range seen;
  float peak, shift;
  double mass, moment, distance, windowed;  // sums of e, of e (s - shift), of e (i - j), of e min(i - j, W)
  float inverse;                            // 1 / (the sum of e, with the sink's)
};

// What the keys of one head receive from the rows that one thread has seen.
struct Share {
  int64_t head;
  std::vector<double> sums;
};

// A key set: runs of consecutive keys, or, where those are short, 1 for a member and 0 for another.
struct KeySet {
  std::vector<Range> runs;
  std::vector<float> member;
};

class Worker {
 public:
  Worker(const Call& call, const Packed& packed) : call_(call), packed_(packed), depth_(packed.depth) {}

  std::vector<Share> shares;

  void run(const Block& block) {
    begin(block);
    const int64_t groups = static_cast<int64_t>(rows_.size()) / ROWS;
    for (int64_t t = tiles_.start; t < tiles_.stop; ++t) {
      for (int64_t g = 0; g < groups; ++g) score(t, g);
    }
    for (Row& row : rows_) row.shift = row.peak <= HIDDEN / 2 ? 0.f : row.peak;
    for (int64_t t = tiles_.start; t < tiles_.stop; ++t) {
      for (int64_t g = 0; g < groups; ++g) weigh(t, g);
    }
    for (int64_t r = 0; r < static_cast<int64_t>(rows_.size()); ++r) finish(r);
    if (call_.received) receive();
    if (call_.sets) masses();
    if (call_.pooled) pool();
  }

 private:
  const Call& call_;
  const Packed& packed_;
  const int64_t depth_;
  Block block_{};
  Range tiles_{};
  std::vector<Row> rows_;
  std::vector<Range> spans_;  // of each group of rows: the keys that any of them sees
  std::vector<float> queries_, scores_, peaks_, outputs_, columns_;
  std::vector<std::vector<std::pair<float, int64_t>>> best_;  // of each row: largest scores and their keys

  int64_t text() const { return block_.text; }
  int64_t kv_head() const { return block_.head / call_.group(); }
  int64_t present(int64_t g) const {
    return std::min<int64_t>(ROWS, block_.heads * block_.queries.size() - g * ROWS);
  }
  float* cell(int64_t t, int64_t g) { return scores_.data() + ((t - tiles_.start) * spans_.size() + g) * ROWS * TILE; }

  // The columns of a cell that matter, in whole steps.
  Range columns(int64_t t, int64_t g) const {
    const Range inside = within({spans_[g].start - t * TILE, spans_[g].stop - t * TILE}, {0, TILE});
    if (!inside.size()) return {0, 0};
    return {inside.start / STEP * STEP, (inside.stop + STEP - 1) / STEP * STEP};
  }

  void begin(const Block& block) {
    block_ = block;
    const int64_t queries = block.queries.size(), count = block.heads * queries;
    const int64_t groups = (count + ROWS - 1) / ROWS;
    rows_.assign(groups * ROWS, Row{0, 0, -1, {0, 0}, HIDDEN, 0, 0, 0, 0, 0, 0});
    spans_.assign(groups, {call_.keys(), 0});
    for (int64_t r = 0; r < count; ++r) {
      Row& row = rows_[r];
      row.i = block.queries.start + r % queries;
      row.head = block.head + r / queries;
      row.at = (block.text * call_.heads() + row.head) * call_.queries() + row.i;
      row.seen = call_.seen(row.i);
      if (!row.seen.size()) continue;
      Range& span = spans_[r / ROWS];
      span = {std::min(span.start, row.seen.start), std::max(span.stop, row.seen.stop)};
    }
    Range all{call_.keys(), 0};
    for (Range& span : spans_) {
      if (!span.size()) span = {0, 0};
      else all = {std::min(all.start, span.start), std::max(all.stop, span.stop)};
    }
    tiles_ = all.size() ? Range{all.start / TILE, (all.stop + TILE - 1) / TILE} : Range{0, 0};
    grow(scores_, tiles_.size() * groups * ROWS * TILE);
    grow(peaks_, tiles_.size() * groups * ROWS);
    outputs_.assign(groups * ROWS * packed_.width, 0.f);
    if (call_.top_weight) {
      best_.resize(rows_.size());
      for (auto& best : best_) best.clear();
    }
    queries_.assign(groups * ROWS * depth_, 0.f);
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call_.query.scalar_type(), "queries",
                                    [&] { take_queries<scalar_t>(count); });
  }

  static void grow(std::vector<float>& buffer, int64_t size) {
    if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
  }

  // What turns products into scores in units of log 2; in units of the cap, where there is one.
  float scale() const {
    return static_cast<float>(call_.softcap > 0 ? call_.scale / call_.softcap : call_.scale / LN2);
  }

  // Scaled here, but by pairs, which scaling would round, after the product.
  template <typename scalar>
  void take_queries(int64_t count) {
    const Tensor& query = call_.query;
    for (int64_t r = 0; r < count; ++r) {
      const scalar* from = query.data_ptr<scalar>() + text() * query.stride(0) + rows_[r].head * query.stride(1) +
                           rows_[r].i * query.stride(2);
      float* to = queries_.data() + r * depth_;
      for (int64_t d = 0; d < query.size(3); ++d) {
        const scalar x = from[d * query.stride(3)];
        if (packed_.pairs) reinterpret_cast<scalar*>(to)[d] = x;
        else to[d] = static_cast<float>(x) * scale();
      }
    }
  }

  // First sweep: the scores of a cell, HIDDEN where masked, and the rows' peaks.
  void score(int64_t t, int64_t g) {
    const Range cols = columns(t, g);
    if (!cols.size()) return;
    float* s = cell(t, g);
    const float* q = queries_.data() + g * ROWS * depth_;
    if (packed_.few) {
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call_.key.scalar_type(), "dots",
                                      [&] { dots<scalar_t>(t, g, cols, q, s); });
    } else if (packed_.pairs) {
      product<false, true>(present(g), cols.size(), depth_, q, depth_,
                           packed_.key_tile(text(), kv_head(), t) + cols.start, TILE, s + cols.start, TILE);
      for (int64_t r = 0; r < present(g); ++r) {
        for (int64_t j = cols.start; j < cols.stop; j += LANES) store(s + r * TILE + j, load(s + r * TILE + j) * scale());
      }
    } else {
      product<false, false>(present(g), cols.size(), depth_, q, depth_,
                            packed_.key_tile(text(), kv_head(), t) + cols.start, TILE, s + cols.start, TILE);
    }
    for (int64_t r = 0; r < present(g); ++r) {
      Row& row = rows_[g * ROWS + r];
      hide(row, t * TILE, cols, s + r * TILE);
      Vec peak = all(HIDDEN);
      for (int64_t j = cols.start; j < cols.stop; j += LANES) peak = most(peak, load(s + r * TILE + j));
      const float highest = most(peak);
      peaks_[(t - tiles_.start) * rows_.size() + g * ROWS + r] = highest;
      row.peak = std::max(row.peak, highest);
    }
  }

  template <typename scalar>
  void dots(int64_t t, int64_t g, Range cols, const float* q, float* s) const {
    const int64_t stop = std::min(cols.stop, call_.keys() - t * TILE);
    for (int64_t j = cols.start; j < stop; ++j) {
      const scalar* key = packed_.key_at<scalar>(text(), kv_head(), t * TILE + j);
      for (int64_t r = 0; r < present(g); ++r) s[r * TILE + j] = dot(q + r * depth_, key, depth_);
    }
  }

  void hide(const Row& row, int64_t start, Range cols, float* s) const {
    const Range seen = within({row.seen.start - start, row.seen.stop - start}, cols);
    std::fill(s + cols.start, s + seen.start, HIDDEN);
    std::fill(s + seen.stop, s + cols.stop, HIDDEN);
    if (!seen.size()) return;
    if (call_.softcap > 0) {
      const float cap = static_cast<float>(call_.softcap / LN2);
      for (int64_t j = cols.start; j < cols.stop; j += LANES) {
        const Vec x = load(s + j);
        store(s + j, x > HIDDEN / 2 ? tanh(x) * cap : x);
      }
    }
    if (call_.hidden) {
      const float* hidden = call_.hidden->data_ptr<float>() + text() * call_.keys() + start;
      for (int64_t j = seen.start; j < seen.stop; ++j) s[j] += hidden[j];
    }
    if (call_.pairs) {
      const Tensor& pairs = *call_.pairs;
      const bool* visible = pairs.data_ptr<bool>() + text() * pairs.stride(0) + row.head * pairs.stride(1) +
                            row.i * pairs.stride(2) + start;
      for (int64_t j = seen.start; j < seen.stop; ++j) s[j] = visible[j] ? s[j] : HIDDEN;
    }
  }

  // Second sweep: scores become e, with the sums of each row, and add their share of the output.
  void weigh(int64_t t, int64_t g) {
    const Range cols = columns(t, g);
    if (!cols.size()) return;
    float* s = cell(t, g);
    for (int64_t r = 0; r < present(g); ++r) {
      Row& row = rows_[g * ROWS + r];
      if (call_.top_weight) rank(g * ROWS + r, t, cols, s + r * TILE);
      const int64_t away = row.i + call_.ahead - t * TILE;  // i - j of the cell's first column
      const bool far = call_.windowed && away - cols.stop + 1 >= call_.windowed_distance;
      const bool near = call_.windowed && !far;
      const double before = row.mass;
      if (call_.entropy) {
        if (near) exponentials<true, true, true>(row, s + r * TILE, cols, away);
        else if (call_.distance) exponentials<true, true, false>(row, s + r * TILE, cols, away);
        else exponentials<true, false, false>(row, s + r * TILE, cols, away);
      } else {
        if (near) exponentials<false, true, true>(row, s + r * TILE, cols, away);
        else if (call_.distance) exponentials<false, true, false>(row, s + r * TILE, cols, away);
        else exponentials<false, false, false>(row, s + r * TILE, cols, away);
      }
      if (far) row.windowed += static_cast<double>(call_.windowed_distance) * (row.mass - before);
    }
    const float* values = packed_.value_at(text(), kv_head(), t * TILE + cols.start);
    float* output = outputs_.data() + g * ROWS * packed_.width;
    if (packed_.pairs) {
      float pairs[ROWS * TILE / 2];
      for (int64_t r = 0; r < present(g); ++r) {
        for (int64_t j = cols.start; j < cols.stop; j += 2 * LANES) store_pairs(pairs + (r * TILE + j) / 2, s + r * TILE + j);
      }
      product<true, true>(present(g), packed_.width, cols.size() / 2, pairs + cols.start / 2, TILE / 2, values,
                          packed_.value_row, output, packed_.width);
    } else {
      const int64_t stop = std::min(cols.stop, call_.keys() - t * TILE);
      product<true, false>(present(g), packed_.width, stop - cols.start, s + cols.start, TILE, values, packed_.value_row,
                           output, packed_.width);
    }
  }

  template <bool MOMENT, bool DISTANCE, bool WINDOWED>
  void exponentials(Row& row, float* s, Range cols, int64_t away) const {
    const Vec shift = all(row.shift), most_away = all(static_cast<float>(call_.windowed_distance));
    Vec mass{}, moment{}, distance{}, windowed{};
    Vec from = static_cast<float>(away - cols.start) - counting();  // i - j, exact
    for (int64_t j = cols.start; j < cols.stop; j += LANES) {
      const Vec x = load(s + j) - shift;
      const Vec e = exp2_down(x);
      store(s + j, e);
      mass += e;
      if (MOMENT) moment += e * x;
      if (DISTANCE) distance += e * from;
      if (WINDOWED) windowed += e * (from < most_away ? from : most_away);
      if (DISTANCE) from -= static_cast<float>(LANES);
    }
    row.mass += sum(mass);
    if (MOMENT) row.moment += sum(moment);
    if (DISTANCE) row.distance += sum(distance);
    if (WINDOWED) row.windowed += sum(windowed);
  }

  // Keeps the largest scores of a row, best first, ties to the lower key.
  void rank(int64_t r, int64_t t, Range cols, const float* s) {
    auto& best = best_[r];
    const size_t k = call_.top_weight->size(3);
    const float peak = peaks_[(t - tiles_.start) * rows_.size() + r];
    const auto floor = [&] { return best.size() < k ? HIDDEN / 2 : best.back().first; };
    if (peak <= floor() || (k == 1 && peak < rows_[r].peak)) return;
    int64_t j = cols.start;
    if (k == 1) {  // the first of this cell that attains it
      while (j + LANES < cols.stop && most(load(s + j)) < peak) j += LANES;
    }
    for (; j < cols.stop; ++j) {
      if (s[j] <= floor() || (k == 1 && s[j] < peak)) continue;
      const auto after = [](float score, const std::pair<float, int64_t>& held) { return score > held.first; };
      best.insert(std::upper_bound(best.begin(), best.end(), s[j], after), {s[j], t * TILE + j});
      if (best.size() > k) best.pop_back();
      if (k == 1) return;
    }
  }

  void finish(int64_t r) {
    Row& row = rows_[r];
    if (row.at < 0) return;
    float* lse = call_.lse.data_ptr<float>() + row.at;
    const bool blind = row.peak <= HIDDEN / 2 && row.mass == 0;  // scores that are not numbers have no peak, but a sum
    const float sink = call_.sinks ? call_.sinks->data_ptr<float>()[row.head] / LN2 : HIDDEN;
    const double whole = blind ? 1 : row.mass + std::exp2(static_cast<double>(sink) - row.shift);
    const double log_whole = std::log2(whole);
    row.inverse = blind ? 0.f : static_cast<float>(1 / whole);
    *lse = blind ? -INFINITE : static_cast<float>((row.shift + log_whole) * LN2);
    const auto set = [&](const optional<Tensor>& statistic, double number) {
      if (statistic) *Call::at(statistic, row.at) = blind ? NaN : static_cast<float>(number / whole);
    };
    // a moment about the peak: neither term is negative, so nothing cancels where one weight is nearly 1
    set(call_.entropy, (log_whole * row.mass - row.moment) * LN2);
    set(call_.distance, row.distance);
    set(call_.windowed, row.windowed);
    if (call_.top_weight) {
      const size_t k = call_.top_weight->size(3);
      float* weight = Call::at(call_.top_weight, row.at);
      int64_t* key = call_.top_key->data_ptr<int64_t>() + row.at * k;
      for (size_t n = 0; n < k; ++n) {
        const bool found = n < best_[r].size();
        weight[n] = found ? static_cast<float>(std::exp2(static_cast<double>(best_[r][n].first) - row.shift) / whole) : 0.f;
        key[n] = found ? best_[r][n].second + call_.first_key : -1;
      }
    }
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call_.output.scalar_type(), "output", [&] {
      const Tensor& output = call_.output;
      scalar_t* to = output.data_ptr<scalar_t>() + text() * output.stride(0) + row.head * output.stride(1) +
                     row.i * output.stride(2);
      const float* from = outputs_.data() + r * packed_.width;
      for (int64_t d = 0; d < output.size(3); ++d) to[d] = static_cast<scalar_t>(from[d] * row.inverse);
    });
  }

  // Third sweep: adds the rows' weights to what their keys receive.
  void receive() {
    grow(columns_, TILE);
    for (int64_t t = tiles_.start; t < tiles_.stop; ++t) {
      for (int64_t r = 0, stop; r < static_cast<int64_t>(rows_.size()) && rows_[r].at >= 0; r = stop) {
        const int64_t head = rows_[r].head;  // the rows [r, stop) are this head's
        stop = r;
        std::fill_n(columns_.begin(), TILE, 0.f);
        for (; stop < static_cast<int64_t>(rows_.size()) && rows_[stop].at >= 0 && rows_[stop].head == head; stop += 4) {
          int64_t end = stop + 1;
          while (end < stop + 4 && end < static_cast<int64_t>(rows_.size()) && rows_[end].at >= 0 && rows_[end].head == head &&
                 end / ROWS == stop / ROWS) {
            ++end;
          }
          receive(t, stop, end);
          stop = end - 4;
        }
        double* sums = share(text() * call_.heads() + head).data() + t * TILE;
        for (int64_t j = 0; j < std::min(TILE, call_.keys() - t * TILE); ++j) sums[j] += columns_[j];
      }
    }
  }

  // The same for at most four rows of one group and one tile.
  void receive(int64_t t, int64_t first, int64_t last) {
    const Range cols = columns(t, first / ROWS);
    if (!cols.size()) return;
    const float* e[4];
    float weight[4];
    Range bands[4], shared = cols;
    for (int64_t n = 0; n < 4; ++n) {
      const int64_t r = std::min(first + n, last - 1);
      const Row& row = rows_[r];
      const bool counts = first + n < last && call_.counted->data_ptr<bool>()[text() * call_.queries() + row.i];
      weight[n] = counts ? row.inverse : 0.f;
      e[n] = cell(t, r / ROWS) + r % ROWS * TILE;
      const int64_t own = row.i + call_.ahead - t * TILE;
      bands[n] = within({own - call_.hi, own - call_.lo + 1}, cols);
      if (call_.causal && call_.lo <= 0) bands[n].stop = cols.stop;  // beyond the diagonal there are only zeros
      shared = within(bands[n], shared);
    }
    float* columns = columns_.data();
#pragma omp simd
    for (int64_t j = shared.start; j < shared.stop; ++j) {
      columns[j] += (weight[0] * e[0][j] + weight[1] * e[1][j]) + (weight[2] * e[2][j] + weight[3] * e[3][j]);
    }
    for (int64_t n = 0; n < 4; ++n) {
      for (int64_t j = bands[n].start; j < std::min(bands[n].stop, shared.start); ++j) columns[j] += weight[n] * e[n][j];
      for (int64_t j = std::max(bands[n].start, shared.stop); j < bands[n].stop; ++j) columns[j] += weight[n] * e[n][j];
    }
  }

  std::vector<double>& share(int64_t head) {
    for (size_t n = shares.size(); n-- > 0;) {
      if (shares[n].head == head) return shares[n].sums;
    }
    shares.push_back({head, std::vector<double>(call_.keys(), 0.)});
    return shares.back().sums;
  }

  std::vector<KeySet> sets_;
  int64_t sets_head_ = -1;

  const std::vector<KeySet>& sets_of(int64_t head) {
    if (sets_head_ == text() * call_.heads() + head) return sets_;
    sets_head_ = text() * call_.heads() + head;
    sets_.clear();
    const Tensor own = (*call_.sets)[text()][head];
    for (int64_t n = 0; n < own.size(0); ++n) {
      const bool* member = own.data_ptr<bool>() + n * own.stride(0);
      KeySet set;
      for (int64_t j = 0; j < call_.keys(); ++j) {
        if (!member[j]) continue;
        if (!set.runs.empty() && set.runs.back().stop == j) set.runs.back().stop = j + 1;
        else set.runs.push_back({j, j + 1});
      }
      // a pass over all keys takes as long as some keys / 64 short runs
      if (static_cast<int64_t>(set.runs.size()) * 64 > call_.keys()) {
        set.member.assign(call_.key_tiles() * TILE, 0.f);
        std::copy(member, member + call_.keys(), set.member.begin());
      }
      sets_.push_back(std::move(set));
    }
    return sets_;
  }

  void masses() {
    std::vector<float> partial(packed_.width);
    for (int64_t r = 0; r < static_cast<int64_t>(rows_.size()) && rows_[r].at >= 0; ++r) {
      const Row& row = rows_[r];
      const std::vector<KeySet>& sets = sets_of(row.head);
      for (size_t n = 0; n < sets.size(); ++n) {
        double mass = 0;
        std::fill(partial.begin(), partial.end(), 0.f);
        for (int64_t t = tiles_.start; t < tiles_.stop; ++t) {
          const Range cols = columns(t, r / ROWS);
          if (!cols.size()) continue;
          const float* e = cell(t, r / ROWS) + r % ROWS * TILE;
          if (!sets[n].member.empty()) mass += member_mass(e, sets[n].member.data() + t * TILE, cols);
          if (sets[n].member.empty() || call_.partial) add_runs(sets[n], t, cols, e, partial, mass);
        }
        *(Call::at(call_.mass, row.at) + n) = row.inverse == 0.f ? NaN : static_cast<float>(mass * row.inverse);
        if (call_.partial) {
          float* to = Call::at(call_.partial, row.at) + n * call_.partial->size(4);
          for (int64_t d = 0; d < call_.partial->size(4); ++d) to[d] = partial[d] * row.inverse;
        }
      }
    }
  }

  static float member_mass(const float* e, const float* member, Range cols) {
    Vec mass{};
    for (int64_t j = cols.start; j < cols.stop; j += LANES) mass += load(e + j) * load(member + j);
    return sum(mass);
  }

  void add_runs(const KeySet& set, int64_t t, Range cols, const float* e, std::vector<float>& partial, double& mass) {
    auto run = std::upper_bound(set.runs.begin(), set.runs.end(), t * TILE + cols.start,
                                [](int64_t j, const Range& range) { return j < range.stop; });
    for (; run != set.runs.end() && run->start < t * TILE + cols.stop; ++run) {
      const Range cut = within({run->start - t * TILE, run->stop - t * TILE}, cols);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = cut.start; j < cut.stop; ++j) sum += e[j];
      if (set.member.empty()) mass += sum;
      if (call_.partial) {
        product<true, false>(1, packed_.width, cut.size(), e + cut.start, TILE,
                      packed_.value_at(text(), kv_head(), t * TILE + cut.start), packed_.value_row, partial.data(),
                      packed_.width);
      }
    }
  }

  void pool() {
    const int64_t rows = call_.pooled->size(2), cols = call_.pooled->size(3);
    for (int64_t r = 0; r < static_cast<int64_t>(rows_.size()) && rows_[r].at >= 0; ++r) {
      const Row& row = rows_[r];
      float* tiles = call_.pooled->data_ptr<float>() +
                     ((text() * call_.heads() + row.head) * rows + row.i / call_.tile_rows) * cols;
      for (int64_t j = row.seen.start; j < row.seen.stop;) {
        const int64_t tile = j / call_.tile_cols, t = j / TILE;
        const int64_t stop = std::min({(tile + 1) * call_.tile_cols, (t + 1) * TILE, row.seen.stop});
        const float* e = cell(t, r / ROWS) + r % ROWS * TILE - t * TILE;
        float highest = 0;
#pragma omp simd reduction(max : highest)
        for (int64_t n = j; n < stop; ++n) highest = e[n] > highest ? e[n] : highest;
        raise(tiles + tile, highest * row.inverse);
        j = stop;
      }
    }
  }

  // Two threads may hold rows of the same tile of the map.
  static void raise(float* target, float value) {
    auto* shared = reinterpret_cast<std::atomic<float>*>(target);
    float held = shared->load(std::memory_order_relaxed);
    while (held < value && !shared->compare_exchange_weak(held, value, std::memory_order_relaxed)) {
    }
  }
};

void compute(const Call& call, int64_t block_rows) {
  const int64_t queries = call.queries(), group = call.group();
  // few queries: the heads of a KV head in one block, so that its keys are read once
  const int64_t together = queries * group <= block_rows ? group : 1;
  const int64_t blocks = (queries + block_rows - 1) / block_rows, pairs = (blocks + 1) / 2;
  const int64_t items = call.batch() * call.heads() / together * pairs;
  const Packed packed(call, queries * group <= ROWS);
  std::vector<std::vector<Share>> shares(at::get_num_threads());
  at::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
    Worker worker(call, packed);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / pairs * together, early = item % pairs, late = blocks - 1 - early;
      for (const int64_t n : {early, late}) {
        worker.run({head / call.heads(), head % call.heads(), together,
                    {n * block_rows, std::min((n + 1) * block_rows, queries)}});
        if (early == late) break;
      }
    }
    shares[at::get_thread_num()] = std::move(worker.shares);
  });
  if (!call.received) return;
  std::vector<double> sums(call.received->numel(), 0.);
  for (const auto& thread : shares) {  // in the threads' order, so that the same call gives the same numbers
    for (const Share& share : thread) {
      for (int64_t j = 0; j < call.keys(); ++j) sums[share.head * call.keys() + j] += share.sums[j];
    }
  }
  float* received = call.received->data_ptr<float>();
  for (size_t n = 0; n < sums.size(); ++n) received[n] = static_cast<float>(sums[n]);
}

void attend(const Tensor& query, const Tensor& key, const Tensor& value, bool causal, int64_t window, int64_t ahead,
            int64_t first_key, const optional<Tensor>& hidden, const optional<Tensor>& pairs, double scale,
            double softcap, const optional<Tensor>& sinks, const Tensor& output, const Tensor& lse,
            const optional<Tensor>& entropy, const optional<Tensor>& distance, const optional<Tensor>& windowed,
            int64_t windowed_distance, const optional<Tensor>& top_weight, const optional<Tensor>& top_key,
            const optional<Tensor>& sets, const optional<Tensor>& mass, const optional<Tensor>& partial,
            const optional<Tensor>& received, const optional<Tensor>& counted, int64_t lo, int64_t hi,
            const optional<Tensor>& pooled, int64_t tile_rows, int64_t tile_cols, int64_t block_rows) {
  compute({query,    key,      value,     causal,  window,   ahead,      first_key, hidden, pairs,
           scale,    softcap,  sinks,     output,  lse,      entropy,    distance,  windowed,
           windowed_distance,  top_weight, top_key, sets,    mass,       partial,   received, counted,
           lo,       hi,       pooled,    tile_rows, tile_cols},
          block_rows);
}

}  // namespace
}  // namespace probe

TORCH_LIBRARY(probe_native, library) {
  library.def(
      "attend(Tensor query, Tensor key, Tensor value, bool causal, int window, int ahead, int first_key, Tensor? hidden, "
      "Tensor? pairs, float scale, float softcap, Tensor? sinks, Tensor(a!) output, Tensor(b!) lse, "
      "Tensor(c!)? entropy, Tensor(d!)? distance, Tensor(e!)? windowed, int windowed_distance, "
      "Tensor(f!)? top_weight, Tensor(g!)? top_key, Tensor? sets, Tensor(h!)? mass, Tensor(i!)? partial, "
      "Tensor(j!)? received, Tensor? counted, int lo, int hi, Tensor(k!)? pooled, int tile_rows, int tile_cols, "
      "int block_rows) -> ()");
}
TORCH_LIBRARY_IMPL(probe_native, CPU, library) { library.impl("attend", &probe::attend); }
