// A Gaussian prior on a CPU with AVX-512, in float32: a tanh layer, and a linear layer to means and
// log-variances.

#include "team.hpp"

using siserve::Running;
using siserve::share;
using siserve::Team;

// Its tanh layer has `hidden` units, filled up to a multiple of 32 like the 2 * latent columns of the
// linear layer, which are the means and then the log-variances. Matrices lie in blocks of 32 columns,
// which are told their biases. Log-variances were tried up to a bound.
struct Prior {
  int32_t context, hidden, latent, columns, kind;
  float bound;
  const void *of_context, *of_hidden;
};

// Rows of c and of noise; what is drawn, (rows, latent), and which rows have a log-variance beyond the
// bound.
struct Draws {
  int64_t rows;
  const float *c, *noise;
  float *z;
  uint8_t *are_beyond;
};

namespace {

constexpr int PRIOR_VECTORS = 2;
constexpr int PRIOR_BLOCK = PRIOR_VECTORS * LANES;

struct PriorRooms {
  Room<float> hidden, told;
};

thread_local PriorRooms prior_rooms;

// A linear layer of rows, and what is made of its vectors.
template <typename Kind, typename Make>
void layer(Team *team, const void *blocks, int inputs, int columns, const float *rows,
           int64_t num_rows, float *to, const Make &make) {
  share(team, columns / PRIOR_BLOCK, false, [&](int number, int next) {
    alignas(64) float sums[TILE * PRIOR_BLOCK];
    BlockOf<Kind, PRIOR_VECTORS> block(blocks, number, inputs, num_rows, next);
    for (int64_t first = 0; first < num_rows; first += TILE) {
      int some = std::min<int64_t>(TILE, num_rows - first);
      block.multiply(rows + first * inputs, inputs, some, sums);
      for (int row = 0; row < some; ++row)
        for (int at = 0; at < PRIOR_BLOCK; at += LANES) {
          Floats value = _mm512_add_ps(_mm512_load_ps(sums + row * PRIOR_BLOCK + at),
                                       _mm512_load_ps(block.told + at));
          _mm512_store_ps(to + (first + row) * columns + number * PRIOR_BLOCK + at, make(value));
        }
    }
  });
}

template <typename Kind>
void draw(const Prior &p, const Draws &draws) {
  float *hidden = prior_rooms.hidden.of(draws.rows * p.hidden);
  float *told = prior_rooms.told.of(draws.rows * p.columns);
  Running running(false);
  layer<Kind>(running.team, p.of_context, p.context, p.hidden, draws.c, draws.rows, hidden,
              [](Floats value) { return tanh(value); });
  layer<Kind>(running.team, p.of_hidden, p.hidden, p.columns, hidden, draws.rows, told,
              [](Floats value) { return value; });
  const Floats half = _mm512_set1_ps(0.5f * LOG2_E), bound = _mm512_set1_ps(p.bound);
  for (int64_t row = 0; row < draws.rows; ++row) {
    __mmask16 is_beyond = 0;
    const float *mean = told + row * p.columns, *logvar = mean + p.latent;
    for (int at = 0; at < p.latent; at += LANES) {
      __mmask16 mask = p.latent - at >= LANES ? 0xFFFF : (1 << (p.latent - at)) - 1;
      Floats value = _mm512_maskz_loadu_ps(mask, logvar + at);
      is_beyond |= _mm512_cmp_ps_mask(_mm512_abs_ps(value), bound, _CMP_NLE_UQ);
      Floats sigma = power_of_two(_mm512_mul_ps(value, half));
      Floats noise = _mm512_maskz_loadu_ps(mask, draws.noise + row * p.latent + at);
      Floats drawn = _mm512_fmadd_ps(sigma, noise, _mm512_maskz_loadu_ps(mask, mean + at));
      _mm512_mask_storeu_ps(draws.z + row * p.latent + at, mask, drawn);
    }
    draws.are_beyond[row] = is_beyond != 0;
  }
}

}  // namespace

// Draw from it. Several threads may do so at once.
EXPORTED void siserve_draw_prior(const Prior *prior, const Draws *draws) {
  if (prior->kind == FLOAT16) draw<Float16>(*prior, *draws);
  if (prior->kind == FLOAT32) draw<Float32>(*prior, *draws);
}
