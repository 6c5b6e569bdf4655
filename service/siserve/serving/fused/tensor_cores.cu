// What the kernels ask of the device beside plain C++: products on tensor cores and copies to shared
// memory that go on beside them. Given when this is compiled: EXACT, whether products are in float32.

// Round to the 10 bits of mantissa that the tensor cores read, TF32.
__device__ __forceinline__ float rounded(float value) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}

// Add a product of 16 x 8 weights and 8 x 8 states in TF32; a warp holds all three together.
__device__ __forceinline__ void multiply_add_rounded(float (&sum)[4], const float4 &weight,
                                                     const float2 &state) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(__float_as_uint(weight.x)), "r"(__float_as_uint(weight.y)),
        "r"(__float_as_uint(weight.z)), "r"(__float_as_uint(weight.w)),
        "r"(__float_as_uint(state.x)), "r"(__float_as_uint(state.y)));
}

// 2 to the power of a number, to two units in the last place.
__device__ __forceinline__ float power_of_two(float value) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
  return power;
}

#if EXACT

__device__ __forceinline__ float as_factor(float value) { return value; }

// Both factors in two parts, of which the small ones' product is lost: some 21 bits of mantissa.
__device__ __forceinline__ void multiply_add(float (&sum)[4], const float4 &weight,
                                             const float2 &state) {
  float4 large = {rounded(weight.x), rounded(weight.y), rounded(weight.z), rounded(weight.w)};
  float4 small = {rounded(weight.x - large.x), rounded(weight.y - large.y),
                  rounded(weight.z - large.z), rounded(weight.w - large.w)};
  float2 most = {rounded(state.x), rounded(state.y)};
  float2 rest = {rounded(state.x - most.x), rounded(state.y - most.y)};
  multiply_add_rounded(sum, small, most);
  multiply_add_rounded(sum, large, rest);
  multiply_add_rounded(sum, large, most);
}

#else

__device__ __forceinline__ float as_factor(float value) { return rounded(value); }

__device__ __forceinline__ void multiply_add(float (&sum)[4], const float4 &weight,
                                             const float2 &state) {
  multiply_add_rounded(sum, weight, state);
}

#endif

// Copy 16 bytes from the device's memory to shared memory, some time before the stage's end is waited
// for.
__device__ __forceinline__ void fetch(float4 *to, const float4 *from) {
  unsigned address = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}

__device__ __forceinline__ void end_of_stage() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until all stages but the last LEFT are there.
template <int LEFT>
__device__ __forceinline__ void wait_for_stages() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
