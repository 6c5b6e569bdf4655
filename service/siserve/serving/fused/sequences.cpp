// GRUs over whole sequences on a CPU with AVX-512, in float32: what encodes utterances and dialogs.

#include <vector>

#include "team.hpp"

using siserve::Running;
using siserve::share;
using siserve::Team;

// A GRU of one direction or of two, forwards and then backwards. Its units are filled up to a multiple
// of 16. Matrices lie in blocks of 16 units of r, z and n, which are told their biases, those of one
// direction behind those of the other.
struct Gru {
  int32_t inputs, units, model_units, directions, kind;
  const void *of_inputs, *of_states;
};

// Rows of inputs, `count` in all, one row's behind those of the row before. An input is one of those
// known; `places` are their numbers, or none, where they are in order. `last` takes the state after a
// row's inputs, and behind it that of the other direction, before them, of each row at `stride` from
// the row before.
struct Sequences {
  int64_t rows, count, num_known, stride;
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

  Encoding(const Gru &gru, const Sequences &sequences)
      : g_(gru), s_(sequences), tiles_(gru.units / LANES), blocks_(gru.directions * tiles_) {}

  // Says whether the sequences are such.
  bool run() {
    if (!gather()) return false;
    Running running(false);
    gates_ = sequence_rooms.gates.of(count_ * blocks_ * GATE_VECTORS * LANES);
    share(running.team, blocks_, false,
          [&](int number, int next) { multiply_inputs(number, next); });
    size_t size = s_.rows * blocks_ * LANES;
    states_ = sequence_rooms.states.of(size), numbers_ = sequence_rooms.numbers.of(size);
    std::fill_n(states_, size, 0.0f);
    // A team takes both directions at once, each member's part in its cache; a thread alone takes
    // one after the other, or the weights of either would drive out the other's at each step.
    int ways = running.team == nullptr ? 1 : g_.directions;
    for (int way = 0; way < g_.directions; way += ways)
      for (int64_t step = 0; step < steps_; ++step) take_step(running.team, step, way, ways);
    for (int64_t row = 0; row < s_.rows; ++row)
      for (int way = 0; way < g_.directions; ++way)
        std::copy_n(states_ + (row * g_.directions + way) * g_.units, g_.model_units,
                    s_.last + row * s_.stride + way * g_.model_units);
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

  // What each input adds to the gates of a block's units.
  void multiply_inputs(int number, int next) {
    alignas(64) float sums[TILE * GATE_VECTORS * LANES];
    Block block(g_.of_inputs, number, g_.inputs, count_, next);
    for (int64_t first = 0; first < count_; first += TILE) {
      int count = std::min<int64_t>(TILE, count_ - first);
      block.multiply(inputs_ + first * g_.inputs, g_.inputs, count, sums);
      for (int each = 0; each < count; ++each) {
        Floats values[3];
        add_biases(block, sums + each * GATE_VECTORS * LANES, values);
        float *gates = gates_of(first + each, number);
        for (int gate = 0; gate < 3; ++gate) _mm512_store_ps(gates + gate * LANES, values[gate]);
      }
    }
  }

  // What inputs add to the gates, (inputs, blocks, 3, 16).
  float *gates_of(int64_t input, int number) const {
    return gates_ + (input * blocks_ + number) * GATE_VECTORS * LANES;
  }

  static void add_biases(const Block &block, const float *sums, Floats (&values)[3]) {
    for (int gate = 0; gate < 3; ++gate)
      values[gate] = _mm512_add_ps(_mm512_load_ps(sums + gate * LANES),
                                   _mm512_load_ps(block.told + gate * LANES));
  }

  // The step of the rows that have it, in some directions.
  void take_step(Team *team, int64_t step, int first_way, int ways) {
    active_.clear();
    for (int64_t row = 0; row < s_.rows; ++row)
      if (step < s_.lengths[row]) active_.push_back(row);
    for (size_t at = 0; at < active_.size(); ++at)
      for (int way = first_way; way < first_way + ways; ++way)
        std::copy_n(states_ + (active_[at] * g_.directions + way) * g_.units, g_.units,
                    numbers_ + (way * s_.rows + at) * g_.units);
    // Every other step takes the units from the last one on: their weights are still in the cache.
    int first = first_way * tiles_;
    share(team, ways * tiles_, step % 2,
          [&](int number, int next) { take_block(step, first + number, first + next); });
  }

  void take_block(int64_t step, int number, int next) {
    alignas(64) float sums[TILE * GATE_VECTORS * LANES];
    bool has_states = step > 0;  // before it they are zeros, and so are sums
    if (!has_states) std::fill_n(sums, TILE * GATE_VECTORS * LANES, 0.0f);
    int way = number / tiles_;
    const float *numbers = numbers_ + way * s_.rows * g_.units;
    Block block(g_.of_states, number, g_.units, has_states ? active_.size() : 0, next);
    for (size_t first = 0; first < active_.size(); first += TILE) {
      int count = std::min<size_t>(TILE, active_.size() - first);
      if (has_states) block.multiply(numbers + first * g_.units, g_.units, count, sums);
      for (int each = 0; each < count; ++each)
        advance(step, active_[first + each], way, number, block,
                sums + each * GATE_VECTORS * LANES);
    }
  }

  void advance(int64_t step, int64_t row, int way, int number, const Block &block,
               const float *sums) {
    int64_t place = way == 0 ? step : s_.lengths[row] - 1 - step;
    const float *gates = gates_of(first_of_[row] + place, number);
    Floats from_input[3], from_state[3];
    for (int gate = 0; gate < 3; ++gate) from_input[gate] = _mm512_load_ps(gates + gate * LANES);
    add_biases(block, sums, from_state);
    float *state = states_ + row * blocks_ * LANES + number * LANES;
    _mm512_store_ps(state, gru_step(from_input, from_state, _mm512_load_ps(state)));
  }

  const Gru &g_;
  const Sequences &s_;
  const int tiles_, blocks_;  // of 16 units: of a direction, and of all
  int64_t count_ = 0, steps_ = 0;
  std::vector<int64_t> first_of_, active_;
  float *inputs_ = nullptr, *gates_ = nullptr, *states_ = nullptr, *numbers_ = nullptr;
};

}  // namespace

// Run a GRU over sequences; 1 if they are none. Several threads may run it at once.
EXPORTED int siserve_encode(const Gru *gru, const Sequences *sequences) {
  bool is_done = gru->kind == FLOAT16 ? Encoding<Float16>(*gru, *sequences).run()
                                      : Encoding<Float32>(*gru, *sequences).run();
  return !is_done;
}
