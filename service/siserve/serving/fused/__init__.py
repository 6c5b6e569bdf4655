"""A decoder's step in kernels of our own, on CUDA and on CPUs.

`weights` takes what they read out of a bundle. On CUDA `layout` lays that out, `kernels.cu` holds
the kernels, which are compiled for the device when a model is loaded, `tapes` runs them, and `cuda`
is the device. What runs on a CPU is compiled when siserve is installed: `steps.cpp` has the steps
and `table.cpp` what becomes of a worker's rows with them, which `cpu` runs; `sequences.cpp` has the
encoders, which `cpu_encoder` runs, and `prior.cpp` the prior, which `cpu_prior` runs; `noise.cpp`
draws what siserve.serving.noise does, and `halves.cpp` reads weights. `loading` makes a decoder of
either. Only models whose decoder is a GRU that is told the last word are run so;
others are left to onnxruntime.
"""
