// A step of a decoder in three kernels: the GRU, the output layer, the choice of a word; and a fourth
// where rows choose among few words only.
//
// Given when this is compiled: UNITS, padded to a multiple of 16, of which MODEL_UNITS are the
// model's; WORDS, padded to a multiple of 128, of which VOCABULARY are the model's; CONTEXT and
// LATENT, the sizes of c and z; START and END, tokens; MAY_NEVER_BE_SAID(word).
//
// Products hold words or units along the 16 rows of a tensor core's tile and responses along its 8
// columns. Weights and states lie in memory as a warp reads them: for each tile and each 8 numbers
// that are added up (a slice), lane after lane. A lane is 4 * group + place. Of a tile of weights it
// holds rows group and group + 8 at numbers place and place + 4; of states, numbers place and
// place + 4 of response `group`; of results, rows group and group + 8 of responses 2 * place and
// 2 * place + 1.
//
// Whatever the number of rows, the numbers of a row are added up in one order, so a row's bits do
// not depend on its neighbours.

constexpr int SLICES = UNITS / 8;
constexpr int UNIT_TILES = UNITS / 16;
constexpr int BLOCK = 64;  // words whose masses are added up before the choice
constexpr int BLOCKS = WORDS / BLOCK;
constexpr float LOWEST = -1e30f;  // logit of a word that may not be said, and bias of spare places
constexpr float LOG2_E = 1.44269504f;
constexpr float BELOW_ONE = 1.0f - 1.0f / (1 << 20);  // keeps u * total below the total
constexpr float LEAST_TEMPERATURE = 1e-5f;
constexpr unsigned ALL = 0xffffffffu;
constexpr int SHARES = 8;  // warps that share the numbers of a GRU's sums

// Masses of a block of words: the largest logit and the sum of exp below it, of all words, and of
// those that may be said, these at the row's temperature.
struct Mass {
  float largest, sum, open_largest, open_sum;
};

__device__ __forceinline__ int place_of(int row, int unit) {
  int lane = (row & 7) * 4 + (unit & 3);
  return (((row >> 3) * SLICES + (unit >> 3)) * 32 + lane) * 2 + ((unit >> 2) & 1);
}

__device__ __forceinline__ float sigmoid(float value) { return 1.0f / (1.0f + expf(-value)); }

__device__ __forceinline__ float stretch_of(float temperature) {
  return temperature <= 0.0f ? 1.0f : 1.0f / fmaxf(temperature, LEAST_TEMPERATURE);
}

// States before the run: of rows that start the first state, [c z] times a matrix; of others that at
// their places in held[0], (places, MODEL_UNITS). A block has eight rows and as many units as threads.
extern "C" __global__ void begin(const int *tokens, const int *places, const float *const *held,
                                 const float *c, const float *z, const float *kernel,
                                 const float *bias, float *states, int rows) {
  __shared__ float conditions[8 * (CONTEXT + LATENT)];  // (CONTEXT + LATENT, 8)
  int first = 8 * blockIdx.y, unit = blockIdx.x * blockDim.x + threadIdx.x;
  if (first >= rows) return;
  bool starts = threadIdx.x < 8 && tokens[first + threadIdx.x] == START;
  float sums[8] = {};
  if (__syncthreads_or(starts)) {
    for (int at = threadIdx.x; at < 8 * (CONTEXT + LATENT); at += blockDim.x) {
      int row = at & 7, number = at >> 3;
      conditions[at] = number < CONTEXT ? c[(first + row) * CONTEXT + number]
                                        : z[(first + row) * LATENT + number - CONTEXT];
    }
    __syncthreads();
    if (unit < UNITS) {
#pragma unroll 8
      for (int number = 0; number < CONTEXT + LATENT; ++number) {
        float weight = kernel[number * UNITS + unit];
#pragma unroll
        for (int row = 0; row < 8; ++row) sums[row] += conditions[8 * number + row] * weight;
      }
    }
  }
  if (unit >= UNITS) return;
  for (int row = 0; row < 8; ++row) {
    float state = 0.0f;
    if (unit < MODEL_UNITS)
      state = tokens[first + row] == START
                  ? sums[row] + bias[unit]
                  : held[0][(size_t)places[first + row] * MODEL_UNITS + unit];
    states[place_of(first + row, unit)] = state;
  }
}

