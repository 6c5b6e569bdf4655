// What the kernels for CPUs share: vectors of 16 numbers, memory, and products of rows with matrices
// that lie in blocks of VECTORS vectors of 16 columns: for each group of numbers that are added up
// together (4 in 8-bit integers, else 1) vector after vector. So a product reads a block once,
// from one end to the other, whether by VNNI, by AMX or in float32.
//
// The numbers of a row are added up in one order, whatever the rows beside it. Products of integers
// are exact, so VNNI and AMX give the same bits. Compile with -ffp-contract=off, so that the compiler
// does not decide what is rounded.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

// How the weights of a matrix lie.
enum Kinds { FLOAT32, FLOAT16, INTEGERS };

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

constexpr int LANES = 16;
constexpr int GATE_VECTORS = 3;  // r, z and n of 16 units
constexpr int TILE = 16;         // rows of one of AMX's registers
constexpr int TILE_BYTES = 64;   // numbers of a row of it
constexpr int LINE = 64;         // bytes of a line of a cache
constexpr int SUMS = 24;         // registers that take sums: rows times vectors of a block
constexpr int MANY = 3;          // rows from which AMX is faster than VNNI
constexpr float LOG2_E = 1.44269504f;
// 2 to the power of x in [-1/2, 1/2] is 1 + x (P1 + x (P2 + ...)), to 1e-7 of it.
constexpr float P1 = 0.69314700f, P2 = 0.24022242f, P3 = 0.055507336f, P4 = 0.0096715130f;
constexpr float P5 = 0.0013264727f;

using Floats = __m512;

template <typename Work, int... AT>
[[gnu::always_inline]] inline void each_of(const Work &work, std::integer_sequence<int, AT...>) {
  (work(std::integral_constant<int, AT>{}), ...);
}

// Do something with 0 to COUNT - 1, which are constants to the compiler, so that arrays which they
// index may lie in registers.
template <int COUNT, typename Work>
[[gnu::always_inline]] inline void each(const Work &work) {
  each_of(work, std::make_integer_sequence<int, COUNT>{});
}

// Memory that starts with a cache line. It grows, and its content is lost then.
template <typename Kind>
class Room {
 public:
  Kind *of(size_t size) {
    if (size > size_) {
      size_t bytes = (size * sizeof(Kind) + 4095) / 4096 * 4096;
      memory_.reset(static_cast<Kind *>(std::aligned_alloc(4096, bytes)));
      if (!memory_) std::abort();
      std::memset(static_cast<void *>(memory_.get()), 0, bytes);
      size_ = size;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(Kind *memory) const { std::free(memory); }
  };
  std::unique_ptr<Kind, Free> memory_;
  size_t size_ = 0;
};

// 2 to a power that is at most some hundred, to two units in the last place; 0 far below.
[[gnu::always_inline]] inline Floats power_of_two(Floats power) {
  Floats whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Floats rest = _mm512_sub_ps(power, whole);  // in [-1/2, 1/2]
  Floats value = _mm512_set1_ps(P5);
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(P4));
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(P3));
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(P2));
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(P1));
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(value, whole);
}

inline Floats sigmoid(Floats value) {
  Floats power = power_of_two(_mm512_min_ps(
      _mm512_mul_ps(value, _mm512_set1_ps(-LOG2_E)), _mm512_set1_ps(126.0f)));
  return _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_add_ps(_mm512_set1_ps(1.0f), power));
}

inline Floats tanh(Floats value) {
  Floats twice = sigmoid(_mm512_add_ps(value, value));
  return _mm512_fmsub_ps(twice, _mm512_set1_ps(2.0f), _mm512_set1_ps(1.0f));
}

// Products of float32 with weights in float32.
struct Float32 {
  using Number = float;  // of rows
  using Weight = float;
  using Sum = float;
  using Sums = __m512;
  static constexpr int GROUP = 1;
  static constexpr int TOLD = 1;  // vectors that stand before the weights, for each vector of columns

  [[gnu::always_inline]] static Sums zero() { return _mm512_setzero_ps(); }
  [[gnu::always_inline]] static Sums weight(const float *place) { return _mm512_load_ps(place); }
  [[gnu::always_inline]] static Sums number(const float *place) { return _mm512_set1_ps(*place); }
  [[gnu::always_inline]] static Sums add(Sums sum, Sums number, Sums weight) {
    return _mm512_fmadd_ps(number, weight, sum);
  }
  [[gnu::always_inline]] static void store(float *place, Sums sum) { _mm512_store_ps(place, sum); }
};

// The same with weights that lie in float16, of which nothing is lost: half of the bytes to read.
struct Float16 : Float32 {
  using Weight = uint16_t;

  [[gnu::always_inline]] static Sums weight(const uint16_t *place) {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i *>(place)));
  }
};

// Products of 8-bit integers.
struct Integers {
  using Number = uint8_t;
  using Weight = int8_t;
  using Sum = int32_t;
  using Sums = __m512i;
  static constexpr int GROUP = 4;
  static constexpr int TOLD = 3;

