//! The compile path: parameter layouts, the cache, and what goes wrong without NVRTC.
