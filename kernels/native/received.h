// What keys receive from the rows of blocks, and the largest weights of the tiles of a map.

#pragma once

#include <atomic>
#include <vector>

#include "block.h"

namespace probe {

class Received {
 public:
  // What the keys of one head, counted over texts, receive from the rows that this thread has seen.
  struct Share {
    int64_t head;
    std::vector<double> sums;
  };
  std::vector<Share> shares;

  explicit Received(const Call& call) : call_(call), columns_(TILE) {}

  void add(Cells& cells) {
    for (int64_t t = cells.tiles.start; t < cells.tiles.stop; ++t) {
      for (int64_t first = 0, stop; first < cells.count(); first = stop) {  // the rows of a head
        const int64_t head = cells.rows[first].head;
        std::fill(columns_.begin(), columns_.end(), 0.f);
        for (stop = first; stop < cells.count() && cells.rows[stop].head == head;) {
          const int64_t four = stop;
          while (stop < std::min(four + 4, cells.count()) && cells.rows[stop].head == head && stop / ROWS == four / ROWS) ++stop;
          add(cells, t, {four, stop});
        }
        double* sums = share(cells.text() * call_.heads() + head).data() + t * TILE;
        for (int64_t j = 0; j < std::min(TILE, call_.keys() - t * TILE); ++j) sums[j] += columns_[j];
      }
    }
  }

 private:
  const Call& call_;
  std::vector<float> columns_;  // of one tile and one block of rows

  // At most four rows of one cell.
  void add(Cells& cells, int64_t t, Range rows) {
    const Range cols = cells.columns(t, rows.start / ROWS);
    if (!cols.size()) return;
    const float* e[4];
    float weight[4];
    Range bands[4], shared = cols;
    for (int64_t n = 0; n < 4; ++n) {
      const int64_t r = std::min(rows.start + n, rows.stop - 1);
      const Row& row = cells.rows[r];
      const bool counts = n < rows.size() && call_.counted->data_ptr<bool>()[cells.text() * call_.queries() + row.i];
      weight[n] = counts ? row.inverse : 0.f;
      e[n] = cells.row(t, r);
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
};

// Writes the means: sums of all threads, in their order, so that the same call gives the same numbers.
inline void close(const Call& call, const std::vector<std::vector<Received::Share>>& threads) {
  std::vector<double> sums(call.received->numel(), 0.);
  for (const auto& shares : threads) {
    for (const auto& share : shares) {
      for (int64_t j = 0; j < call.keys(); ++j) sums[share.head * call.keys() + j] += share.sums[j];
    }
  }
  std::copy(sums.begin(), sums.end(), call.received->data_ptr<float>());
}

// Two threads may hold rows of the same tile of the map.
inline void raise(float* target, float value) {
  auto* shared = reinterpret_cast<std::atomic<float>*>(target);
  float held = shared->load(std::memory_order_relaxed);
  while (held < value && !shared->compare_exchange_weak(held, value, std::memory_order_relaxed)) {
  }
}

inline void pool(const Call& call, Cells& cells) {
  const int64_t map_rows = call.pooled->size(2), map_cols = call.pooled->size(3);
  for (int64_t r = 0; r < cells.count(); ++r) {
    const Row& row = cells.rows[r];
    const int64_t head = cells.text() * call.heads() + row.head;
    float* tiles = call.pooled->data_ptr<float>() + (head * map_rows + row.i / call.tile_rows) * map_cols;
    for (int64_t j = row.seen.start; j < row.seen.stop;) {
      const int64_t tile = j / call.tile_cols, t = j / TILE;
      const int64_t stop = std::min({(tile + 1) * call.tile_cols, (t + 1) * TILE, row.seen.stop});
      const float* e = cells.row(t, r) - t * TILE;
      float highest = 0;
#pragma omp simd reduction(max : highest)
      for (int64_t n = j; n < stop; ++n) highest = e[n] > highest ? e[n] : highest;
      raise(tiles + tile, highest * row.inverse);
      j = stop;
    }
  }
}

}  // namespace probe
