//! Achieved rates: the operations that a batch of real lengths needs, and what a device can do at most.

use super::operations::{Tokens, sample, visual_tokens};
use crate::schema::{Model, Recompute};

/// Operations of the model for one row of `frames` frames, a query and a target of so many tokens: forward once and backward. What
/// a rank computes twice to save memory is not counted, as in PaLM's model FLOPs utilization (arXiv 2204.02311, appendix B).
#[must_use]
pub fn useful_operations(model: &Model, frames: usize, query: usize, target: usize) -> f64 {
    let tokens = Tokens { visual: visual_tokens(model, frames), query, target };
    sample(model, tokens, false, Recompute::None).total()
}

/// Highest rate of dense bf16 matrix products of a device by its name, 10¹² operations per second; none for what is not listed.
///
/// From NVIDIA's data sheets, which give the rate with sparsity, twice as much: H100 (SXM 1,979, PCIe 1,513, NVL 1,671) and H200 (SXM
/// 1,979, NVL 1,671).
#[must_use]
pub fn peak_tflops(device: &str) -> Option<f64> {
    if !["H100", "H200"].iter().any(|name| device.contains(name)) {
        return None;
    }
    Some(match device {
        pcie if pcie.contains("PCIe") => 756.5,
        nvl if nvl.contains("NVL") => 835.5,
        _ => 989.5,
    })
}

#[cfg(test)]
mod tests {
    use super::{peak_tflops, useful_operations};
    use crate::cost::{Tokens, sample};
    use crate::schema::{Model, Recompute};

    #[test]
    fn what_is_computed_twice_counts_once() {
        let model = Model::default();
        let tokens = Tokens { visual: 1024, query: 32, target: 64 };
        let useful = useful_operations(&model, 8, 32, 64);
        let twice = sample(&model, tokens, true, Recompute::Block);
        let difference = twice.total() - twice.recompute - useful;
        assert!(difference.abs() < 1e-9 * useful, "{difference}");
        assert!(useful < useful_operations(&model, 8, 33, 64));
    }

    #[test]
    fn the_peak_of_a_device_is_known_by_its_name_and_unknown_ones_have_none() {
        for (device, peak) in [
            ("NVIDIA H200, GPU 0 at 0000:1A:00.0", Some(989.5)),
            ("NVIDIA H100 80GB HBM3, GPU 3 at 0000:1A:00.0", Some(989.5)),
            ("NVIDIA H100 PCIe, GPU 0 at 0000:1A:00.0", Some(756.5)),
            ("NVIDIA H200 NVL, GPU 0 at 0000:1A:00.0", Some(835.5)),
            ("NVIDIA A100-SXM4-80GB", None),
            ("host, 2 threads", None),
            ("emulated GPU", None),
        ] {
            assert_eq!(peak_tflops(device), peak, "{device}");
        }
    }
}