// States after the run go to held[1], (rows, MODEL_UNITS). A block has one row.
extern "C" __global__ void finish(const float *states, float *const *held, int rows) {
  if (blockIdx.x >= rows) return;
  for (int unit = threadIdx.x; unit < MODEL_UNITS; unit += blockDim.x)
    held[1][blockIdx.x * MODEL_UNITS + unit] = states[place_of(blockIdx.x, unit)];
}

// A step of the GRU: 16 units and 8 * TILES rows a block. `of_words` is what each word adds to the
// gates, (VOCABULARY, 3, UNITS), biases of both products included but that of the candidate's.
template <int TILES>
__device__ __forceinline__ void gru(const int *tokens, const float4 *kernel, const float *of_words,
                                    const float *bias, const float *states, float *following,
                                    int rows) {
  constexpr int ENDED = (TILES + 1) / 2;  // results that a thread ends
  __shared__ float parts[SHARES][3 * TILES * 4][32];
  int lane = threadIdx.x & 31, share = threadIdx.x >> 5;
  int unit_tile = blockIdx.x, first_tile = TILES * blockIdx.y;
  // What the words add comes from far and is asked for first.
  int at = share & 3, first_ended = share >> 2;
  int unit = 16 * unit_tile + (lane >> 2) + 8 * (at >> 1);
  float words[ENDED][3];
#pragma unroll
  for (int each = 0; each < ENDED; ++each) {
    int row = 8 * (first_tile + first_ended + 2 * each) + 2 * (lane & 3) + (at & 1);
    const float *word = of_words + (size_t)(row < rows ? tokens[row] : END) * 3 * UNITS + unit;
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) words[each][gate] = word[gate * UNITS];
  }
  float sums[3][TILES][4] = {};
  const float2 *pairs = reinterpret_cast<const float2 *>(states);
#pragma unroll 4
  for (int slice = share * SLICES / SHARES; slice < (share + 1) * SLICES / SHARES; ++slice) {
    float2 state[TILES];
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      state[tile] = pairs[((first_tile + tile) * SLICES + slice) * 32 + lane];
      state[tile].x = as_factor(state[tile].x), state[tile].y = as_factor(state[tile].y);
    }
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      float4 weight = kernel[((gate * UNIT_TILES + unit_tile) * SLICES + slice) * 32 + lane];
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) multiply_add(sums[gate][tile], weight, state[tile]);
    }
  }
#pragma unroll
  for (int gate = 0; gate < 3; ++gate)
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
      for (int each = 0; each < 4; ++each)
        parts[share][(gate * TILES + tile) * 4 + each][lane] = sums[gate][tile][each];
  __syncthreads();
#pragma unroll
  for (int each = 0; each < ENDED; ++each) {
    int tile = first_ended + 2 * each;
    int row = 8 * (first_tile + tile) + 2 * (lane & 3) + (at & 1);
    if (tile >= TILES || row >= rows) return;
    float gates[3];
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      float sum = 0.0f;
#pragma unroll
      for (int part = 0; part < SHARES; ++part)
        sum += parts[part][(gate * TILES + tile) * 4 + at][lane];
      gates[gate] = sum;
    }
    float reset = sigmoid(words[each][0] + gates[0]);
    float update = sigmoid(words[each][1] + gates[1]);
    float candidate = tanhf(words[each][2] + reset * (gates[2] + bias[unit]));
    int place = place_of(row, unit);
    following[place] = candidate + update * (states[place] - candidate);
  }
}

extern "C" __global__ void gru_of_few(const int *tokens, const float4 *kernel, const float *of_words,
                                      const float *bias, const float *states, float *following,
                                      int rows) {
  gru<1>(tokens, kernel, of_words, bias, states, following, rows);
}

extern "C" __global__ void gru_of_many(const int *tokens, const float4 *kernel,
                                       const float *of_words, const float *bias,
                                       const float *states, float *following, int rows) {
  gru<4>(tokens, kernel, of_words, bias, states, following, rows);
}

// What bars the words of a block that a lane holds, all but END, when it is added to their logits.
__device__ __forceinline__ void bar(float (&barred)[8], int block) {
#pragma unroll
  for (int at = 0; at < 8; ++at) {
    int word = BLOCK * block + 8 * at + ((threadIdx.x & 31) >> 2);
    barred[at] = MAY_NEVER_BE_SAID(word) ? LOWEST : 0.0f;
  }
}

