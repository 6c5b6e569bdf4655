// Steps of a decoder on a CPU with AVX-512 and VNNI, and with AMX where there is one.
//
// A step is a GRU's, the output layer with the masses of its words, and the choice of a word. Rows
// are responses. No logit is kept, but those of rows that choose among few words: of a block of 64
// words a row keeps its masses, and the logits of the one block that it chooses are computed again.

#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "decoder.hpp"
#include "team.hpp"

using siserve::Running;
using siserve::share;
using siserve::Team;

namespace {

constexpr int OUTPUT_VECTORS = 4;                     // of a block of words
constexpr int BLOCK = LANES * OUTPUT_VECTORS;         // words whose masses are added up
constexpr int FIRST_VECTORS = 2;                      // of a block of the first state's units
constexpr int FIRST_BLOCK = LANES * FIRST_VECTORS;    // units of it
constexpr int FIRST_ROWS = SUMS / FIRST_VECTORS;      // whose first states are made at once
constexpr int QUAD = 4;                               // rows whose masses lie together
constexpr float LOWEST = -1e30f;                      // logit of a word that may not be said
constexpr float BELOW_ONE = 1.0f - 1.0f / (1 << 20);  // keeps u * total below the total
constexpr float LEAST_TEMPERATURE = 1e-5f;
constexpr float LEVELS = 127.0f;                      // of an activation, to either side of 0
constexpr int ZERO_POINT = 128;

inline float stretch_of(float temperature) {
  return temperature <= 0.0f ? 1.0f : 1.0f / std::max(temperature, LEAST_TEMPERATURE);
}

// What a row asks for and has come to.
struct Row {
  int64_t token;
  float stretch, scale, top_p, open_largest;
  int64_t top_k;
  bool is_greedy, is_narrow;
  float *state;
  float *logits;  // all of them, of a narrow row
};

// Masses of the blocks of words of four rows: the largest logit and the sum of exp below it, of all
// words, and of those that may be said, these at the row's temperature.
struct Masses {
  float *largest, *sum, *open_largest, *open_sum;
};

// What the logits of four rows are multiplied by, row after row, and that four times.
struct alignas(64) Stretches {
  float by[LANES];
  bool all_one, any_drawn;  // 1 but for powers of two instead of e; whether any row is not greedy
};

struct Rooms {
  Room<float> states, first, conditions, masses, logits, few, prefixes;
  Room<uint8_t> numbers;
  Room<Stretches> stretches;
  std::vector<Row> rows;
  std::vector<int> active;
};

thread_local Rooms rooms;

template <typename Kind>
class Run {
 public:
  using Number = typename Kind::Number;
  using Sum = typename Kind::Sum;
  template <int VECTORS>
  using Block = BlockOf<Kind, VECTORS>;

  Run(const Decoder &decoder, const Chunk &chunk, Team *team)
      : d_(decoder), chunk_(chunk), team_(team) {
    groups_ = d_.units / Kind::GROUP;
    stride_ = stride_of(d_.units);
    blocks_ = d_.words / BLOCK;
    padded_blocks_ = (blocks_ + QUAD - 1) / QUAD * QUAD;
    size_t padded_rows = (chunk.rows + TILE - 1) / TILE * TILE;
    // Beyond a row's units lie zeros, which nothing ever writes to.
    numbers_ = reinterpret_cast<Number *>(rooms.numbers.of(padded_rows * stride_ * sizeof(Number)));
    std::memset(static_cast<void *>(numbers_), 0, padded_rows * stride_ * sizeof(Number));
    size_t num_quads = padded_rows / QUAD;
    masses_ = rooms.masses.of(num_quads * 4 * QUAD * padded_blocks_);
    for (size_t first = 0; first < padded_rows; first += QUAD) {  // those of no block stay so
      Masses masses = masses_of(first);
      for (int at = QUAD * blocks_; at < QUAD * padded_blocks_; ++at) {
        masses.largest[at] = masses.open_largest[at] = LOWEST;
        masses.sum[at] = masses.open_sum[at] = 0.0f;
      }
    }
    stretches_ = rooms.stretches.of(num_quads);
  }

