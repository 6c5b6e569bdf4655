"""A decoder's step in kernels of our own, on CUDA and on CPUs.

`weights` takes what they read out of a bundle. On CUDA `layout` lays that out, `kernels.cu` holds
the kernels, which are compiled for the device when a model is loaded, `tapes` runs them, and `cuda`
is the device. On a CPU `steps.cpp` holds them, which are compiled when siserve is installed, and
`cpu` runs them. `loading` makes a decoder of either. Only models whose decoder is a GRU that is
told the last word are run so; others are left to onnxruntime.
"""