// Keep the logits of a block of words and their masses for eight rows. A warp calls it with the
// results of the block's four tiles.
__device__ __forceinline__ void keep(const float (&logits)[4][4], const float (&barred)[8],
                                     int block, int row_tile, const int *tokens,
                                     const float *temperatures, float *kept, Mass *masses) {
  int lane = threadIdx.x & 31, group = lane >> 2;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    int row = 8 * row_tile + 2 * (lane & 3) + side;
    float stretch = LOG2_E * stretch_of(temperatures[row]);
    float *own = kept + (size_t)row * WORDS + BLOCK * block + group;
    float open[8];
    Mass mass = {LOWEST, 0.0f, LOWEST, 0.0f};
#pragma unroll
    for (int at = 0; at < 8; ++at) {
      float logit = logits[at >> 1][side + 2 * (at & 1)];
      own[8 * at] = logit;
      open[at] = logit + barred[at];
      mass.largest = fmaxf(mass.largest, logit);
    }
    if (block == END / BLOCK && tokens[row] == START) {
#pragma unroll
      for (int at = 0; at < 8; ++at)
        if (BLOCK * block + 8 * at + group == END) open[at] = LOWEST;
    }
#pragma unroll
    for (int at = 0; at < 8; ++at) mass.open_largest = fmaxf(mass.open_largest, open[at]);
#pragma unroll
    for (int far = 4; far < 32; far *= 2) {
      mass.largest = fmaxf(mass.largest, __shfl_xor_sync(ALL, mass.largest, far));
      mass.open_largest = fmaxf(mass.open_largest, __shfl_xor_sync(ALL, mass.open_largest, far));
    }
    // In a block without any open word every term is 1; such a mass comes to 0 beside others.
#pragma unroll
    for (int at = 0; at < 8; ++at) {
      float logit = logits[at >> 1][side + 2 * (at & 1)];
      mass.sum += power_of_two((logit - mass.largest) * LOG2_E);
      mass.open_sum += power_of_two((open[at] - mass.open_largest) * stretch);
    }
#pragma unroll
    for (int far = 4; far < 32; far *= 2) {
      mass.sum += __shfl_xor_sync(ALL, mass.sum, far);
      mass.open_sum += __shfl_xor_sync(ALL, mass.open_sum, far);
    }
    if (group == 0) masses[row * BLOCKS + block] = mass;
  }
}

// The output layer for eight rows: a block of words a block of four warps, which have a tile each.
extern "C" __global__ void output_of_few(const int *tokens, const float *temperatures,
                                         const float4 *kernel, const float *bias,
                                         const float *states, float *kept, Mass *masses, int rows) {
  __shared__ float shared[4][4][32];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int tile = 4 * blockIdx.x + warp;
  const float2 *pairs = reinterpret_cast<const float2 *>(states) + blockIdx.y * SLICES * 32;
  const float4 *weights = kernel + (size_t)tile * SLICES * 32;
  float sums[4] = {};
#pragma unroll 10
  for (int slice = 0; slice < SLICES; ++slice) {
    float4 weight = weights[slice * 32 + lane];
    float2 state = pairs[slice * 32 + lane];
    state.x = as_factor(state.x), state.y = as_factor(state.y);
    multiply_add(sums, weight, state);
  }
  for (int at = 0; at < 4; ++at)
    shared[warp][at][lane] = sums[at] + bias[16 * tile + (lane >> 2) + 8 * (at >> 1)];
  __syncthreads();
  if (warp > 0) return;
  float logits[4][4];
  for (int each = 0; each < 4; ++each)
    for (int at = 0; at < 4; ++at) logits[each][at] = shared[each][at][lane];
  float barred[8];
  bar(barred, blockIdx.x);
  keep(logits, barred, blockIdx.x, blockIdx.y, tokens, temperatures, kept, masses);
}