  void run() {
    begin();
    for (int step = 0; step < chunk_.steps; ++step) {
      select(step);
      if (active_->empty()) continue;
      gru();
      take_numbers();
      output(step % 2);
      int quads = (active_->size() + QUAD - 1) / QUAD;
      share(team_, quads, false, [&](int quad, int) { choose(step, quad * QUAD); });
    }
    for (int at = 0; at < chunk_.rows; ++at)
      std::memcpy(chunk_.state_out + (size_t)at * d_.model_units, rows_[at].state,
                  d_.model_units * sizeof(float));
  }

 private:
  // Fetch what rows bring with them.
  void begin() {
    rooms.rows.resize(chunk_.rows);
    rows_ = rooms.rows.data();
    active_ = &rooms.active;
    float *states = rooms.states.of((size_t)chunk_.rows * d_.units);
    size_t num_narrow = 0;
    for (int at = 0; at < chunk_.rows; ++at) {
      float temperature = chunk_.temperature[at];
      Row &own = rows_[at];
      own.token = chunk_.token[at];
      own.stretch = stretch_of(temperature);
      own.top_k = chunk_.top_k[at], own.top_p = chunk_.top_p[at];
      own.is_greedy = temperature <= 0.0f;
      own.is_narrow = !own.is_greedy && (own.top_k > 0 || own.top_p < 1.0f);
      own.scale = 0.0f;
      own.state = states + (size_t)at * d_.units;
      std::memset(own.state, 0, d_.units * sizeof(float));
      std::memcpy(own.state, chunk_.state + (size_t)at * d_.model_units,
                  d_.model_units * sizeof(float));
      num_narrow += own.is_narrow;
    }
    float *logits = rooms.logits.of(num_narrow * d_.words);
    for (int at = 0; at < chunk_.rows; ++at)
      if (rows_[at].is_narrow) rows_[at].logits = logits, logits += d_.words;
    has_begun_ = false;
  }

  // Find the rows that have not ended, let those that start start, and bring their numbers together.
  void select(int step) {
    size_t before = active_->size();
    bool any_starts = false;
    active_->clear();
    for (int at = 0; at < chunk_.rows; ++at) {
      size_t place = (size_t)step * chunk_.rows + at;
      if (rows_[at].token == d_.end) {
        chunk_.tokens[place] = d_.end, chunk_.log_probs[place] = 0.0f;
        continue;
      }
      active_->push_back(at);
      any_starts |= rows_[at].token == d_.start;
    }
    if (any_starts) start();
    if (!has_begun_ || active_->size() != before) take_stretches();
    if (any_starts || !has_begun_ || active_->size() != before) take_numbers();
    has_begun_ = true;
  }

  // The first states of rows that start: [c z] times a matrix.
  void start() {
    int condition = d_.context + d_.latent;
    float *conditions = rooms.conditions.of((size_t)FIRST_ROWS * condition);
    std::vector<int> starting;
    for (int at : *active_)
      if (rows_[at].token == d_.start) starting.push_back(at);
    for (size_t first = 0; first < starting.size(); first += FIRST_ROWS) {
      int count = std::min<size_t>(FIRST_ROWS, starting.size() - first);
      for (int each = 0; each < count; ++each) {
        size_t row = starting[first + each];
        float *own = conditions + (size_t)each * condition;
        std::memcpy(own, chunk_.c + row * d_.context, d_.context * sizeof(float));
        std::memcpy(own + d_.context, chunk_.z + row * d_.latent, d_.latent * sizeof(float));
      }
      share(team_, (d_.units + FIRST_BLOCK - 1) / FIRST_BLOCK, false, [&](int number, int) {
        alignas(64) float sums[FIRST_ROWS * FIRST_BLOCK];
        const float *block = d_.first + (size_t)number * FIRST_BLOCK * condition;
        multiply_rows<Float32, FIRST_VECTORS>(conditions, condition, count, block, condition, sums,
                                              FIRST_BLOCK * condition * sizeof(float));
        int unit = number * FIRST_BLOCK, units = std::min(FIRST_BLOCK, d_.units - unit);
        for (int each = 0; each < count; ++each)
          for (int at = 0; at < units; ++at)
            rows_[starting[first + each]].state[unit + at] =
                sums[each * FIRST_BLOCK + at] + d_.first_bias[unit + at];
      });
    }
  }

