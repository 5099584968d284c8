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
#include <cmath>
#include <utility>
#include <vector>

#include "block.h"
#include "call.h"
#include "packed.h"
#include "received.h"
#include "sets.h"
#include "vectors.h"

namespace probe {
namespace {

class Worker {
 public:
  Worker(const Call& call, const Packed& packed)
      : call_(call), packed_(packed), depth_(packed.depth), cells_(call), received_(call), masses_(call, packed) {}

  void run(const Block& block) {
    cells_.begin(block);
    const int64_t padded = cells_.groups() * ROWS;
    peaks_.resize(cells_.tiles.size() * padded);
    outputs_.assign(padded * packed_.width, 0.f);
    queries_.assign(padded * depth_, 0.f);
    best_.resize(cells_.count());
    for (auto& best : best_) best.clear();
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call_.query.scalar_type(), "queries",
                                    [&] { take_queries<scalar_t>(); });
    for (int64_t t = cells_.tiles.start; t < cells_.tiles.stop; ++t) {
      for (int64_t g = 0; g < cells_.groups(); ++g) score(t, g);
    }
    for (Row& row : cells_.rows) row.shift = row.peak <= HIDDEN / 2 ? 0.f : row.peak;
    for (int64_t t = cells_.tiles.start; t < cells_.tiles.stop; ++t) {
      for (int64_t g = 0; g < cells_.groups(); ++g) weigh(t, g);
    }
    for (int64_t r = 0; r < cells_.count(); ++r) finish(r);
    if (call_.received) received_.add(cells_);
    if (call_.sets) masses_.add(cells_);
    if (call_.pooled) pool(call_, cells_);
  }

  std::vector<Received::Share> shares() { return std::move(received_.shares); }

 private:
  const Call& call_;
  const Packed& packed_;
  const int64_t depth_;
  Cells cells_;
  Received received_;
  Masses masses_;
  std::vector<float> queries_, outputs_;
  std::vector<float> peaks_;                                  // of each row in each tile
  std::vector<std::vector<std::pair<float, int64_t>>> best_;  // of each row: largest scores and their keys

  float& peak_in(int64_t t, int64_t r) { return peaks_[(t - cells_.tiles.start) * cells_.groups() * ROWS + r]; }

  // What turns products into scores in units of log 2; in units of the cap, where there is one.
  float scale() const {
    return static_cast<float>(call_.softcap > 0 ? call_.scale / call_.softcap : call_.scale / LN2);
  }

  // Scaled here, but by pairs, which scaling would round, after the product.
  template <typename scalar>
  void take_queries() {
    const Tensor& query = call_.query;
    for (int64_t r = 0; r < cells_.count(); ++r) {
      const scalar* from = query.data_ptr<scalar>() + cells_.text() * query.stride(0) + cells_.rows[r].head * query.stride(1) +
                           cells_.rows[r].i * query.stride(2);
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
    const Range cols = cells_.columns(t, g);
    if (!cols.size()) return;
    float* s = cells_.cell(t, g);
    const float* q = queries_.data() + g * ROWS * depth_;
    if (packed_.few) {
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call_.key.scalar_type(), "dots",
                                      [&] { dots<scalar_t>(t, g, cols, q, s); });
    } else if (packed_.pairs) {
      product<false, true>(cells_.present(g), cols.size(), depth_, q, depth_,
                           packed_.key_tile(cells_.text(), cells_.kv_head(), t) + cols.start, TILE, s + cols.start, TILE);
      for (int64_t r = 0; r < cells_.present(g); ++r) {
        for (int64_t j = cols.start; j < cols.stop; j += LANES) store(s + r * TILE + j, load(s + r * TILE + j) * scale());
      }
    } else {
      product<false, false>(cells_.present(g), cols.size(), depth_, q, depth_,
                            packed_.key_tile(cells_.text(), cells_.kv_head(), t) + cols.start, TILE, s + cols.start, TILE);
    }
    for (int64_t r = 0; r < cells_.present(g); ++r) {
      Row& row = cells_.rows[g * ROWS + r];
      hide(row, t * TILE, cols, s + r * TILE);
      Vec peak = all(HIDDEN);
      for (int64_t j = cols.start; j < cols.stop; j += LANES) peak = most(peak, load(s + r * TILE + j));
      const float highest = most(peak);
      peak_in(t, g * ROWS + r) = highest;
      row.peak = std::max(row.peak, highest);
    }
  }