// The output layer for many rows: two blocks of words and 128 rows a block of eight warps, which have
// a block of words and 32 rows each. What they multiply comes by way of shared memory, STAGES - 1
// stages ahead of its use.
extern "C" __global__ void __launch_bounds__(256, 2)
    output_of_many(const int *tokens, const float *temperatures, const float4 *kernel,
                   const float *bias, const float *states, float *kept, Mass *masses, int rows) {
  constexpr int STAGES = 3, DEPTH = 2;  // slices of a stage
  constexpr int LAST = SLICES / DEPTH - 1;
  __shared__ float4 of_words[STAGES][8][DEPTH * 32];
  __shared__ float4 of_rows[STAGES][16][DEPTH * 16];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int first_row_tile = 16 * blockIdx.y;
  int own_words = 4 * (warp & 1), own_rows = 4 * (warp >> 1);  // tiles of the block's
  int row_tiles = min(16, rows / 8 - first_row_tile);
  // A thread brings the same two places of every stage's words, and of its rows.
  int word_tile = threadIdx.x / (DEPTH * 32), of_word = threadIdx.x % (DEPTH * 32);
  int row_tile = threadIdx.x / (DEPTH * 16), of_row = threadIdx.x % (DEPTH * 16);
  const float4 *next_words = kernel + (size_t)(8 * blockIdx.x + word_tile) * SLICES * 32 + of_word;
  const float4 *next_rows = reinterpret_cast<const float4 *>(states) +
                            (size_t)(first_row_tile + row_tile) * SLICES * 16 + of_row;
  bool has_row = row_tile < row_tiles, has_other = row_tile + 8 < row_tiles;
  auto bring = [&](int slot) {
    fetch(&of_words[slot][word_tile][of_word], next_words);
    fetch(&of_words[slot][word_tile + 4][of_word], next_words + 4 * SLICES * 32);
    if (has_row) fetch(&of_rows[slot][row_tile][of_row], next_rows);
    if (has_other) fetch(&of_rows[slot][row_tile + 8][of_row], next_rows + 8 * SLICES * 16);
    next_words += DEPTH * 32, next_rows += DEPTH * 16;
  };
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    if (stage <= LAST) bring(stage);
    end_of_stage();
  }
  int slot = 0, free_slot = STAGES - 1;
  float sums[4][4][4] = {};  // of each tile of rows and each tile of words
  for (int stage = 0; stage <= LAST; ++stage) {
    wait_for_stages<STAGES - 2>();
    __syncthreads();
    if (stage + STAGES - 1 <= LAST) bring(free_slot);
    end_of_stage();
    int now = slot;
    free_slot = slot, slot = slot == STAGES - 1 ? 0 : slot + 1;
    if (own_rows >= row_tiles) continue;
#pragma unroll
    for (int slice = 0; slice < DEPTH; ++slice) {
      float4 weight[4];
      float2 state[4];
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        weight[tile] = of_words[now][own_words + tile][slice * 32 + lane];
        state[tile] = reinterpret_cast<const float2 *>(
            of_rows[now][own_rows + tile])[slice * 32 + lane];
        state[tile].x = as_factor(state[tile].x), state[tile].y = as_factor(state[tile].y);
      }
#pragma unroll
      for (int tile = 0; tile < 4; ++tile)
#pragma unroll
        for (int words = 0; words < 4; ++words)
          multiply_add(sums[tile][words], weight[words], state[tile]);
    }
  }
  if (own_rows >= row_tiles) return;
  int block = 2 * blockIdx.x + (warp & 1);
#pragma unroll
  for (int words = 0; words < 4; ++words)
#pragma unroll
    for (int at = 0; at < 4; ++at) {
      float own = bias[BLOCK * block + 16 * words + (lane >> 2) + 8 * (at >> 1)];
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) sums[tile][words][at] += own;
    }
  float barred[8];
  bar(barred, block);
#pragma unroll
  for (int tile = 0; tile < 4; ++tile)
    keep(sums[tile], barred, block, first_row_tile + own_rows + tile, tokens, temperatures, kept,
         masses);
}

__device__ __forceinline__ float largest_of(float value) {
  for (int far = 16; far > 0; far /= 2) value = fmaxf(value, __shfl_xor_sync(ALL, value, far));
  return value;
}

__device__ __forceinline__ float prefix_of(float value, int lane) {
  for (int far = 1; far < 32; far *= 2) {
    float before = __shfl_up_sync(ALL, value, far);
    if (lane >= far) value += before;
  }
  return value;
}

// Whether a row draws among the likeliest words only.
__device__ __forceinline__ bool is_narrow(float temperature, int top_k, float top_p) {
  return temperature > 0.0f && (top_k > 0 || top_p < 1.0f);
}