  void take_stretches() {
    for (size_t first = 0; first < active_->size(); first += QUAD) {
      Stretches &own = stretches_[first / QUAD];
      own.all_one = true, own.any_drawn = false;
      for (int at = 0; at < LANES; ++at) {
        size_t place = std::min(first + at % QUAD, active_->size() - 1);
        const Row &row = rows_[(*active_)[place]];
        own.by[at] = LOG2_E * row.stretch;
        own.all_one &= row.stretch == 1.0f;
        own.any_drawn |= !row.is_greedy;
      }
    }
  }

  // Bring the states of active rows together, one behind the other, as products read them.
  void take_numbers() {
    for (size_t at = 0; at < active_->size(); ++at) {
      Row &row = rows_[(*active_)[at]];
      take(row, numbers_ + at * stride_);
    }
  }

  void take(Row &row, float *numbers) {
    std::memcpy(numbers, row.state, d_.units * sizeof(float));
  }

  // In 8-bit integers, by a scale of the row's own; 1/127 where all lie in [-1, 1].
  void take(Row &row, uint8_t *numbers) {
    Floats largest = _mm512_set1_ps(1.0f);
    for (int unit = 0; unit < d_.units; unit += LANES)
      largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_load_ps(row.state + unit)));
    row.scale = _mm512_reduce_max_ps(largest) * (1.0f / LEVELS);
    Floats scale = _mm512_set1_ps(row.scale);
    for (int unit = 0; unit < d_.units; unit += LANES) {
      Floats levels = _mm512_div_ps(_mm512_load_ps(row.state + unit), scale);
      __m512i shifted = _mm512_add_epi32(_mm512_cvtps_epi32(levels), _mm512_set1_epi32(ZERO_POINT));
      _mm_store_si128((__m128i *)(numbers + unit), _mm512_cvtusepi32_epi8(shifted));
    }
  }

  // A vector of a row's sums as what the layer comes to, biases included.
  template <int VECTORS>
  static Floats value_of(const Block<VECTORS> &block, const Row &row, const Sum *sums, int at) {
    auto told = [&](int which) { return block.told + (which * VECTORS + at) * LANES; };
    if constexpr (sizeof(Number) == 1) {
      __m512i whole = _mm512_sub_epi32(_mm512_load_si512(sums + at * LANES),
                                       _mm512_load_si512(told(1)));
      Floats value = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_load_ps(told(0)));
      return _mm512_fmadd_ps(value, _mm512_set1_ps(row.scale), _mm512_load_ps(told(2)));
    } else {
      return _mm512_add_ps(_mm512_load_ps(sums + at * LANES), _mm512_load_ps(told(0)));
    }
  }

  template <int VECTORS>
  void multiply(size_t first, int count, const Block<VECTORS> &block, Sum *sums) const {
    block.multiply(numbers_ + first * stride_, stride_, count, sums, d_.may_use_tiles);
  }

  void gru() {
    share(team_, d_.units / LANES, false, [&](int tile, int next) {
      alignas(64) Sum sums[TILE * GATE_VECTORS * LANES];
      Block<GATE_VECTORS> block(d_.gates, tile, groups_, active_->size(), next);
      int ahead = (next - tile) * LANES;  // what the next tile reads of a row, from afar
      for (size_t first = 0; first < active_->size(); first += TILE) {
        int count = std::min<size_t>(TILE, active_->size() - first);
        multiply(first, count, block, sums);
        for (int each = 0; each < count; ++each) {
          Row &row = rows_[(*active_)[first + each]];
          const Sum *own = sums + each * GATE_VECTORS * LANES;
          const float *word = d_.of_words + row.token * 3 * d_.units + tile * LANES;
          float *state = row.state + tile * LANES;
          Floats from_word[3], from_state[3];
          for (int gate = 0; gate < 3; ++gate) {
            from_word[gate] = _mm512_load_ps(word + gate * d_.units);
            from_state[gate] = value_of(block, row, own, gate);
            _mm_prefetch((const char *)(word + gate * d_.units + ahead), _MM_HINT_T0);
          }
          _mm_prefetch((const char *)(state + ahead), _MM_HINT_T0);
          _mm512_store_ps(state, gru_step(from_word, from_state, _mm512_load_ps(state)));
        }
      }
    });
  }

  // The masses of all blocks of words. Every other step takes the blocks from the last one on: those
  // that the step before had last are still in the cache.
  void output(bool backwards) {
    share(team_, blocks_, backwards, [&](int number, int next) {
      alignas(64) Sum sums[TILE * BLOCK];
      Block<OUTPUT_VECTORS> block(d_.output, number, groups_, active_->size(), next);
      for (size_t first = 0; first < active_->size(); first += TILE) {
        int count = std::min<size_t>(TILE, active_->size() - first);
        multiply(first, count, block, sums);
        for (int quad = 0; quad < count; quad += QUAD)
          weigh_some(std::min(QUAD, count - quad), first + quad, number, block,
                     sums + quad * BLOCK);
      }
    });
  }

  // Bar the words that a row may not say.
  void bar(const Row &row, int block, Floats *logits) const {
    for (int at = 0; at < 4; ++at)
      logits[at] = _mm512_add_ps(logits[at],
                                 _mm512_load_ps(d_.barred + block * BLOCK + at * LANES));
    if (row.token == d_.start && block == d_.end / BLOCK) {
      int at = d_.end % BLOCK / LANES;
      logits[at] = _mm512_mask_mov_ps(logits[at], 1 << d_.end % LANES, _mm512_set1_ps(LOWEST));
    }
  }

  // Where the masses of four rows that lie beside each other are: (blocks, 4) each.
  Masses masses_of(size_t first) const {
    size_t size = (size_t)QUAD * padded_blocks_;
    float *own = masses_ + first / QUAD * 4 * size;
    return {own, own + size, own + 2 * size, own + 3 * size};
  }

  // Keep the masses of a block of words for up to four rows.
  void weigh_some(int count, size_t first, int number, const Block<OUTPUT_VECTORS> &block,
                  const Sum *sums) {
    if (count == 4) weigh<4>(first, number, block, sums);
    if (count == 3) weigh<3>(first, number, block, sums);
    if (count == 2) weigh<2>(first, number, block, sums);
    if (count == 1) weigh<1>(first, number, block, sums);
  }

  // In a block without any word that may be said every term of the open sum is 1; such a mass comes
  // to 0 beside others.
  template <int ROWS>
  void weigh(size_t first, int number, const Block<OUTPUT_VECTORS> &block, const Sum *sums) {
    const int *slots = active_->data() + first;
    Masses masses = masses_of(first);
    Floats logits[ROWS * 4];
    each<ROWS>([&](auto row) [[gnu::always_inline]] {
      each<4>([&](auto at) [[gnu::always_inline]] {
        logits[row * 4 + at] = value_of(block, rows_[slots[row]], sums + row * BLOCK, at);
      });
    });
    bool is_barred = d_.is_barred[number];
    for (int row = 0; row < ROWS; ++row) {
      const Row &own = rows_[slots[row]];
      is_barred |= own.token == d_.start && number == d_.end / BLOCK;
      if (own.is_narrow)
        for (int at = 0; at < 4; ++at)
          _mm512_store_ps(own.logits + number * BLOCK + at * LANES, logits[row * 4 + at]);
    }
    Floats largest = largest_of<ROWS>(logits);
    Floats sum = sums_below<ROWS>(logits, largest, _mm512_set1_ps(LOG2_E));
    store(masses.largest, number, largest), store(masses.sum, number, sum);
    if (is_barred) {
      for (int row = 0; row < ROWS; ++row) bar(rows_[slots[row]], number, logits + row * 4);
      largest = largest_of<ROWS>(logits);
    }
    const Stretches &stretches = stretches_[first / QUAD];
    if (is_barred || !stretches.all_one)
      sum = sums_below<ROWS>(logits, largest, _mm512_load_ps(stretches.by));
    store(masses.open_largest, number, largest), store(masses.open_sum, number, sum);
  }

  static void store(float *values, int number, Floats quads) {
    _mm_store_ps(values + number * QUAD, _mm512_castps512_ps128(quads));
  }

  // The largest of the four vectors of each row: row after row, and that four times.
  template <int ROWS>
  [[gnu::always_inline]] static Floats largest_of(const Floats (&values)[ROWS * 4]) {
    Floats of_row[QUAD] = {values[0], values[0], values[0], values[0]};
    each<ROWS>([&](auto row) [[gnu::always_inline]] {
      const Floats *own = values + row * 4;
      of_row[row] = _mm512_max_ps(_mm512_max_ps(own[0], own[1]), _mm512_max_ps(own[2], own[3]));
    });
    return across(of_row, [](Floats one, Floats other) [[gnu::always_inline]] {
      return _mm512_max_ps(one, other);
    });
  }

  // The sums of the powers of what lies between values and the largest of them, as `largest_of` gives
  // it; `by` is what logits are multiplied by, row after row.
  template <int ROWS>
  [[gnu::always_inline]] static Floats sums_below(const Floats (&values)[ROWS * 4], Floats largest,
                                                  Floats by) {
    Floats from = _mm512_mul_ps(largest, by), of_row[QUAD] = {from, from, from, from};
    each<ROWS>([&](auto row) [[gnu::always_inline]] {
      Floats own_by = _mm512_permute_ps(by, row * 0x55), own_from = _mm512_permute_ps(from, row * 0x55);
      Floats powers[4];
      each<4>([&](auto at) [[gnu::always_inline]] {
        powers[at] = power_of_two(_mm512_fmsub_ps(values[row * 4 + at], own_by, own_from));
      });
      of_row[row] =
          _mm512_add_ps(_mm512_add_ps(powers[0], powers[1]), _mm512_add_ps(powers[2], powers[3]));
    });
    return across(of_row, [](Floats one, Floats other) [[gnu::always_inline]] {
      return _mm512_add_ps(one, other);
    });
  }

  // Bring what lies in each of four vectors together: row after row, and that four times.
  template <typename Join>
  [[gnu::always_inline]] static Floats across(const Floats (&of_row)[QUAD], const Join &join) {
    Floats one = join(_mm512_unpacklo_ps(of_row[0], of_row[1]),
                      _mm512_unpackhi_ps(of_row[0], of_row[1]));
    Floats other = join(_mm512_unpacklo_ps(of_row[2], of_row[3]),
                        _mm512_unpackhi_ps(of_row[2], of_row[3]));
    __m512d ones = _mm512_castps_pd(one), others = _mm512_castps_pd(other);
    return over_blocks(join(_mm512_castpd_ps(_mm512_unpacklo_pd(ones, others)),
                            _mm512_castpd_ps(_mm512_unpackhi_pd(ones, others))),
                       join);
  }

  // Bring four quads together, to the same quad four times.
  template <typename Join>
  [[gnu::always_inline]] static Floats over_blocks(Floats quads, const Join &join) {
    Floats halves = join(quads, _mm512_shuffle_f32x4(quads, quads, 0x4e));
    return join(halves, _mm512_shuffle_f32x4(halves, halves, 0xb1));
  }

  Floats largest_of_blocks(const float *values) const {
    Floats largest = _mm512_load_ps(values);
    for (int at = LANES; at < QUAD * padded_blocks_; at += LANES)
      largest = _mm512_max_ps(largest, _mm512_load_ps(values + at));
    return over_blocks(largest, [](Floats one, Floats other) [[gnu::always_inline]] {
      return _mm512_max_ps(one, other);
    });
  }

  // Bring the sums of blocks to the scale of the largest one, and add them up.
  Floats scale_sums(float *sums, const float *largest, Floats most, Floats by) const {
    Floats from = _mm512_mul_ps(most, by), total = _mm512_setzero_ps();
    for (int at = 0; at < QUAD * padded_blocks_; at += LANES) {
      Floats power = power_of_two(_mm512_fmsub_ps(_mm512_load_ps(largest + at), by, from));
      Floats sum = _mm512_mul_ps(_mm512_load_ps(sums + at), power);
      _mm512_store_ps(sums + at, sum);
      total = _mm512_add_ps(total, sum);
    }
    return over_blocks(total, [](Floats one, Floats other) [[gnu::always_inline]] {
      return _mm512_add_ps(one, other);
    });
  }

  // Say a word for each of up to four rows: the inverse of the distribution function of one uniform
  // number, first the block, then the word; or the likeliest; or the one that is forced.
  void choose(int step, size_t first) {
    int count = std::min<size_t>(QUAD, active_->size() - first);
    Masses masses = masses_of(first);
    float *prefixes = rooms.prefixes.of((size_t)QUAD * padded_blocks_);
    const Stretches &stretches = stretches_[first / QUAD];
    alignas(64) float most[LANES], totals[LANES], open_most[LANES], targets[LANES] = {};
    alignas(64) int32_t passed[LANES] = {};
    Floats largest = largest_of_blocks(masses.largest);
    _mm512_store_ps(most, largest);
    _mm512_store_ps(totals, scale_sums(masses.sum, masses.largest, largest,
                                       _mm512_set1_ps(LOG2_E)));
    Floats open_largest = largest_of_blocks(masses.open_largest);
    _mm512_store_ps(open_most, open_largest);
    if (stretches.any_drawn) {
      scale_sums(masses.open_sum, masses.open_largest, open_largest,
                 _mm512_load_ps(stretches.by));
      __m128 sum = _mm_setzero_ps();
      for (int at = 0; at < QUAD * padded_blocks_; at += QUAD) {
        sum = _mm_add_ps(sum, _mm_load_ps(masses.open_sum + at));
        _mm_store_ps(prefixes + at, sum);
      }
      alignas(16) float uniforms[QUAD] = {};
      for (int row = 0; row < count; ++row)
        uniforms[row] = std::min(chunk_.uniform[place_of(step, first + row)], BELOW_ONE);
      Floats target = _mm512_broadcast_f32x4(_mm_mul_ps(_mm_load_ps(uniforms), sum));
      _mm512_store_ps(targets, target);
      __m512i blocks = _mm512_setzero_si512(), one = _mm512_set1_epi32(1);
      for (int at = 0; at < QUAD * padded_blocks_; at += LANES) {
        __mmask16 is_passed =
            _mm512_cmp_ps_mask(_mm512_load_ps(prefixes + at), target, _CMP_LE_OQ);
        blocks = _mm512_mask_add_epi32(blocks, is_passed, blocks, one);
      }
      _mm512_store_si512(passed, blocks);
    }
    int numbers[QUAD + 1];  // of the blocks that words are looked for in
    for (int row = 0; row < count; ++row) {
      Row &own = rows_[(*active_)[first + row]];
      own.open_largest = open_most[row];
      int64_t forced = chunk_.forced[place_of(step, first + row)];
      int block = passed[row] + passed[row + 4] + passed[row + 8] + passed[row + 12];
      if (forced >= 0) {
        block = forced / BLOCK;
      } else if (own.is_greedy) {
        for (block = 0; block < blocks_ - 1; ++block)
          if (masses.open_largest[QUAD * block + row] == own.open_largest) break;
      }
      numbers[row] = std::min(block, blocks_ - 1);
    }
    numbers[count] = numbers[count - 1];
    for (int row = 0; row < count; ++row) {
      size_t place = place_of(step, first + row);
      Row &own = rows_[(*active_)[first + row]];
      int64_t word = chunk_.forced[place];
      int block = numbers[row], next = numbers[row + 1];
      float logit = 0.0f;
      if (word >= 0) {
        logit = compute_logit(first + row, word, next);
      } else if (own.is_narrow) {
        word = choose_among_few(own, std::min(chunk_.uniform[place], BELOW_ONE));
        logit = own.logits[word];
      } else {
        float before = block > 0 && !own.is_greedy ? prefixes[QUAD * (block - 1) + row] : 0.0f;
        std::tie(word, logit) = choose_in(first + row, block, targets[row] - before, next);
      }
      own.token = word;
      chunk_.tokens[place] = word;
      chunk_.log_probs[place] = logit - (most[row] + std::log(totals[row]));
      const float *adds = d_.of_words + word * 3 * d_.units;  // the next step reads it, from afar
      for (int gate = 0; gate < 3; ++gate)
        _mm_prefetch((const char *)(adds + gate * d_.units), _MM_HINT_T0);
    }
  }

  size_t place_of(int step, size_t at) const {
    return (size_t)step * chunk_.rows + (*active_)[at];
  }

  // The logits of one block for one row, again; `next` is the block that another row wants then.
  void compute_logits(size_t at, int number, int next, Floats (&logits)[4]) const {
    alignas(64) Sum sums[BLOCK];
    Block<OUTPUT_VECTORS> block(d_.output, number, groups_, 1, next);
    multiply(at, 1, block, sums);
    const Row &row = rows_[(*active_)[at]];
    for (int each = 0; each < 4; ++each) logits[each] = value_of(block, row, sums, each);
  }

  float compute_logit(size_t at, int64_t word, int next) const {
    Floats logits[4];
    compute_logits(at, word / BLOCK, next, logits);
    alignas(64) float own[BLOCK];
    for (int each = 0; each < 4; ++each) _mm512_store_ps(own + each * LANES, logits[each]);
    return own[word % BLOCK];
  }

  // The word of a block up to which masses add up to more than `rest`; or the likeliest one.
  std::pair<int64_t, float> choose_in(size_t at, int block, float rest, int next) {
    const Row &row = rows_[(*active_)[at]];
    Floats logits[4], from = _mm512_set1_ps(row.open_largest);
    Floats by = _mm512_set1_ps(LOG2_E * row.stretch);
    alignas(64) float own[BLOCK], values[BLOCK];
    compute_logits(at, block, next, logits);
    for (int each = 0; each < 4; ++each) _mm512_store_ps(own + each * LANES, logits[each]);
    bar(row, block, logits);
    for (int each = 0; each < 4; ++each) {
      if (!row.is_greedy)
        logits[each] = power_of_two(_mm512_mul_ps(_mm512_sub_ps(logits[each], from), by));
      _mm512_store_ps(values + each * LANES, logits[each]);
    }
    int word = 0;
    if (row.is_greedy) {
      while (word < BLOCK - 1 && values[word] != row.open_largest) ++word;
    } else {
      float sum = 0.0f;
      for (int each = 0; each < BLOCK; ++each) {
        if (!(values[each] > 0.0f)) continue;
        word = each;  // the last one that has any mass, if by rounding none is reached
        if ((sum += values[each]) > rest) break;
      }
    }
    return {(int64_t)block * BLOCK + word, own[word]};
  }

  // Numbers that are ordered as floats are.
  static uint32_t order_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }

  // The word of a narrow row: of its top_k likeliest words the fewest that hold top_p of their mass.
  // Both borders are found bit by bit in the order of the logits; words that are as likely as the last
  // one stay too.
  int64_t choose_among_few(Row &row, float uniform) {
    int words = d_.words;
    float *masses = rooms.few.of(2 * (size_t)words);
    auto *orders = reinterpret_cast<uint32_t *>(masses + words);  // 0 = may not be said
    Floats from = _mm512_set1_ps(row.open_largest), by = _mm512_set1_ps(LOG2_E * row.stretch);
    for (int block = 0; block < blocks_; ++block) {
      Floats logits[4];
      for (int at = 0; at < 4; ++at)
        logits[at] = _mm512_load_ps(row.logits + block * BLOCK + at * LANES);
      bar(row, block, logits);
      for (int at = 0; at < 4; ++at) {
        int word = block * BLOCK + at * LANES;
        __m512i bits = _mm512_castps_si512(logits[at]);
        __m512i flips = _mm512_or_si512(_mm512_srai_epi32(bits, 31),
                                        _mm512_set1_epi32((int)0x80000000u));
        __mmask16 is_open =
            _mm512_cmp_ps_mask(logits[at], _mm512_set1_ps(LOWEST / 2), _CMP_GT_OQ);
        Floats mass = power_of_two(_mm512_mul_ps(_mm512_sub_ps(logits[at], from), by));
        _mm512_store_si512(orders + word, _mm512_maskz_xor_epi32(is_open, bits, flips));
        _mm512_store_ps(masses + word, _mm512_maskz_mov_ps(is_open, mass));
      }
    }
    auto count_from = [&](uint32_t border) {
      int count = 0;
      __m512i least = _mm512_set1_epi32((int)border);
      for (int word = 0; word < words; word += LANES)
        count += __builtin_popcount(
            _mm512_cmp_epu32_mask(_mm512_load_si512(orders + word), least, _MM_CMPINT_NLT));
      return count;
    };
    auto mass_above = [&](uint32_t border) {
      Floats sum = _mm512_setzero_ps();
      __m512i least = _mm512_set1_epi32((int)border);
      for (int word = 0; word < words; word += LANES) {
        __mmask16 above =
            _mm512_cmp_epu32_mask(_mm512_load_si512(orders + word), least, _MM_CMPINT_NLE);
        sum = _mm512_mask_add_ps(sum, above, sum, _mm512_load_ps(masses + word));
      }
      return _mm512_reduce_add_ps(sum);
    };
    uint32_t least = 0;  // order of the last word that stays
    if (row.top_k > 0)
      for (uint32_t bit = 0x80000000u; bit > 0; bit /= 2)
        if (count_from(least | bit) >= row.top_k) least |= bit;
    if (row.top_p < 1.0f) {
      float total = mass_above(least);
      if (least > 0) {
        float of_last = 0.0f;
        for (int word = 0; word < words; ++word)
          if (orders[word] == least) of_last = masses[word];
        total += (float)(row.top_k - count_from(least + 1)) * of_last;
      }
      uint32_t border = 0;  // above it lies top_p of the mass
      for (uint32_t bit = 0x80000000u; bit > 0; bit /= 2)
        if (mass_above(border | bit) >= row.top_p * total) border |= bit;
      uint32_t top = order_of(row.open_largest);  // which stays, whatever top_p
      least = std::max(least, border < top ? border + 1 : top);
    }
    float total = 0.0f, sum = 0.0f;
    for (int word = 0; word < words; ++word)
      if (orders[word] >= least) total += masses[word];
    float target = uniform * total;
    int64_t chosen = 0;
    for (int word = 0; word < words; ++word) {
      if (orders[word] < least || !(masses[word] > 0.0f)) continue;
      chosen = word;
      if ((sum += masses[word]) > target) break;
    }
    return chosen;
  }

  const Decoder &d_;
  const Chunk &chunk_;
  Team *team_;
  int groups_, blocks_, padded_blocks_;
  size_t stride_;
  Number *numbers_;
  float *masses_;
  Stretches *stretches_;
  Row *rows_ = nullptr;
  std::vector<int> *active_ = nullptr;
  bool has_begun_ = false;
};

