// Enough of CUDA to run the kernels on a CPU. The threads of a block are coroutines of one thread,
// which meet at barriers wherever the device would synchronise them or exchange registers of a warp;
// blocks take turns.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct dim3 { int x, y, z; };

using std::max;
using std::min;

struct Coroutine {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[1 << 17]};
  dim3 thread, block;
  bool has_ended = false;
};
static std::vector<std::unique_ptr<Coroutine>> team;
static Coroutine *current;
static ucontext_t scheduler;
static dim3 blockDim;
#define threadIdx (current->thread)
#define blockIdx (current->block)

struct Barrier {
  int size, arrived = 0, generation = 0;
  void wait() {
    int own = generation;
    if (++arrived == size) {
      arrived = 0, ++generation;
    } else {
      while (generation == own) swapcontext(&current->context, &scheduler);
    }
  }
};

struct Warp {
  Barrier barrier{32};
  float given[32][8];
  unsigned flags[32];
};
static Barrier block_barrier;
static std::vector<Warp> warps;
static int block_flag[1024];

static Warp &own_warp() { return warps[threadIdx.x / 32]; }
static int own_lane() { return threadIdx.x % 32; }

static void __syncthreads() { block_barrier.wait(); }

static int __syncthreads_or(int flag) {
  block_flag[threadIdx.x] = flag;
  __syncthreads();
  int any = 0;
  for (int at = 0; at < blockDim.x; ++at) any |= block_flag[at];
  __syncthreads();
  return any;
}

static float exchanged(float value, int from) {
  Warp &warp = own_warp();
  warp.given[own_lane()][0] = value;
  warp.barrier.wait();
  float taken = warp.given[from][0];
  warp.barrier.wait();
  return taken;
}

static float __shfl_sync(unsigned, float value, int lane) { return exchanged(value, lane); }
static float __shfl_xor_sync(unsigned, float value, int mask) {
  return exchanged(value, own_lane() ^ mask);
}
static float __shfl_up_sync(unsigned, float value, int far) {
  return exchanged(value, own_lane() < far ? own_lane() : own_lane() - far);
}

static unsigned __ballot_sync(unsigned, bool flag) {
  Warp &warp = own_warp();
  warp.flags[own_lane()] = flag;
  warp.barrier.wait();
  unsigned found = 0;
  for (int lane = 0; lane < 32; ++lane) found |= warp.flags[lane] << lane;
  warp.barrier.wait();
  return found;
}

static int __clz(unsigned bits) { return __builtin_clz(bits); }
static int __ffs(unsigned bits) { return __builtin_ffs(bits); }

static unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

static float power_of_two(float value) { return std::exp2(value); }

// Round to TF32 unless products are in float32.
static float as_factor(float value) {
  if (EXACT) return value;
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = (bits + 0x1000u) & 0xffffe000u;
  std::memcpy(&value, &bits, 4);
  return value;
}

// As the PTX manual lays the tiles of mma.m16n8k8 out over a warp's lanes.
static void multiply_add(float (&sum)[4], const float4 &weight, const float2 &state) {
  Warp &warp = own_warp();
  float given[6] = {weight.x, weight.y, weight.z, weight.w, state.x, state.y};
  std::memcpy(warp.given[own_lane()], given, sizeof given);
  warp.barrier.wait();
  for (int at = 0; at < 4; ++at) {
    int row = own_lane() / 4 + 8 * (at / 2), column = 2 * (own_lane() % 4) + at % 2;
    for (int number = 0; number < 8; ++number) {
      float of_row = warp.given[4 * (row % 8) + number % 4][row / 8 + 2 * (number / 4)];
      float of_column = warp.given[4 * column + number % 4][4 + number / 4];
      sum[at] += of_row * of_column;
    }
  }
  warp.barrier.wait();
}

static void fetch(float4 *to, const float4 *from) { *to = *from; }
static void end_of_stage() {}
template <int LEFT>
static void wait_for_stages() {}

static dim3 grid_size;
static std::function<void()> running;

static void run_all_blocks() {
  for (int y = 0; y < grid_size.y; ++y)
    for (int x = 0; x < grid_size.x; ++x) {
      blockIdx = {x, y, 0};
      block_barrier.wait();
      running();
    }
  current->has_ended = true;
}

static void launch(dim3 grid, int threads, const std::function<void()> &kernel) {
  grid_size = grid, running = kernel, blockDim = {threads, 1, 1};
  block_barrier = Barrier{threads};
  warps = std::vector<Warp>((threads + 31) / 32);
  team.clear();
  for (int thread = 0; thread < threads; ++thread) {
    team.push_back(std::make_unique<Coroutine>());
    Coroutine &each = *team.back();
    each.thread = {thread, 0, 0};
    getcontext(&each.context);
    each.context.uc_stack.ss_sp = each.stack.get(), each.context.uc_stack.ss_size = 1 << 17;
    each.context.uc_link = &scheduler;
    makecontext(&each.context, run_all_blocks, 0);
  }
  for (int left = threads; left > 0;) {
    left = 0;
    for (auto &each : team) {
      if (each->has_ended) continue;
      current = each.get();
      swapcontext(&scheduler, &current->context);
      left += !current->has_ended;
    }
  }
}
