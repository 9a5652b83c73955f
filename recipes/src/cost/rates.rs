//! Quantities for achieved rates: the operations that a sample of given lengths needs, and the peak
//! rate of a device.

use super::operations::{Tokens, sample};
use crate::schema::{Model, Recompute};

/// Estimates the operations of one forward and backward pass of the model for a sample. Operations
/// that are repeated to save memory are not counted, as in PaLM's model FLOPs utilization (arXiv
/// 2204.02311, appendix B).
#[must_use]
pub fn useful_operations(model: &Model, tokens: Tokens) -> f64 {
    sample(model, tokens, false, Recompute::None).total()
}

/// Returns the peak rate of dense bf16 matrix products of a device, in 10¹² operations per second,
/// or `None` if the device's name is not known.
///
/// The rates are half of those in NVIDIA's data sheets, which hold with sparsity: H100 (SXM 1,979,
/// PCIe 1,513, NVL 1,671) and H200 (SXM 1,979, NVL 1,671).
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
        let tokens = Tokens { visual: 1024, query: 32, target: 64, output: 0 };
        let useful = useful_operations(&model, tokens);
        let twice = sample(&model, tokens, true, Recompute::Block);
        let difference = twice.total() - twice.recompute - useful;
        assert!(difference.abs() < 1e-9 * useful, "{difference}");
        assert!(useful < useful_operations(&model, Tokens { query: 33, ..tokens }));
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
