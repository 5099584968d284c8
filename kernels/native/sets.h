// The mass that rows put on key sets, and the sums of p v over them.

#pragma once

#include <algorithm>
#include <vector>

#include "block.h"
#include "packed.h"

namespace probe {

class Masses {
 public:
  explicit Masses(const Call& call, const Packed& packed) : call_(call), packed_(packed), partial_(packed.width) {}

  void add(Cells& cells) {
    for (int64_t r = 0; r < cells.count(); ++r) {
      const Row& row = cells.rows[r];
      const std::vector<Set>& sets = sets_of(cells.text(), row.head);
      for (size_t n = 0; n < sets.size(); ++n) {
        double mass = 0;
        std::fill(partial_.begin(), partial_.end(), 0.f);
        for (int64_t t = cells.tiles.start; t < cells.tiles.stop; ++t) {
          const Range cols = cells.columns(t, r / ROWS);
          if (!cols.size()) continue;
          const bool by_runs = sets[n].member.empty();
          if (!by_runs) mass += of_members(cells.row(t, r), sets[n].member.data() + t * TILE, cols);
          if (by_runs || call_.partial) {
            const double found = of_runs(sets[n], cells, t, cols, cells.row(t, r));
            if (by_runs) mass += found;
          }
        }
        const bool blind = row.inverse == 0.f;
        Call::at(call_.mass, row.at)[n] = blind ? NaN : static_cast<float>(mass * row.inverse);
        if (!call_.partial) continue;
        const int64_t width = call_.partial->size(4);
        float* to = Call::at(call_.partial, row.at) + n * width;
        for (int64_t d = 0; d < width; ++d) to[d] = partial_[d] * row.inverse;
      }
    }
  }

 private:
  // Runs of consecutive keys, and, where those are many, 1 for a member and 0 for another.
  struct Set {
    std::vector<Range> runs;
    std::vector<float> member;
  };

  const Call& call_;
  const Packed& packed_;
  std::vector<Set> sets_;  // of `head_`, counted over texts
  int64_t head_ = -1;
  std::vector<float> partial_;

  const std::vector<Set>& sets_of(int64_t text, int64_t head) {
    if (head_ == text * call_.heads() + head) return sets_;
    head_ = text * call_.heads() + head;
    sets_.clear();
    const Tensor own = (*call_.sets)[text][head];
    for (int64_t n = 0; n < own.size(0); ++n) {
      const bool* member = own.data_ptr<bool>() + n * own.stride(0);
      Set set;
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

  static float of_members(const float* e, const float* member, Range cols) {
    Vec mass{};
    for (int64_t j = cols.start; j < cols.stop; j += LANES) mass += load(e + j) * load(member + j);
    return sum(mass);
  }

  // Takes the partial sums along.
  double of_runs(const Set& set, const Cells& cells, int64_t t, Range cols, const float* e) {
    const int64_t start = t * TILE;
    auto run = std::upper_bound(set.runs.begin(), set.runs.end(), start + cols.start,
                                [](int64_t j, const Range& range) { return j < range.stop; });
    double mass = 0;
    for (; run != set.runs.end() && run->start < start + cols.stop; ++run) {
      const Range cut = within({run->start - start, run->stop - start}, cols);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = cut.start; j < cut.stop; ++j) sum += e[j];
      mass += sum;
      if (!call_.partial) continue;
      product<true, false>(1, packed_.width, cut.size(), e + cut.start, TILE,
                           packed_.value_at(cells.text(), cells.kv_head(), start + cut.start), packed_.value_row,
                           partial_.data(), packed_.width);
    }
    return mass;
  }
};

}  // namespace probe
