// GRUs over whole sequences on a CPU with AVX-512, in float32: what encodes utterances and dialogs.

#include <vector>

#include "products.hpp"

// A GRU. Its units are filled up to a multiple of 16. Matrices lie in blocks of 16 units of r, z and
// n, which are told their biases.
struct Gru {
  int32_t inputs, units, model_units, kind;
  const void *of_inputs, *of_states;
};

// Rows of inputs, `count` in all, one row's behind those of the row before. An input is one of those
// known; `places` are their numbers, or none, where they are in order. `last` takes the state after a
// row's inputs, or, backwards, before them, of each row at `stride` from the row before.
struct Sequences {
  int64_t rows, count, num_known, stride, is_backwards;
  const float *known;
  const int64_t *places, *lengths;
  float *last;
};

namespace {

struct SequenceRooms {
  Room<float> inputs, gates, states, numbers;
};

thread_local SequenceRooms sequence_rooms;

template <typename Kind>
class Encoding {
 public:
  using Block = BlockOf<Kind, GATE_VECTORS>;

  Encoding(const Gru &gru, const Sequences &sequences) : g_(gru), s_(sequences) {}

  // Says whether the sequences are such.
  bool run() {
    if (!gather()) return false;
    multiply_inputs();
    states_ = sequence_rooms.states.of(s_.rows * g_.units);
    std::fill_n(states_, s_.rows * g_.units, 0.0f);
    for (int64_t step = 0; step < steps_; ++step) take_step(step);
    for (int64_t row = 0; row < s_.rows; ++row)
      std::copy_n(states_ + row * g_.units, g_.model_units, s_.last + row * s_.stride);
    return true;
  }

 private:
  // Bring the inputs together.
  bool gather() {
    for (int64_t row = 0; row < s_.rows; ++row) {
      if (s_.lengths[row] < 1) return false;
      first_of_.push_back(count_);
      count_ += s_.lengths[row];
      steps_ = std::max(steps_, s_.lengths[row]);
    }
    if (count_ != s_.count) return false;
    inputs_ = sequence_rooms.inputs.of(count_ * g_.inputs);
    for (int64_t at = 0; at < count_; ++at) {
      int64_t place = s_.places ? s_.places[at] : at;
      if (place < 0 || place >= s_.num_known) return false;
      std::copy_n(s_.known + place * g_.inputs, g_.inputs, inputs_ + at * g_.inputs);
    }
    return true;
  }

  // What each input adds to the gates, (inputs, 3, units).
  void multiply_inputs() {
    gates_ = sequence_rooms.gates.of(count_ * 3 * g_.units);
    alignas(64) float sums[TILE * GATE_VECTORS * LANES];
    int tiles = g_.units / LANES;
    for (int tile = 0; tile < tiles; ++tile) {
      Block block(g_.of_inputs, tile, g_.inputs, count_, std::min(tile + 1, tiles - 1));
      for (int64_t first = 0; first < count_; first += TILE) {
        int count = std::min<int64_t>(TILE, count_ - first);
        block.multiply(inputs_ + first * g_.inputs, g_.inputs, count, sums);
        for (int each = 0; each < count; ++each) {
          Floats values[3];
          add_biases(block, sums + each * GATE_VECTORS * LANES, values);
          for (int gate = 0; gate < 3; ++gate)
            _mm512_store_ps(gates_ + ((first + each) * 3 + gate) * g_.units + tile * LANES,
                            values[gate]);
        }
      }
    }
  }

  static void add_biases(const Block &block, const float *sums, Floats (&values)[3]) {
    for (int gate = 0; gate < 3; ++gate)
      values[gate] = _mm512_add_ps(_mm512_load_ps(sums + gate * LANES),
                                   _mm512_load_ps(block.told + gate * LANES));
  }

  // Every other step takes the units from the last one on: their weights are still in the cache.
  void take_step(int64_t step) {
    active_.clear();
    for (int64_t row = 0; row < s_.rows; ++row)
      if (step < s_.lengths[row]) active_.push_back(row);
    float *numbers = sequence_rooms.numbers.of(s_.rows * g_.units);
    for (size_t at = 0; at < active_.size(); ++at)
      std::copy_n(states_ + (size_t)active_[at] * g_.units, g_.units, numbers + at * g_.units);
    alignas(64) float sums[TILE * GATE_VECTORS * LANES] = {};
    int tiles = g_.units / LANES;
    for (int at = 0; at < tiles; ++at) {
      auto [tile, next] = in_turn(at, tiles, step % 2);
      Block block(g_.of_states, tile, g_.units, step > 0 ? active_.size() : 0, next);
      for (size_t first = 0; first < active_.size(); first += TILE) {
        int count = std::min<size_t>(TILE, active_.size() - first);
        if (step > 0)  // before it states are zeros, and so are sums
          block.multiply(numbers + first * g_.units, g_.units, count, sums);
        for (int each = 0; each < count; ++each)
          advance(step, active_[first + each], tile, block, sums + each * GATE_VECTORS * LANES);
      }
    }
  }

  void advance(int64_t step, int row, int tile, const Block &block, const float *sums) {
    int64_t place = s_.is_backwards ? s_.lengths[row] - 1 - step : step;
    const float *gates = gates_ + (first_of_[row] + place) * 3 * g_.units + tile * LANES;
    Floats from_input[3], from_state[3];
    for (int gate = 0; gate < 3; ++gate) from_input[gate] = _mm512_load_ps(gates + gate * g_.units);
    add_biases(block, sums, from_state);
    float *state = states_ + (size_t)row * g_.units + tile * LANES;
    _mm512_store_ps(state, gru_step(from_input, from_state, _mm512_load_ps(state)));
  }

  const Gru &g_;
  const Sequences &s_;
  int64_t count_ = 0, steps_ = 0;
  std::vector<int64_t> first_of_;
  std::vector<int> active_;
  float *inputs_ = nullptr, *gates_ = nullptr, *states_ = nullptr;
};

}  // namespace

// Run a GRU over sequences; 1 if they are none. Several threads may run it at once.
EXPORTED int siserve_encode(const Gru *gru, const Sequences *sequences) {
  bool is_done = gru->kind == FLOAT16 ? Encoding<Float16>(*gru, *sequences).run()
                                      : Encoding<Float32>(*gru, *sequences).run();
  return !is_done;
}