  [[gnu::always_inline]] static Sums zero() { return _mm512_setzero_si512(); }
  [[gnu::always_inline]] static Sums weight(const int8_t *place) {
    return _mm512_load_si512(place);
  }
  [[gnu::always_inline]] static Sums number(const uint8_t *place) {
    int32_t four;
    std::memcpy(&four, place, 4);
    return _mm512_set1_epi32(four);
  }
  [[gnu::always_inline]] static Sums add(Sums sum, Sums number, Sums weight) {
    return _mm512_dpbusd_epi32(sum, number, weight);
  }
  [[gnu::always_inline]] static void store(int32_t *place, Sums sum) {
    _mm512_store_si512(place, sum);
  }
};

// Rows times the vectors of a block, to sums of 16 columns each. A row's numbers lie at `stride` from
// those of the row before. FETCHES brings what lies `ahead` of the weights, in bytes, to the
// second-level cache meanwhile: what fetches by itself stops at the end of each page, and while a
// block's masses are computed.
template <typename Kind, int ROWS, int VECTORS, bool FETCHES>
void multiply(const typename Kind::Number *rows, size_t stride, const typename Kind::Weight *weights,
              int groups, typename Kind::Sum *sums, ptrdiff_t ahead) {
  constexpr int WIDTH = LANES * Kind::GROUP;
  typename Kind::Sums sum[ROWS * VECTORS];
  each<ROWS * VECTORS>([&](auto at) [[gnu::always_inline]] { sum[at] = Kind::zero(); });
  for (int group = 0; group < groups; ++group) {
    typename Kind::Sums weight[VECTORS];
    each<VECTORS>([&](auto at) [[gnu::always_inline]] {
      weight[at] = Kind::weight(weights + at * WIDTH);
      if constexpr (FETCHES && at * WIDTH * sizeof(*weights) % LINE == 0)
        _mm_prefetch(reinterpret_cast<const char *>(weights + at * WIDTH) + ahead, _MM_HINT_T1);
    });
    each<ROWS>([&](auto row) [[gnu::always_inline]] {
      typename Kind::Sums number = Kind::number(rows + row * stride);
      each<VECTORS>([&](auto at) [[gnu::always_inline]] {
        constexpr int own = row * VECTORS + at;
        sum[own] = Kind::add(sum[own], number, weight[at]);
      });
    });
    weights += VECTORS * WIDTH;
    rows += Kind::GROUP;
  }
  each<ROWS * VECTORS>([&](auto at) [[gnu::always_inline]] {
    Kind::store(sums + at * LANES, sum[at]);
  });
}

template <typename Kind>
using Product = void (*)(const typename Kind::Number *, size_t, const typename Kind::Weight *, int,
                         typename Kind::Sum *, ptrdiff_t);

// `multiply` for every number of rows up to the size of what is returned.
template <typename Kind, int VECTORS, bool FETCHES, size_t... ROWS>
constexpr std::array<Product<Kind>, sizeof...(ROWS)> products(std::index_sequence<ROWS...>) {
  return {{multiply<Kind, ROWS + 1, VECTORS, FETCHES>...}};
}

// Rows times a block, by as many rows at once as registers hold; the first of them fetch what lies
// ahead, unless that is 0.
template <typename Kind, int VECTORS>
void multiply_rows(const typename Kind::Number *rows, size_t stride, int num_rows,
                   const typename Kind::Weight *weights, int groups, typename Kind::Sum *sums,
                   ptrdiff_t ahead = 0) {
  constexpr int MOST = SUMS / VECTORS;
  constexpr auto UP_TO_MOST = std::make_index_sequence<MOST>();
  static constexpr auto few = products<Kind, VECTORS, false>(UP_TO_MOST);
  static constexpr auto fetching = products<Kind, VECTORS, true>(UP_TO_MOST);
  for (int first = 0; first < num_rows; first += MOST) {
    int count = std::min(MOST, num_rows - first);
    const auto &product = first == 0 && ahead != 0 ? fetching : few;
    product[count - 1](rows + first * stride, stride, weights, groups,
                       sums + first * VECTORS * LANES, ahead);
  }
}

// How AMX's registers are laid out: 0 to 3 sums, 4 rows, 5 to 7 weights; all of 16 rows of 64 bytes.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Lays a thread's registers out while it lives.
class Tiles {
 public:
  explicit Tiles(bool may_use) : may_use_(may_use) {
    static const TileShapes shapes;
    if (may_use_) _tile_loadconfig(&shapes);
  }
  ~Tiles() {
    if (may_use_) _tile_release();
  }

 private:
  bool may_use_;
};