// The output layer's product of rows of zeros, sixteen at a time, and nothing else.
template <typename Kind>
void only_multiply(const Decoder &decoder, int num_rows) {
  using Number = typename Kind::Number;
  alignas(64) typename Kind::Sum sums[TILE * BLOCK];
  size_t stride = stride_of(decoder.units);
  size_t size = (num_rows + TILE - 1) / TILE * TILE * stride * sizeof(Number);
  auto rows = reinterpret_cast<Number *>(rooms.numbers.of(size));
  std::memset(static_cast<void *>(rows), 0, size);
  int blocks = decoder.words / BLOCK;
  for (int number = 0; number < blocks; ++number) {
    BlockOf<Kind, OUTPUT_VECTORS> block(decoder.output, number, decoder.units / Kind::GROUP,
                                        num_rows, std::min(number + 1, blocks - 1));
    for (int first = 0; first < num_rows; first += TILE)
      block.multiply(rows + first * stride, stride, std::min(TILE, num_rows - first), sums,
                     decoder.may_use_tiles);
  }
}

bool are_words(const Decoder &decoder, const Chunk &chunk) {
  for (int at = 0; at < chunk.rows; ++at) {
    if (chunk.token[at] < 0 || chunk.token[at] >= decoder.vocabulary) return false;
    for (int step = 0; step < chunk.steps; ++step)
      if (chunk.forced[(size_t)step * chunk.rows + at] >= decoder.vocabulary) return false;
  }
  return true;
}

}  // namespace