  template <typename scalar>
  void dots(int64_t t, int64_t g, Range cols, const float* q, float* s) const {
    const int64_t stop = std::min(cols.stop, call_.keys() - t * TILE);
    for (int64_t j = cols.start; j < stop; ++j) {
      const scalar* key = packed_.key_at<scalar>(cells_.text(), cells_.kv_head(), t * TILE + j);
      for (int64_t r = 0; r < cells_.present(g); ++r) s[r * TILE + j] = dot(q + r * depth_, key, depth_);
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
      const float* hidden = call_.hidden->data_ptr<float>() + cells_.text() * call_.keys() + start;
      for (int64_t j = seen.start; j < seen.stop; ++j) s[j] += hidden[j];
    }
    if (call_.pairs) {
      const Tensor& pairs = *call_.pairs;
      const bool* visible = pairs.data_ptr<bool>() + cells_.text() * pairs.stride(0) + row.head * pairs.stride(1) +
                            row.i * pairs.stride(2) + start;
      for (int64_t j = seen.start; j < seen.stop; ++j) s[j] = visible[j] ? s[j] : HIDDEN;
    }
  }

  // Second sweep: scores become e, with the sums of each row, and add their share of the output.
  void weigh(int64_t t, int64_t g) {
    const Range cols = cells_.columns(t, g);
    if (!cols.size()) return;
    float* s = cells_.cell(t, g);
    for (int64_t r = 0; r < cells_.present(g); ++r) {
      Row& row = cells_.rows[g * ROWS + r];
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
    const float* values = packed_.value_at(cells_.text(), cells_.kv_head(), t * TILE + cols.start);
    float* output = outputs_.data() + g * ROWS * packed_.width;
    if (packed_.pairs) {
      float pairs[ROWS * TILE / 2];
      for (int64_t r = 0; r < cells_.present(g); ++r) {
        for (int64_t j = cols.start; j < cols.stop; j += 2 * LANES) store_pairs(pairs + (r * TILE + j) / 2, s + r * TILE + j);
      }
      product<true, true>(cells_.present(g), packed_.width, cols.size() / 2, pairs + cols.start / 2, TILE / 2, values,
                          packed_.value_row, output, packed_.width);
    } else {
      const int64_t stop = std::min(cols.stop, call_.keys() - t * TILE);
      product<true, false>(cells_.present(g), packed_.width, stop - cols.start, s + cols.start, TILE, values, packed_.value_row,
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
    const float peak = peak_in(t, r);
    const auto floor = [&] { return best.size() < k ? HIDDEN / 2 : best.back().first; };
    if (peak <= floor() || (k == 1 && peak < cells_.rows[r].peak)) return;
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
    Row& row = cells_.rows[r];
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
      scalar_t* to = output.data_ptr<scalar_t>() + cells_.text() * output.stride(0) + row.head * output.stride(1) +
                     row.i * output.stride(2);
      const float* from = outputs_.data() + r * packed_.width;
      for (int64_t d = 0; d < output.size(3); ++d) to[d] = static_cast<scalar_t>(from[d] * row.inverse);
    });
  }
};

void compute(const Call& call, int64_t block_rows) {
  const int64_t queries = call.queries(), group = call.group();
  // few queries: the heads of a KV head in one block, so that its keys are read once
  const int64_t together = queries * group <= block_rows ? group : 1;
  const int64_t blocks = (queries + block_rows - 1) / block_rows, pairs = (blocks + 1) / 2;
  const int64_t items = call.batch() * call.heads() / together * pairs;
  const Packed packed(call, queries * group <= ROWS);
  std::vector<std::vector<Received::Share>> shares(at::get_num_threads());
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
    shares[at::get_thread_num()] = worker.shares();
  });
  if (call.received) close(call, shares);
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
