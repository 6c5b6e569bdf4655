// Numbers in float16: what weights are stored in, in less than a tenth of the time that numpy takes.

#include "products.hpp"

namespace {

// Which of the next 16 numbers there are.
__mmask16 next_of(int64_t left) { return left >= LANES ? 0xFFFF : (1 << left) - 1; }

}  // namespace

// Write numbers in float32.
EXPORTED void siserve_widen(int64_t count, const uint16_t *halves, float *floats) {
  for (int64_t at = 0; at < count; at += LANES) {
    __mmask16 mask = next_of(count - at);
    _mm512_mask_storeu_ps(floats + at, mask,
                          _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, halves + at)));
  }
}

// Write numbers in float16, rounded to the nearest.
EXPORTED void siserve_narrow(int64_t count, const float *floats, uint16_t *halves) {
  for (int64_t at = 0; at < count; at += LANES) {
    __mmask16 mask = next_of(count - at);
    Floats values = _mm512_maskz_loadu_ps(mask, floats + at);
    _mm256_mask_storeu_epi16(halves + at, mask,
                             _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
  }
}

// Say whether float16 loses nothing of any number.
EXPORTED int siserve_are_halves(int64_t count, const float *floats) {
  for (int64_t at = 0; at < count; at += LANES) {
    Floats values = _mm512_maskz_loadu_ps(next_of(count - at), floats + at);
    Floats rounded = _mm512_cvtph_ps(_mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
    if (_mm512_cmp_ps_mask(values, rounded, _CMP_NEQ_UQ)) return 0;
  }
  return 1;
}