// Choose words by the inverse of their distribution function, first the block, then the word; or
// the likeliest. A warp has a row. Rows that ended say END again, for nothing. Of narrow rows it
// leaves to `choose_among_few` what log-probabilities are told from, the log of the sum of exp.
extern "C" __global__ void choose(const int *tokens, const float *temperatures, const int *top_ks,
                                  const float *top_ps, const float *uniforms, const float *kept,
                                  const Mass *masses, int *chosen, float *log_probs, int rows) {
  constexpr int ROUNDS = (BLOCKS + 31) / 32;
  int lane = threadIdx.x & 31;
  int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (row >= rows) return;
  int last = tokens[row];
  if (last == END) {
    if (lane == 0) chosen[row] = END, log_probs[row] = 0.0f;
    return;
  }
  Mass mine[ROUNDS];
  float largest = LOWEST, open_largest = LOWEST;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int block = 32 * round + lane;
    mine[round] = {LOWEST, 0.0f, LOWEST, 0.0f};
    if (block < BLOCKS) mine[round] = masses[row * BLOCKS + block];
    largest = fmaxf(largest, mine[round].largest);
    open_largest = fmaxf(open_largest, mine[round].open_largest);
  }
  largest = largest_of(largest), open_largest = largest_of(open_largest);
  float sum = 0.0f;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round)
    sum += mine[round].sum * expf(mine[round].largest - largest);
  for (int far = 16; far > 0; far /= 2) sum += __shfl_xor_sync(ALL, sum, far);
  float log_total = largest + logf(sum);
  if (is_narrow(temperatures[row], top_ks[row], top_ps[row])) {
    if (lane == 0) log_probs[row] = log_total;
    return;
  }

  bool is_greedy = temperatures[row] <= 0.0f;
  float stretch = stretch_of(temperatures[row]);
  float prefixes[ROUNDS], total = 0.0f;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    mine[round].open_sum *= expf((mine[round].open_largest - open_largest) * stretch);
    prefixes[round] = total + prefix_of(mine[round].open_sum, lane);
    total = __shfl_sync(ALL, prefixes[round], 31);
  }
  float target = fminf(uniforms[row], BELOW_ONE) * total, before = 0.0f, so_far = 0.0f;
  int block = -1, fallback = 0;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    bool has_mass = mine[round].open_sum > 0.0f;
    bool is_it = is_greedy ? mine[round].open_largest == open_largest && has_mass
                           : prefixes[round] > target && has_mass;
    unsigned found = __ballot_sync(ALL, is_it), massive = __ballot_sync(ALL, has_mass);
    float previous = __shfl_up_sync(ALL, prefixes[round], 1);
    if (lane == 0) previous = so_far;
    if (massive) fallback = 32 * round + 31 - __clz(massive);
    if (block < 0 && found) {
      int it = __ffs(found) - 1;
      block = 32 * round + it;
      before = __shfl_sync(ALL, previous, it);
    }
    so_far = __shfl_sync(ALL, prefixes[round], 31);
  }
  if (block < 0) block = fallback;  // by rounding alone

  float rest = target - before, passed = 0.0f;
  int word = -1, likeliest = -1;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int own = BLOCK * block + 32 * half + lane;
    bool is_open = own < VOCABULARY && !MAY_NEVER_BE_SAID(own) && !(last == START && own == END);
    float logit = kept[(size_t)row * WORDS + own];
    float mass = is_open ? expf((logit - open_largest) * stretch) : 0.0f;
    float prefix = passed + prefix_of(mass, lane);
    bool is_it = is_greedy ? is_open && logit == open_largest : prefix > rest && mass > 0.0f;
    unsigned found = __ballot_sync(ALL, is_it), massive = __ballot_sync(ALL, mass > 0.0f);
    if (massive) likeliest = BLOCK * block + 32 * half + 31 - __clz(massive);
    if (word < 0 && found) word = BLOCK * block + 32 * half + __ffs(found) - 1;
    passed = __shfl_sync(ALL, prefix, 31);
  }
  if (word < 0) word = likeliest;
  if (lane == 0) {
    chosen[row] = word;
    log_probs[row] = kept[(size_t)row * WORDS + word] - log_total;
  }
}

__device__ __forceinline__ unsigned order_of(float value) {
  unsigned bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float sum_of_warp(float value) {
  for (int far = 16; far > 0; far /= 2) value += __shfl_xor_sync(ALL, value, far);
  return value;
}

constexpr int TEAM = 256;  // threads that choose a row's word among few
constexpr int SHARE = (WORDS + TEAM - 1) / TEAM;  // words of each, which follow each other

__device__ __forceinline__ float sum_of_team(float value, float *shared) {
  value = sum_of_warp(value);
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < TEAM / 32; ++warp) sum += shared[warp];
  __syncthreads();
  return sum;
}

