// Rows in flight of one worker, in the arrays of siserve/serving/rows.py: the next steps of all, and
// what becomes of the rows that end with them.

#include <vector>

#include "decoder.hpp"

// A row is a record of so many bytes, in which its fields lie at those places: 64-bit integers but for
// shares, uniform numbers and log-probabilities, which are float32. Tokens, uniform numbers and
// log-probabilities are those of all steps of a row. Rows that end are told of one behind the other.
struct Table {
  int64_t rows, bytes, steps;
  int64_t owner, index, limit, step, token, top_k, temperature, top_p;
  int64_t uniform, log_probs, tokens;
  uint8_t *records;
  const float *c, *z;  // (rows, ...)
  int64_t *owners, *indices, *lengths, *has_ended;
  double *sums;    // of log-probabilities
  int64_t *words;  // of all of them, `lengths` of each
  float *state;    // (rows, model_units)
};

namespace {

struct Given {
  std::vector<int64_t> token, top_k, forced, tokens;
  std::vector<float> temperature, top_p, uniform, log_probs;
};

thread_local Given given;

class Steps {
 public:
  Steps(const Decoder &decoder, const Table &table) : d_(decoder), t_(table) {}

  // How many rows ended; -1, and nothing is changed, if a token is none of the vocabulary.
  int64_t take() {
    gather();
    Chunk chunk{(int32_t)t_.steps, (int32_t)t_.rows, t_.c, t_.z, t_.state, given.token.data(),
                given.uniform.data(), given.forced.data(), given.temperature.data(),
                given.top_k.data(), given.top_p.data(), given.tokens.data(),
                given.log_probs.data(), t_.state};
    if (siserve_run(&d_, &chunk)) return -1;
    scatter();
    return tell();
  }

 private:
  template <typename Kind>
  Kind *field(int64_t row, int64_t place) const {
    return reinterpret_cast<Kind *>(t_.records + row * t_.bytes + place);
  }
  int64_t integer(int64_t row, int64_t place) const { return *field<int64_t>(row, place); }

  void gather() {
    size_t rows = t_.rows, size = rows * t_.steps;
    for (auto *numbers : {&given.token, &given.top_k}) numbers->resize(rows);
    for (auto *numbers : {&given.temperature, &given.top_p}) numbers->resize(rows);
    for (auto *numbers : {&given.uniform, &given.log_probs}) numbers->resize(size);
    given.tokens.resize(size), given.forced.assign(size, -1);
    for (size_t row = 0; row < rows; ++row) {
      given.token[row] = integer(row, t_.token), given.top_k[row] = integer(row, t_.top_k);
      given.temperature[row] = *field<float>(row, t_.temperature);
      given.top_p[row] = *field<float>(row, t_.top_p);
      const float *uniform = field<float>(row, t_.uniform) + integer(row, t_.step);
      for (int64_t at = 0; at < t_.steps; ++at) given.uniform[at * rows + row] = uniform[at];
    }
  }

  void scatter() {
    size_t rows = t_.rows;
    for (size_t row = 0; row < rows; ++row) {
      int64_t &step = *field<int64_t>(row, t_.step);
      int64_t *tokens = field<int64_t>(row, t_.tokens) + step;
      float *log_probs = field<float>(row, t_.log_probs) + step;
      for (int64_t at = 0; at < t_.steps; ++at) {
        tokens[at] = given.tokens[at * rows + row];
        log_probs[at] = given.log_probs[at * rows + row];
      }
      *field<int64_t>(row, t_.token) = tokens[t_.steps - 1];
      step += t_.steps;
    }
  }

  bool goes_on(int64_t row) const {
    return integer(row, t_.token) != d_.end && integer(row, t_.step) < integer(row, t_.limit);
  }

  // Tell of rows that ended, and put the last ones that go on into their places.
  int64_t tell() {
    int64_t ended = 0, *words = t_.words;
    for (int64_t row = 0; row < t_.rows; ++row)
      if (!goes_on(row)) words = tell_of(row, ended++, words);
    int64_t count = t_.rows - ended;
    for (int64_t gap = 0, mover = count; gap < count; ++gap) {
      if (goes_on(gap)) continue;
      while (!goes_on(mover)) ++mover;
      std::copy_n(field<uint8_t>(mover, 0), t_.bytes, field<uint8_t>(gap, 0));
      std::copy_n(t_.state + mover * d_.model_units, d_.model_units,
                  t_.state + gap * d_.model_units);
      ++mover;
    }
    return ended;
  }

  // What a row said after the end mark or its limit does not count.
  int64_t *tell_of(int64_t row, int64_t place, int64_t *words) {
    int64_t limit = integer(row, t_.limit), steps = std::min(limit, integer(row, t_.step));
    const int64_t *tokens = field<int64_t>(row, t_.tokens);
    const float *log_probs = field<float>(row, t_.log_probs);
    int64_t length = std::find(tokens, tokens + steps, (int64_t)d_.end) - tokens;
    double sum = 0.0;
    for (int64_t at = 0; at < steps; ++at) sum += log_probs[at];  // 0 after the end mark
    t_.owners[place] = integer(row, t_.owner), t_.indices[place] = integer(row, t_.index);
    t_.lengths[place] = length, t_.has_ended[place] = length < limit, t_.sums[place] = sum;
    return std::copy_n(tokens, length, words);
  }

  const Decoder &d_;
  const Table &t_;
};

}  // namespace

// Take the next steps of all rows. Returns how many ended; -1, and nothing is changed, if a token is
// none of the vocabulary. Several threads may do so at once, each with a table of its own.
EXPORTED int64_t siserve_take_steps(const Decoder *decoder, const Table *table) {
  return Steps(*decoder, *table).take();
}
