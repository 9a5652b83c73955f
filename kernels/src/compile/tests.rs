//! The compile path: parameter layouts, the cache, and what goes wrong without NVRTC.

use super::{Compiler, Kernel, Nvrtc};
use crate::attention::launch as attention;
use crate::attention::launch::{Pass, Sight};

#[test]
fn scratch() {
    let path = std::path::Path::new("/tmp/cuenv/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
    let compiler = Compiler::new(Nvrtc::open(Some(path), None).unwrap(), "sm_90a", None);
    for head_dim in [64, 128, 256] {
        for pass in Pass::ALL {
        let kernel = Kernel::Attention(attention::Kernel { pass, head_dim, sight: Sight::Full });
        let t = std::time::Instant::now();
        match compiler.compile(kernel) {
            Ok((cubin, _)) => println!("{} shared {} {:?} {:?} {:?}", cubin.name, cubin.shared_bytes, cubin.resources, cubin.instructions, t.elapsed()),
            Err(e) => println!("{e}"),
        }
        }
    }
}
