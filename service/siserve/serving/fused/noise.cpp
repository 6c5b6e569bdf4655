// The numbers of siserve/serving/noise.py on a CPU with AVX-512: words of Philox-4x32-10 by Salmon et
// al. 2011 as uniform numbers, and as normal ones by Box and Muller 1958.

#include "products.hpp"

// What a request's responses draw. Keys are the seeds of theirs.
struct Noise {
  int64_t responses, size, purpose, first_step, steps;
  const int64_t *indices;
  const uint64_t *keys;
  float *normals;   // (responses, size), for that purpose
  float *uniforms;  // (steps, responses), one for each step from the first on
};

// glibc's, of eight numbers.
extern "C" __m512d _ZGVeN8v_log(__m512d);
extern "C" __m512d _ZGVeN8v_cos(__m512d);
extern "C" __m512d _ZGVeN8v_sin(__m512d);

namespace {

constexpr int COUNTERS = 8;  // of a vector, whose words take 64 bits each
constexpr int WORDS = 4;     // of a counter
constexpr int ROUNDS = 10;
constexpr int64_t TOKEN = 1;  // the purpose of a step's number
constexpr double TWO_PI = 6.283185307179586;

struct Mixed {
  __m512i words[WORDS];
};

// A word's product: `other` and the key are mixed into its upper half, which takes the place of the
// word, and its lower half that of `other`. Of both the lower 32 bits count.
inline void multiply(__m512i &word, __m512i &other, uint64_t multiplier, uint64_t key) {
  __m512i product = _mm512_mul_epu32(word, _mm512_set1_epi64(multiplier));
  __m512i upper = _mm512_srli_epi64(product, 32);
  word = _mm512_xor_si512(_mm512_xor_si512(upper, other), _mm512_set1_epi64(key));
  other = product;
}

// Mix the counters (first, index, purpose, 0), (first + 1, index, purpose, 0) and so on.
Mixed mix(int64_t first, int64_t index, int64_t purpose, uint64_t key) {
  const __m512i numbers = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
  __m512i even[2] = {_mm512_add_epi64(_mm512_set1_epi64(first), numbers),
                     _mm512_set1_epi64(purpose)};
  __m512i odd[2] = {_mm512_set1_epi64(index), _mm512_setzero_si512()};
  uint64_t low = key, high = key >> 32;
  for (int round = 0; round < ROUNDS; ++round) {
    multiply(even[0], odd[1], 0xD2511F53, high);
    multiply(even[1], odd[0], 0xCD9E8D57, low);
    std::swap(even[0], even[1]);
    low += 0x9E3779B9, high += 0xBB67AE85;
  }
  const __m512i lower = _mm512_set1_epi64(0xFFFFFFFF);
  Mixed mixed{{even[0], odd[0], even[1], odd[1]}};
  for (__m512i &word : mixed.words) word = _mm512_and_si512(word, lower);
  return mixed;
}

// Two normal numbers of two words, eight times.
inline void to_normals(__m512i one, __m512i other, float *first, float *second) {
  const __m512d unit = _mm512_set1_pd(1.0 / 4294967296.0);
  __m512d share = _mm512_add_pd(_mm512_cvtepu64_pd(one), _mm512_set1_pd(1.0));
  __m512d log = _ZGVeN8v_log(_mm512_mul_pd(share, unit));
  __m512d radius = _mm512_sqrt_pd(_mm512_mul_pd(_mm512_set1_pd(-2.0), log));
  __m512d turn = _mm512_mul_pd(_mm512_cvtepu64_pd(other), unit);
  __m512d angle = _mm512_mul_pd(_mm512_set1_pd(TWO_PI), turn);
  _mm256_storeu_ps(first, _mm512_cvtpd_ps(_mm512_mul_pd(radius, _ZGVeN8v_cos(angle))));
  _mm256_storeu_ps(second, _mm512_cvtpd_ps(_mm512_mul_pd(radius, _ZGVeN8v_sin(angle))));
}

void draw_normals(const Noise &noise, int64_t row) {
  float drawn[WORDS][COUNTERS];
  float *own = noise.normals + row * noise.size;
  for (int64_t at = 0; at < noise.size; at += WORDS * COUNTERS) {
    Mixed mixed = mix(at / WORDS, noise.indices[row], noise.purpose, noise.keys[row]);
    to_normals(mixed.words[0], mixed.words[1], drawn[0], drawn[1]);
    to_normals(mixed.words[2], mixed.words[3], drawn[2], drawn[3]);
    int64_t count = std::min<int64_t>(WORDS * COUNTERS, noise.size - at);
    for (int64_t each = 0; each < count; ++each)
      own[at + each] = drawn[each % WORDS][each / WORDS];
  }
}

void draw_uniforms(const Noise &noise, int64_t row) {
  for (int64_t step = 0; step < noise.steps; step += COUNTERS) {
    Mixed mixed = mix(noise.first_step + step, noise.indices[row], TOKEN, noise.keys[row]);
    __m256i bits = _mm512_cvtepi64_epi32(_mm512_srli_epi64(mixed.words[0], 8));
    float drawn[COUNTERS];
    _mm256_storeu_ps(drawn, _mm256_mul_ps(_mm256_cvtepi32_ps(bits),
                                          _mm256_set1_ps(1.0f / (1 << 24))));
    int64_t count = std::min<int64_t>(COUNTERS, noise.steps - step);
    for (int64_t each = 0; each < count; ++each)
      noise.uniforms[(step + each) * noise.responses + row] = drawn[each];
  }
}

}  // namespace

// Draw. Several threads may do so at once.
EXPORTED void siserve_draw(const Noise *noise) {
  for (int64_t row = 0; row < noise->responses; ++row) {
    draw_normals(*noise, row);
    draw_uniforms(*noise, row);
  }
}
