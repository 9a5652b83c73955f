//! VL-JEPA as forward and backward over kernels.