// 16 rows times a block by AMX. Rows are filled up with zeros to whole registers; what the last
// register of weights reads beyond its block is multiplied with those.
template <int BLOCK_VECTORS>
void multiply_tile(const uint8_t *rows, size_t stride, const int8_t *weights, int groups,
                   int32_t *sums) {
  constexpr int GROUP_BYTES = BLOCK_VECTORS * 64;
  int tiles = (groups * 4 + TILE_BYTES - 1) / TILE_BYTES;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int tile = 0; tile < tiles; ++tile) {
    const int8_t *own = weights + (size_t)tile * TILE * GROUP_BYTES;
    _tile_loadd(4, rows + tile * TILE_BYTES, stride);
    _tile_loadd(5, own, GROUP_BYTES);
    _tile_dpbusd(0, 4, 5);
    _tile_loadd(6, own + 64, GROUP_BYTES);
    _tile_dpbusd(1, 4, 6);
    _tile_loadd(7, own + 128, GROUP_BYTES);
    _tile_dpbusd(2, 4, 7);
    if constexpr (BLOCK_VECTORS > 3) {
      _tile_loadd(5, own + 192, GROUP_BYTES);
      _tile_dpbusd(3, 4, 5);
    }
  }
  _tile_stored(0, sums, GROUP_BYTES);
  _tile_stored(1, sums + LANES, GROUP_BYTES);
  _tile_stored(2, sums + 2 * LANES, GROUP_BYTES);
  if constexpr (BLOCK_VECTORS > 3) _tile_stored(3, sums + 3 * LANES, GROUP_BYTES);
}

// The number of the block that is read at a place in turn, and that of the next one, or of itself;
// from the first block to the last, or the other way.
inline std::pair<int, int> in_turn(int at, int count, bool backwards) {
  int next = std::min(at + 1, count - 1);
  return backwards ? std::pair(count - 1 - at, count - 1 - next) : std::pair(at, next);
}

inline size_t stride_of(int units) { return (units + TILE_BYTES - 1) / TILE_BYTES * TILE_BYTES; }

inline thread_local Room<float> expanded;  // a block of float16 that many rows are multiplied with

// Some columns of a matrix, and rows times them. In 8-bit integers 16 columns after the other are
// told what a level is worth, 128 times the sum of the levels, and the bias; in float32 the bias
// alone. There is one at a time in a thread.
template <typename Kind, int VECTORS>
class BlockOf {
 public:
  const float *told;

  // The block of that number of a matrix with so many groups of numbers, for so many rows in all;
  // and the number of the block that is read after it, or of itself.
  BlockOf(const void *blocks, int number, int groups, size_t num_rows, int next) : groups_(groups) {
    constexpr size_t WIDTH = VECTORS * LANES * Kind::GROUP, TOLD = Kind::TOLD * VECTORS * 64;
    size_t size = TOLD + (groups * WIDTH * sizeof(typename Kind::Weight) + LINE - 1) / LINE * LINE;
    auto block = static_cast<const uint8_t *>(blocks) + number * size;
    ahead_ = (next - number) * static_cast<ptrdiff_t>(size);
    told = reinterpret_cast<const float *>(block);
    weights_ = reinterpret_cast<const typename Kind::Weight *>(block + TOLD);
    if constexpr (std::is_same_v<Kind, Float16>) {
      if (num_rows <= SUMS / VECTORS) return;
      floats_ = expanded.of(groups * WIDTH);
      for (size_t at = 0; at < groups * WIDTH; at += LANES)
        _mm512_store_ps(floats_ + at, Kind::weight(weights_ + at));
    }
  }

  // Up to 16 rows times it.
  void multiply(const typename Kind::Number *rows, size_t stride, int num_rows,
                typename Kind::Sum *sums, bool may_use_tiles = false) const {
    if constexpr (std::is_same_v<Kind, Integers>) {
      if (num_rows >= MANY && may_use_tiles) {
        multiply_tile<VECTORS>(rows, stride, weights_, groups_, sums);
        return;
      }
    }
    if constexpr (std::is_same_v<Kind, Float16>) {
      if (floats_ != nullptr) {
        multiply_rows<Float32, VECTORS>(rows, stride, num_rows, floats_, groups_, sums);
        return;
      }
    }
    multiply_rows<Kind, VECTORS>(rows, stride, num_rows, weights_, groups_, sums, ahead_);
  }

 private:
  int groups_;
  const typename Kind::Weight *weights_;
  float *floats_ = nullptr;
  ptrdiff_t ahead_;
};

// The states of a GRU that follow, of what inputs and states add to r, z and n.
[[gnu::always_inline]] inline Floats gru_step(const Floats (&from_input)[3],
                                              const Floats (&from_state)[3], Floats state) {
  Floats reset = sigmoid(_mm512_add_ps(from_input[0], from_state[0]));
  Floats update = sigmoid(_mm512_add_ps(from_input[1], from_state[1]));
  Floats candidate = tanh(_mm512_fmadd_ps(reset, from_state[2], from_input[2]));
  return _mm512_fmadd_ps(update, _mm512_sub_ps(state, candidate), candidate);
}

}  // namespace
