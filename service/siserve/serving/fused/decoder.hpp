// A decoder, and what it is given and gives.

#pragma once

#include "products.hpp"

// A decoder. Its units are filled up to a multiple of 16, its words to a multiple of 64, with a bias of
// -1e30. Memory that it points to starts with a cache line and may be read a page beyond its end.
struct Decoder {
  int32_t units, model_units, context, latent, vocabulary, words, start, end;
  int32_t kind, may_use_tiles;  // how weights of both products lie
  const void *gates, *output;  // in blocks
  const float *first;          // (context + latent, units), in blocks of 32 units
  const float *first_bias;     // (units,)
  const float *of_words;       // what words add to the gates, (vocabulary, 3, units)
  const float *barred;         // (words,): -1e30 for words that are never said, else 0
  const uint8_t *is_barred;    // whether a block of words has such a one
};

// A chunk of steps of rows, in arrays that are named and shaped as in decoder.onnx: (steps, rows),
// (rows, ...) or (rows,).
struct Chunk {
  int32_t steps, rows;
  const float *c, *z, *state;
  const int64_t *token;
  const float *uniform;
  const int64_t *forced;
  const float *temperature;
  const int64_t *top_k;
  const float *top_p;
  int64_t *tokens;
  float *log_probs, *state_out;
};

// Run a chunk; 1 if a token is none of the vocabulary. Several threads may run chunks at once.
EXPORTED int siserve_run(const Decoder *decoder, const Chunk *chunk);
