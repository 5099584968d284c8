// The rows of a block of queries and their scores, cut into cells of ROWS rows x TILE keys.

#pragma once

#include <algorithm>
#include <vector>

#include "call.h"
#include "vectors.h"

namespace probe {

// Some queries of `heads` heads that share a KV head, from `head` on.
struct Block {
  int64_t text, head, heads;
  Range queries;
};

struct Row {
  int64_t i, head, at;  // query, head, and number over all texts and heads
  Range seen;           // keys, by position
  float peak = HIDDEN, shift = 0;
  double mass = 0, moment = 0, distance = 0, windowed = 0;  // sums of e, e (s - shift), e (i - j), e min(i - j, W)
  float inverse = 0;                                        // 1 / (the sum of e, with the sink's)
};

class Cells {
 public:
  std::vector<Row> rows;
  Range tiles{};

  explicit Cells(const Call& call) : call_(call) {}

  void begin(const Block& block) {
    block_ = block;
    rows.clear();
    for (int64_t head = block.head; head < block.head + block.heads; ++head) {
      for (int64_t i = block.queries.start; i < block.queries.stop; ++i) {
        const int64_t at = (block.text * call_.heads() + head) * call_.queries() + i;
        rows.push_back({i, head, at, call_.seen(i)});
      }
    }
    spans_.assign((count() + ROWS - 1) / ROWS, {call_.keys(), 0});
    Range all{call_.keys(), 0};
    for (int64_t r = 0; r < count(); ++r) {
      const Range seen = rows[r].seen;
      if (!seen.size()) continue;
      Range& span = spans_[r / ROWS];
      span = {std::min(span.start, seen.start), std::max(span.stop, seen.stop)};
      all = {std::min(all.start, seen.start), std::max(all.stop, seen.stop)};
    }
    tiles = all.size() ? Range{all.start / TILE, (all.stop + TILE - 1) / TILE} : Range{0, 0};
    const size_t size = tiles.size() * groups() * ROWS * TILE;
    if (scores_.size() < size) scores_.resize(size);
  }

  int64_t text() const { return block_.text; }
  int64_t kv_head() const { return block_.head / call_.group(); }
  int64_t count() const { return static_cast<int64_t>(rows.size()); }
  int64_t groups() const { return static_cast<int64_t>(spans_.size()); }
  int64_t present(int64_t group) const { return std::min<int64_t>(ROWS, count() - group * ROWS); }

  // The rows of a cell lie TILE apart.
  float* cell(int64_t tile, int64_t group) { return scores_.data() + ((tile - tiles.start) * groups() + group) * ROWS * TILE; }
  float* row(int64_t tile, int64_t r) { return cell(tile, r / ROWS) + r % ROWS * TILE; }

  // The columns of a cell that any of its rows sees, in whole steps.
  Range columns(int64_t tile, int64_t group) const {
    const Range span = spans_[group];
    if (span.start >= span.stop) return {0, 0};
    const Range inside = within({span.start - tile * TILE, span.stop - tile * TILE}, {0, TILE});
    if (!inside.size()) return {0, 0};
    return {inside.start / STEP * STEP, (inside.stop + STEP - 1) / STEP * STEP};
  }

 private:
  const Call& call_;
  Block block_{};
  std::vector<Range> spans_;  // of each group of rows: from the first key that one sees to the last
  std::vector<float> scores_;
};

}  // namespace probe