// Choose the word of each narrow row: of its top_k likeliest words the fewest that hold top_p of
// their mass. Both borders are found bit by bit in the order of the logits; words that are as likely
// as the last one stay too.
extern "C" __global__ void __launch_bounds__(TEAM)
    choose_among_few(const int *tokens, const float *temperatures, const int *top_ks,
                     const float *top_ps, const float *uniforms, const float *kept, int *chosen,
                     float *log_probs, int rows) {
  __shared__ float shared[TEAM / 32];
  __shared__ float prefixes[TEAM];
  int row = blockIdx.x, last = tokens[row], top_k = top_ks[row];
  float temperature = temperatures[row], top_p = top_ps[row];
  if (last == END || !is_narrow(temperature, top_k, top_p)) return;
  float stretch = stretch_of(temperature);
  const float *logits = kept + (size_t)row * WORDS;
  unsigned orders[SHARE];  // 0 = may not be said
  float masses[SHARE], largest = LOWEST;
#pragma unroll
  for (int at = 0; at < SHARE; ++at) {
    int word = SHARE * threadIdx.x + at;
    bool is_open = word < VOCABULARY && !MAY_NEVER_BE_SAID(word) && !(last == START && word == END);
    masses[at] = is_open ? logits[word] : LOWEST;
    orders[at] = is_open ? order_of(masses[at]) : 0;
    largest = fmaxf(largest, masses[at]);
  }
  largest = largest_of(largest);
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = largest;
  __syncthreads();
  for (int warp = 0; warp < TEAM / 32; ++warp) largest = fmaxf(largest, shared[warp]);
  __syncthreads();
#pragma unroll
  for (int at = 0; at < SHARE; ++at)
    masses[at] = orders[at] ? expf((masses[at] - largest) * stretch) : 0.0f;

  unsigned least = 0;  // order of the last word that stays
  if (top_k > 0) {
    for (unsigned bit = 0x80000000u; bit > 0; bit /= 2) {
      float count = 0.0f;
#pragma unroll
      for (int at = 0; at < SHARE; ++at) count += orders[at] >= (least | bit);
      if (sum_of_team(count, shared) >= top_k) least |= bit;
    }
  }
  if (top_p < 1.0f) {
    float count = 0.0f, above = 0.0f, of_last = 0.0f;
#pragma unroll
    for (int at = 0; at < SHARE; ++at) {
      if (orders[at] > least) count += 1.0f, above += masses[at];
      if (orders[at] == least) of_last = masses[at];
    }
    count = sum_of_team(count, shared), above = sum_of_team(above, shared);
    of_last = largest_of(of_last);
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = of_last;
    __syncthreads();
    for (int warp = 0; warp < TEAM / 32; ++warp) of_last = fmaxf(of_last, shared[warp]);
    __syncthreads();
    float total = least ? above + (top_k - count) * of_last : above;
    unsigned border = 0;  // above it lies top_p of the mass
    for (unsigned bit = 0x80000000u; bit > 0; bit /= 2) {
      float mass = 0.0f;
#pragma unroll
      for (int at = 0; at < SHARE; ++at) mass += orders[at] > (border | bit) ? masses[at] : 0.0f;
      if (sum_of_team(mass, shared) >= top_p * total) border |= bit;
    }
    unsigned top = order_of(largest);  // which stays, whatever top_p
    least = max(least, border < top ? border + 1 : top);
  }

  float own = 0.0f;
#pragma unroll
  for (int at = 0; at < SHARE; ++at) {
    masses[at] = orders[at] >= least ? masses[at] : 0.0f;
    own += masses[at];
  }
  prefixes[threadIdx.x] = own;
  __syncthreads();
  float before = 0.0f, total = 0.0f;  // in the order of the words, whoever adds
  int last_with_mass = 0, first_reached = TEAM;
  for (int thread = 0; thread < TEAM; ++thread) total += prefixes[thread];
  float target = fminf(uniforms[row], BELOW_ONE) * total, sum = 0.0f;
  for (int thread = 0; thread < TEAM; ++thread) {
    if (thread == threadIdx.x) before = sum;
    sum += prefixes[thread];
    if (prefixes[thread] > 0.0f) {
      last_with_mass = thread;
      if (sum > target && first_reached == TEAM) first_reached = thread;
    }
  }
  if (first_reached == TEAM) first_reached = last_with_mass;  // by rounding alone
  if (threadIdx.x != first_reached) return;
  int word = -1;
  bool is_reached = false;
#pragma unroll
  for (int at = 0; at < SHARE; ++at) {
    before += masses[at];
    if (masses[at] > 0.0f && !is_reached) {
      word = SHARE * threadIdx.x + at;
      is_reached = before > target;
    }
  }
  chosen[row] = word;
  log_probs[row] = logits[word] - log_probs[row];
}