// Ask the kernel for AMX's registers, for all threads; 1 if they may be used.
EXPORTED int siserve_ask_for_tiles() {
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

// The digest of the sources that this was made of, which the compiler is told.
EXPORTED const char *siserve_source() { return SOURCE; }

EXPORTED int siserve_run(const Decoder *decoder, const Chunk *chunk) {
  if (!are_words(*decoder, *chunk)) return 1;
  Tiles tiles(decoder->may_use_tiles);
  Running running(decoder->may_use_tiles);
  if (decoder->kind == INTEGERS) Run<Integers>(*decoder, *chunk, running.team).run();
  if (decoder->kind == FLOAT16) Run<Float16>(*decoder, *chunk, running.team).run();
  if (decoder->kind == FLOAT32) Run<Float32>(*decoder, *chunk, running.team).run();
  return 0;
}

// Do the output layer's product for so many rows, to measure the rate.
EXPORTED void siserve_multiply(const Decoder *decoder, int num_rows) {
  Tiles tiles(decoder->may_use_tiles);
  if (decoder->kind == INTEGERS) only_multiply<Integers>(*decoder, num_rows);
  if (decoder->kind == FLOAT16) only_multiply<Float16>(*decoder, num_rows);
  if (decoder->kind == FLOAT32) only_multiply<Float32>(*decoder, num_rows);
}
