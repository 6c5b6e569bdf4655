"""A decoder's step in three CUDA kernels, which are compiled for the device when a model is loaded.

`layout` lays a bundle's weights out for them, `kernels.cu` holds them, `tapes` runs them, `cuda` is
the device, `loading` makes a decoder of all that. Only models whose decoder is a GRU that is told
the last word are run so; others are left to onnxruntime.
"""
